"""Directions: counter-based, device independent, regenerable out of order, with the right moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import InvalidValue
from dpaudit.trainers.zeroth_order import directions as module
from dpaudit.trainers.zeroth_order.bits import philox_words
from dpaudit.trainers.zeroth_order.directions import DirectionKind, Directions

KINDS = list(DirectionKind)


def draw(directions: Directions, size: int, **key: object) -> torch.Tensor:
    full = {"step": 0, "direction": 0, "tensor": "w", **key}
    return directions.values(size=size, **full)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    k0=st.integers(0, 2**64 - 1),
    k1=st.integers(0, 2**64 - 1),
    first=st.integers(0, 10_000),
    count=st.integers(1, 40),
)
def test_torch_philox_equals_numpys(k0: int, k1: int, first: int, count: int) -> None:
    expected = np.random.Philox(key=np.array([k0, k1], dtype=np.uint64)).random_raw(first + count)[first:]
    found = philox_words((k0, k1), first, count, torch.device("cpu")).numpy().view(np.uint64)
    assert (found == expected).all()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 400_000), size=st.integers(0, 300))
def test_any_slice_is_regenerated_alone(kind: DirectionKind, start: int, size: int) -> None:
    v = Directions(run="r", kind=kind)
    alone = draw(v, size, start=start)
    around = draw(v, size + start % 1000, start=start - start % 1000)
    assert torch.equal(alone, around[start % 1000 :])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_change_values(kind: DirectionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    v = Directions(run="r", kind=kind)
    whole = draw(v, 300_001)
    monkeypatch.setattr(module, "BLOCK", 4096)
    assert torch.equal(whole, draw(v, 300_001))


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_path_gives_the_same_bits(kind: DirectionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path for accelerators runs on the CPU here: only the words' source differs."""
    stream = Directions(run="r", kind=kind).stream(step=5, direction=1, tensor="w")
    expected = stream.expand(128, 999, module.Buffer(999, torch.device("cpu"))).clone()

    class Elsewhere:
        class device:
            type = "elsewhere"

    table = module._table(kind, torch.device("cpu"))
    monkeypatch.setattr(module, "_table", lambda *_: table)
    monkeypatch.setattr(module, "philox_words", lambda key, first, count, _: philox_words(key, first, count, "cpu"))
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *a, device=None, **k: arange(*a, **k))
    assert torch.equal(stream.expand(128, 999, Elsewhere()), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_cached_words_give_the_same_values(kind: DirectionKind) -> None:
    stream = Directions(run="r", kind=kind).stream(step=5, direction=1, tensor="w")
    fresh = [block.clone() for *_, block in stream.blocks(200_003)]
    cached = [block.clone() for *_, block in stream.blocks(200_003, words=stream.words(200_003))]
    assert all(torch.equal(a, b) for a, b in zip(fresh, cached, strict=True))


def test_every_part_of_the_key_changes_the_direction() -> None:
    v = Directions(run="r")
    base = draw(v, 4096)
    others = [
        draw(v, 4096, step=1),
        draw(v, 4096, direction=1),
        draw(v, 4096, tensor="w2"),
        draw(Directions(run="s"), 4096),
        draw(v, 4096, start=4096),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 0.07  # 4.5 standard errors


def test_gaussian_values_follow_the_normal_law() -> None:
    from scipy import stats

    z = draw(Directions(run="law"), 200_000).double()
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01
    assert abs(z.var().item() - 1) < 0.015
    assert abs(z.pow(4).mean().item() - 3) < 0.1


def test_the_gaussian_table_is_symmetric_with_unit_variance() -> None:
    table = module._table(DirectionKind.GAUSSIAN, torch.device("cpu")).double()
    assert torch.equal(table, -table.flip(0))
    assert abs(table.square().mean().item() - 1) < 1e-7


def test_rademacher_values_are_balanced_signs() -> None:
    z = draw(Directions(run="law", kind=DirectionKind.RADEMACHER), 200_000)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(z.mean().item()) < 0.01
    assert abs((z[:-1] * z[1:]).mean().item()) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_known_values_do_not_drift_between_versions(kind: DirectionKind) -> None:
    first = draw(Directions(run="golden", kind=kind), 4).tolist()
    expected = {
        DirectionKind.GAUSSIAN: GOLDEN_GAUSSIAN,
        DirectionKind.RADEMACHER: GOLDEN_RADEMACHER,
    }[kind]
    assert first == expected


def test_global_generators_are_untouched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    draw(Directions(run="r"), 1000)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]


def test_an_empty_run_key_is_refused() -> None:
    with pytest.raises(InvalidValue, match="run=''"):
        Directions(run="")
    with pytest.raises(InvalidValue, match="kind="):
        Directions(run="r", kind="cauchy")  # type: ignore[arg-type]


GOLDEN_GAUSSIAN = [-0.3195481300354004, -1.4522414207458496, -1.49202561378479, -0.6276648640632629]
GOLDEN_RADEMACHER = [1.0, -1.0, -1.0, 1.0]
