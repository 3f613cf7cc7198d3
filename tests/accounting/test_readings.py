"""Bounds read off the tails of a pair, against their definition looked at point by point."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accounting.prv import readings
from dpaudit.accounting.prv.compose import Tails
from dpaudit.accounting.prv.pair import Pair


def pair_of(seed: int, size: int, *, unknown: int, shift: float) -> Pair:
    """Tails of two discretised normal laws at distance ``shift``, with errors, of which some points are unknown."""
    rng = np.random.default_rng(seed)
    x = np.linspace(-3, 5, size)
    up, down = (np.array([0.5 * math.erfc((v - mean) / math.sqrt(2)) for v in x]) for mean in (shift, 0.0))
    errors = [1e-13 * rng.exponential(size=size) + 1e-30 for _ in range(2)]
    for error in errors:
        error[:unknown] = np.inf
    first, second = (Tails(value, error, 0.0, 1e-15) for value, error in zip((up, down), errors, strict=True))
    h = shift * (x[1] - x[0])
    return Pair(h=h, start=shift * x[0] - shift**2 / 2, first=first, second=second, **REST)


REST = {"log_infinite": -math.inf, "log_mass_factor": 0.0, "shift_error": 0.0}


def above_by_definition(pair: Pair, delta: float) -> float:
    """Smallest of the losses that are at least the bound of every point from theirs on."""
    value, error = pair.first.value, pair.first.error
    budget = delta * math.exp(-1e-15)
    points = range(len(value))
    bounds = []
    for i in points:
        top = float((value[: i + 1] + error[: i + 1]).min()) - budget
        bottom = float((pair.second.value[i:] - pair.second.error[i:]).max())
        known = bottom > 0 and math.isfinite(top)
        bounds.append(-math.inf if top <= 0 else math.log(top) - math.log(bottom) if known else math.inf)
    return max(0.0, min(max(pair.start + j * pair.h, *bounds[j:]) for j in points))


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 160),
    unknown=st.integers(0, 5),
    shift=st.floats(0.2, 3.0),
    delta=st.sampled_from([1e-12, 1e-7, 1e-3, 0.2, 0.9]),
    part=st.sampled_from([1, 3, 8, 8192]),
)
def test_bounds_are_those_of_the_definition(
    seed: int, size: int, unknown: int, shift: float, delta: float, part: int
) -> None:
    pair = pair_of(seed, size, unknown=unknown, shift=shift)
    before, readings._PART = readings._PART, part
    try:
        above = readings.epsilon_above(pair, math.log(delta))
    finally:
        readings._PART = before
    expected = above_by_definition(pair, delta)
    assert above == expected or abs(above - expected) <= 1e-9 * max(1.0, expected)
    below = [
        math.log(v - e - delta) - math.log(w + f)
        for v, e, w, f in zip(pair.first.value, pair.first.error, pair.second.value, pair.second.error, strict=True)
        if v - e > delta * (1 + 1e-12) and math.isfinite(w + f)
    ]
    assert readings.epsilon_below(pair, math.log(delta)) >= max([0.0, *below]) - 1e-9
    assert readings.epsilon_below(pair, math.log(delta)) <= above + 1e-9
