"""Records: which are private and which public, decided by each record alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dpaudit.runs.sources import Records, split_by_text

TEXTS = st.lists(st.text(max_size=8), min_size=1, max_size=40)


@given(texts=TEXTS, fraction=st.floats(0, 0.99), seed=st.integers(0, 9), data=st.data())
def test_removing_or_changing_a_record_moves_no_other(
    texts: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    private, public = split_by_text(Records(tuple(texts)), fraction, seed)
    assert sorted(private.texts + public.texts) == sorted(texts)
    at = data.draw(st.integers(0, len(texts) - 1))
    other = data.draw(st.text(max_size=8))
    for changed in (texts[:at] + texts[at + 1 :], [*texts[:at], other, *texts[at + 1 :]]):
        private_, public_ = split_by_text(Records(tuple(changed)), fraction, seed)
        for text in set(texts) - {texts[at], other}:
            assert (text in private.texts) == (text in private_.texts)
            assert (text in public.texts) == (text in public_.texts)


def test_the_share_is_near_what_was_asked_and_labels_stay_with_their_texts() -> None:
    texts = tuple(f"text {i}" for i in range(4000))
    private, public = split_by_text(Records(texts, tuple(range(4000))), 0.25, 3)
    assert abs(len(public) - 1000) < 140  # five standard deviations
    assert private.labels is not None and all(texts[i] == t for i, t in zip(private.labels, private.texts, strict=True))
    assert split_by_text(Records(texts), 0.25, 4)[1].texts != public.texts  # another seed, another share
    assert split_by_text(Records(texts), 0.0, 3)[0].texts == texts


def test_a_limit_keeps_records_from_the_whole_file_in_its_order() -> None:
    texts = tuple(f"{i:04d}" for i in range(1000))
    private, _ = split_by_text(Records(texts), 0.5, 0, limit=100)
    assert len(private) == 100 and list(private.texts) == sorted(private.texts)
    assert private.texts[-1] > "0800" and private.texts[0] < "0200"
