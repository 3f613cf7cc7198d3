"""Arrays as texts come back whole, are written in one way, and damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit import InvalidEvidence
from dpaudit.auditing.in_run.arrays import ascending_of, ascending_text, bits_of, bits_text, numbers_of, numbers_text


@given(st.lists(st.booleans(), max_size=70))
def test_bits(values: list[bool]) -> None:
    assert bits_of(bits_text(np.array(values, dtype=bool)), len(values)).tolist() == values


@given(st.sets(st.integers(0, 2**55), max_size=60))
def test_ascending_numbers(values: set[int]) -> None:
    ordered = sorted(values)
    assert ascending_of(ascending_text(np.array(ordered, dtype=np.int64))).tolist() == ordered


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_numbers(values: list[float]) -> None:
    assert numbers_of(numbers_text(np.array(values), width=4), width=4, name="x").tolist() == values


def test_a_known_text() -> None:
    assert ascending_text(np.array([0, 1, 300])) == "AACqAg=="  # gaps 0, 0, 298 = 42 + 2·128
    assert bits_text(np.array([True] + [False] * 8)) == "gAA="


@pytest.mark.parametrize("text", [7, "é", "AA", "AAC=", "gA==" + " ", "gA=", "/w"])
def test_damaged_texts_are_refused(text: object) -> None:
    with pytest.raises(InvalidEvidence):
        ascending_of(text)
    with pytest.raises(InvalidEvidence):
        bits_of(text, 3)


def test_bits_beyond_the_count_and_odd_lengths_are_refused() -> None:
    with pytest.raises(InvalidEvidence, match="beyond"):
        bits_of("/w==", 3)
    with pytest.raises(InvalidEvidence, match="multiple"):
        numbers_of("AAA=", width=4, name="scores")
    with pytest.raises(InvalidEvidence, match="finite"):
        numbers_of(numbers_text(np.array([np.inf]), width=8), width=8, name="scores")
    with pytest.raises(InvalidEvidence, match="within a number"):
        ascending_of("gA==")
