"""Records of a run: one a line or row, in any format; labels numbered once, by classes that are public."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit import InvalidValue, PrivacyRefusal
from dpaudit.runs.config import Config, Data, parse_config
from dpaudit.runs.records import (
    RawRecords,
    Records,
    class_names,
    classes_of,
    declared_classes,
    limited,
    private_and_public,
    read_records,
    split_by_text,
)
from dpaudit.runs.sources import load_model, resolve
from tests.runs.run_helpers import small_config
from tests.storage.test_tables import save_dataset

TEXTS = st.lists(st.text(max_size=8), min_size=1, max_size=40)
NOT_LINE_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


def raw(texts: list[str] | tuple[str, ...], labels: tuple[str, ...] | None = None) -> RawRecords:
    return RawRecords("data file x.csv", tuple(texts), labels, tuple(f"line {i + 2}" for i in range(len(texts))))


def data(**changes: Any) -> Data:
    return Data(**{"path": "x", "max_length": 9, **changes})


def read(path: Path, content: bytes | str, *, labels: bool = False, **changes: Any) -> RawRecords:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_records(data(**changes), path, needs_labels=labels)


def classifier(folder: Path, private: str, public: str | None, **changes: Any) -> Config:
    (folder / "private.csv").write_text(private)
    if public is not None:
        (folder / "public.csv").write_text(public)
    value = small_config(
        model__task="sequence-classification",
        canaries__kind="label-flip",
        data__path="private.csv",
        data__heldout=None if public is None else "public.csv",
        **changes,
    )
    return parse_config(value, "c.toml")


# ------------------------------------------------------------------------------------------------ private and public


@given(texts=TEXTS, fraction=st.floats(0, 0.99), seed=st.integers(0, 9), draw=st.data())
def test_removing_or_changing_a_record_moves_no_other(
    texts: list[str], fraction: float, seed: int, draw: st.DataObject
) -> None:
    private, public = split_by_text(raw(texts), fraction, seed)
    assert sorted(private.texts + public.texts) == sorted(texts)
    at = draw.draw(st.integers(0, len(texts) - 1))
    other = draw.draw(st.text(max_size=8))
    for changed in (texts[:at] + texts[at + 1 :], [*texts[:at], other, *texts[at + 1 :]]):
        private_, public_ = split_by_text(raw(changed), fraction, seed)
        for text in set(texts) - {texts[at], other}:
            assert (text in private.texts) == (text in private_.texts)
            assert (text in public.texts) == (text in public_.texts)


def test_the_share_is_near_what_was_asked_and_labels_stay_with_their_texts() -> None:
    texts = tuple(f"text {i}" for i in range(4000))
    private, public = split_by_text(raw(texts, tuple(str(i) for i in range(4000))), 0.25, 3)
    assert abs(len(public) - 1000) < 140  # five standard deviations
    pairs = zip(private.labels or (), private.texts, private.places, strict=True)
    assert all(texts[int(i)] == text and place == f"line {int(i) + 2}" for i, text, place in pairs)
    assert split_by_text(raw(texts), 0.25, 4)[1].texts != public.texts  # another seed, another share
    assert split_by_text(raw(texts), 0.0, 3)[0].texts == texts


@pytest.mark.parametrize("name", ["private.csv", "copy.csv", "./private.csv"])
def test_the_private_file_is_not_its_own_public_one(tmp_path: Path, name: str) -> None:
    """The exact accuracy on the private records would be published."""
    text = "text,label\na,ham\nb,spam\n"
    config = classifier(tmp_path, text, "")
    (tmp_path / "copy.csv").write_text(text)
    config = config.model_copy(update={"data": config.data.model_copy(update={"heldout": name})})
    with pytest.raises(PrivacyRefusal, match="holds the private records"):
        private_and_public(config, tmp_path)


# ------------------------------------------------------------------------------------------------ limit


def test_a_random_limit_keeps_records_from_the_whole_file_in_its_order() -> None:
    texts = tuple(f"{i:04d}" for i in range(1000))
    kept = limited(raw(texts), data(limit=100, limit_by="random"), 0)
    assert len(kept) == 100 and list(kept.texts) == sorted(kept.texts)
    assert kept.texts[-1] > "0800" and kept.texts[0] < "0200"
    assert limited(raw(texts), data(limit=100, limit_by="random"), 1).texts != kept.texts


def test_the_limit_takes_the_first_rows_beside_a_file_of_public_records_and_draws_from_a_shared_file() -> None:
    texts = tuple(f"{i:04d}" for i in range(100))
    assert limited(raw(texts), data(limit=10, heldout="y"), 0).texts == texts[:10]
    assert limited(raw(texts), data(limit=10), 0).texts != texts[:10]
    assert limited(raw(texts), data(limit=10, limit_by="first"), 0).texts == texts[:10]
    assert limited(raw(texts), data(limit=100), 0).texts == texts


@given(texts=st.lists(st.text(max_size=5), min_size=2, max_size=30, unique=True), draw=st.data())
def test_removing_a_record_from_a_random_limit_brings_in_one_other_at_most(
    texts: list[str], draw: st.DataObject
) -> None:
    limit = draw.draw(st.integers(1, len(texts)))
    gone = draw.draw(st.sampled_from(texts))
    chosen = data(limit=limit, limit_by="random")
    before = set(limited(raw(texts), chosen, 0).texts)
    after = set(limited(raw([t for t in texts if t != gone]), chosen, 0).texts)
    assert before - after <= {gone} and len(after - before) <= 1


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("inside", NOT_LINE_ENDS, ids=ascii)
def test_one_line_is_one_record(tmp_path: Path, inside: str) -> None:
    """Split at any other character, one record would be several, and the claim of one record false."""
    first = f"A letter to my aunt.{inside}She lives far away."
    for name, content in (
        ("a.txt", f"{first}\nSecond record.\n".encode()),
        ("b.txt", f"\ufeff{first}\r\nSecond record.\r\n".encode()),
        ("a.txt.gz", gzip.compress(f"{first}\nSecond record.\n".encode())),
        ("a.txt.xz", lzma.compress(f"{first}\nSecond record.\n".encode())),
    ):
        assert read(tmp_path / name, content).texts == (first, "Second record."), name


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    rows = [{"body": f"text {i}, \u2028 with\na line", "kind": k, "n": i} for i, k in enumerate(["ham", "spam", "ham"])]
    table = pa.table({name: [row[name] for row in rows] for name in ("body", "kind", "n")})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quoted = "".join(f'"{row["body"]}",{row["kind"]},{row["n"]}\n' for row in rows)
    (tmp_path / "a.csv").write_text("\ufeffbody,kind,n\n" + quoted)
    save_dataset(tmp_path / "saved", table, parts=2)
    chosen = data(text_column="body", label_column="kind")
    for name in ("a.parquet", "a.jsonl", "a.csv", "saved"):
        found = read_records(chosen, tmp_path / name, needs_labels=True)
        assert found.texts == tuple(row["body"] for row in rows), name
        assert found.labels == ("ham", "spam", "ham"), name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"one\n\ntwo\n", "line 2 is an empty text"),
        ("a.txt", "one\nthé\n".encode("cp1252"), "is not UTF-8 text .*line 2.*iconv"),
        ("a.txt", "one\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.txt", b"one\nt\0wo\n", "NUL character on line 2"),
        ("a.txt", b"one\rtwo\rthree", "carriage returns"),
        ("a.tsv", b"text\tlabel\na\t0\n", "an ending that is not known; give .txt"),
        ("a.xlsx", b"PK\x03\x04", "an ending that is not known"),
        ("a.csv", b"text;label\na;0\n", "separates its columns with semicolons"),
        ("a.csv", b"body,label\na,0\n", "no column 'text'.* has body, label.*data.text_column"),
        ("a.csv", b"text,label\nfirst,0\nthird\n", "line 3 has 1 cells"),
        ("a.csv", b"text,label\nhello, world,0\n", "line 2 has 3 cells"),
        ("a.csv", b"text,label\nfirst,0\nthird,\n", "line 3 has no label in 'label'"),
        ("a.csv", b"text,label\nfirst,0\n ,1\n", "line 3 is an empty text"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2 has no label"),
        ("a.jsonl", b'{"text": 7, "label": 0}\n', "line 1 holds 7 in 'text', which is no text"),
        ("a.jsonl", b'{"text": "a", "label": [0]}\n', "line 1 has no label"),
    ],
)
def test_records_that_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(InvalidValue, match=words) as raised:
        read(tmp_path / name, content, labels=name != "a.txt")
    assert "\n" not in str(raised.value)


def test_plain_text_has_neither_labels_nor_sources(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="has no labels; classification needs a table"):
        read(tmp_path / "a.txt", "one\n", labels=True)
    with pytest.raises(InvalidValue, match=r"data.source chooses rows of a table and a.txt is plain text"):
        read(tmp_path / "a.txt", "one\n", source="x")


def test_a_source_chooses_rows_and_errors_still_name_their_line(tmp_path: Path) -> None:
    text = "text,label,origin\na,0,x\nb,1,y\n,1,y\nc,0,x\n"
    found = read(tmp_path / "a.csv", text, labels=True, source="x", source_column="origin")
    assert found.texts == ("a", "c") and found.places == ("line 2", "line 5")
    with pytest.raises(InvalidValue, match="line 4 is an empty text"):
        read(tmp_path / "a.csv", text, labels=True, source="y", source_column="origin")
    with pytest.raises(InvalidValue, match=r"no rows with origin='z'; check data.source"):
        read(tmp_path / "a.csv", text, labels=True, source="z", source_column="origin")


def test_folders_and_digests(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="is a folder and no saved dataset"):
        read_records(data(), tmp_path, needs_labels=False)
    with pytest.raises(InvalidValue, match=r"data.sha256 is the digest of one file"):
        read_records(data(sha256="0" * 64), tmp_path, needs_labels=False)
    with pytest.raises(InvalidValue, match="expects 000"):
        read(tmp_path / "a.txt", "one\n", sha256="0" * 64)


def test_names_of_the_hub_are_not_downloaded(tmp_path: Path) -> None:
    for key, name, words in (
        ("model.path", "gpt2", "save it with save_pretrained"),
        ("model.path", "openai-community/gpt2", "save it with save_pretrained"),
        ("data.path", "imdb", "save it as Parquet or with save_to_disk"),
        ("data.path", "private.csv", "correct it in the configuration"),
    ):
        with pytest.raises(InvalidValue, match=f"{key}='{name}' does not exist .*{words}"):
            resolve(name, tmp_path, key=key)


# ------------------------------------------------------------------------------------------------ classes


def test_labels_in_several_spellings_are_one_class(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "text,label\na,1\nb, 1\nc,1.0\nd,0\n", labels=True)
    assert found.labels == ("1", "1", "1", "0")
    table = pa.table({"text": ["a", "b"], "label": [1.0, 0.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_records(data(), tmp_path / "a.parquet", needs_labels=True).labels == ("1", "0")


@pytest.mark.parametrize("cells", [["0", None], ["0", float("nan")]])
def test_a_missing_label_in_parquet_is_no_class(tmp_path: Path, cells: list[Any]) -> None:
    column = pa.array([float(c) if isinstance(c, str) else c for c in cells], pa.float64())
    pq.write_table(pa.table({"text": ["a", "b"], "label": column}), tmp_path / "a.parquet")
    with pytest.raises(InvalidValue, match="row 2 has no label"):
        read_records(data(), tmp_path / "a.parquet", needs_labels=True)


def test_classes_stand_in_the_order_of_their_numbers() -> None:
    public = raw(["x"] * 12, tuple(str(i) for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9, 11)))
    assert class_names(data(), public) == tuple(str(i) for i in range(12))
    assert class_names(data(), raw(["x"] * 3, ("spam", "ham", "spam"))) == ("ham", "spam")
    assert class_names(data(labels=("spam", "ham")), raw(["x"], ("ham",))) == ("spam", "ham")
    assert class_names(data(labels=(2, 1, 0)), raw([])) == ("2", "1", "0")


@pytest.mark.parametrize("name", ["None", "nan", "NaN", "null", "NA", "<NA>"])
def test_what_a_missing_cell_is_written_as_is_no_class_unless_declared(name: str) -> None:
    public = raw(["x"] * 3, ("ham", "spam", name))
    with pytest.raises(InvalidValue, match=r"as missing cells are written; fill them, or declare data.labels"):
        class_names(data(), public)
    assert class_names(data(labels=("ham", "spam", name)), public)[2] == name


def test_labels_that_differ_in_case_only_are_two_classes_only_if_declared() -> None:
    public = raw(["x"] * 3, ("True", "False", "true"))
    with pytest.raises(InvalidValue, match="'True' and 'true', which differ in case only"):
        class_names(data(), public)
    assert class_names(data(labels=("True", "False", "true")), public) == ("True", "False", "true")


@pytest.mark.parametrize("labels", [("ham",), ("ham", "ham"), ("1", 1), ("ham", ""), ()])
def test_declared_classes_are_two_or_more_and_different(labels: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidValue, match="must name two or more different classes"):
        declared_classes(labels)


def test_the_number_of_classes_never_follows_the_private_labels(tmp_path: Path) -> None:
    private = "text,label\na,ham\nb,spam\nc,eggs\n"
    with pytest.raises(
        InvalidValue, match=r"private.csv, line 4 has the label 'eggs', which is none of the classes ham, spam"
    ):
        private_and_public(classifier(tmp_path, private, "text,label\nx,ham\ny,spam\n"), tmp_path)
    with pytest.raises(InvalidValue, match=r"data.labels is missing and there are no public records"):
        private_and_public(classifier(tmp_path, private, None), tmp_path)
    with pytest.raises(InvalidValue, match="only the label 'ham' among its public records"):
        private_and_public(classifier(tmp_path, private, "text,label\nx,ham\n"), tmp_path)
    found, public = private_and_public(
        classifier(tmp_path, private, "text,label\nx,spam\n", data__labels=["spam", "eggs", "ham"]), tmp_path
    )
    assert found.labels == (2, 0, 1) and public.labels == (0,)
    assert found.classes == public.classes == ("spam", "eggs", "ham")


def test_private_and_public_labels_are_numbered_alike(tmp_path: Path) -> None:
    """They were numbered apart: "spam" was 1 in training and 0 in the evaluation."""
    private, public = "text,label\na,ham\nb,spam\n", "text,label\nx,spam\ny,valid\nz,ham\n"
    found, held = private_and_public(classifier(tmp_path, private, public), tmp_path)
    assert found.classes == ("ham", "spam", "valid") and found.labels == (0, 1) and held.labels == (1, 2, 0)
    with pytest.raises(InvalidValue, match=r"public.csv, line 3 has the label 'valid'.*declare every class"):
        private_and_public(classifier(tmp_path, private, public, data__labels=["ham", "spam"]), tmp_path)


@pytest.mark.parametrize(("label", "meant"), [("Ham", "ham"), ("spamm", "spam")])
def test_a_misspelt_label_is_told_what_it_may_be(tmp_path: Path, label: str, meant: str) -> None:
    config = classifier(tmp_path, f"text,label\na,{label}\n", "text,label\nx,ham\ny,spam\n")
    with pytest.raises(InvalidValue, match=f"label '{label}'.*; write '{meant}'"):
        private_and_public(config, tmp_path)


def test_classes_of_a_configuration(tmp_path: Path) -> None:
    private = "text,label\na,ham\nb,spam\n"
    assert classes_of(classifier(tmp_path, private, "text,label\nx,ham\ny,spam\n"), tmp_path) == ("ham", "spam")
    assert classes_of(classifier(tmp_path, private, None, data__labels=["b", "a"]), tmp_path) == ("b", "a")
    assert classes_of(parse_config(small_config(), "c"), tmp_path) is None


def test_records_without_classes_have_no_labels() -> None:
    assert raw(["a"], ("x",)).numbered(None) == Records(("a",))
    assert Records(("a", "b"), (1, 0), ("x", "y")).take([1]) == Records(("b",), (0,), ("x", "y"))


# ------------------------------------------------------------------------------------------------ the model's head


def tiny_bert(folder: Path, names: list[str] | None) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=20, max_position_embeddings=16, **shape)
    if names is None:
        BertModel(config).save_pretrained(folder)
        return folder
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_the_released_model_names_its_classes(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model", None)
    config = classifier(tmp_path, "", "", model__path="model")
    model = load_model(config, tmp_path, classes=("ham", "spam", "eggs"))
    model.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["id2label"] == {"0": "ham", "1": "spam", "2": "eggs"}
    assert written["label2id"] == {"ham": 0, "spam": 1, "eggs": 2} and model.classifier.out_features == 3


def test_a_head_that_the_model_brings_has_the_same_classes(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model", ["spam", "ham"])
    config = classifier(tmp_path, "", "", model__path="model")
    with pytest.raises(InvalidValue, match="has a head for 2 classes and the data have 3"):
        load_model(config, tmp_path, classes=("ham", "spam", "eggs"))
    with pytest.raises(InvalidValue, match=r"numbers its classes spam, ham; declare data.labels in that order"):
        load_model(config, tmp_path, classes=("ham", "spam"))
    assert load_model(config, tmp_path, classes=("spam", "ham")).config.id2label == {0: "spam", 1: "ham"}
    assert load_model(config, tmp_path, classes=("no", "yes")).config.id2label == {0: "no", 1: "yes"}
