"""Printed bounds stay bounds."""

from __future__ import annotations

import math
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.privacy.rounding import (
    exact_text,
    lower_text,
    nearest_text,
    percent_lower,
    percent_upper,
    upper_text,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
MANY = settings(max_examples=300)
PLAIN = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


@MANY
@given(FINITE, st.integers(1, 17))
def test_a_printed_bound_is_a_bound(value: float, digits: int) -> None:
    assert float(upper_text(value, digits)) >= value
    assert float(lower_text(value, digits)) <= value


@MANY
@given(FINITE, st.integers(2, 17))
def test_a_printed_bound_is_close(value: float, digits: int) -> None:
    step = 10.0 ** (1 - digits)
    for text in (upper_text(value, digits), lower_text(value, digits), nearest_text(value, digits)):
        assert PLAIN.fullmatch(text)
        if abs(value) > 1e-300 and math.isfinite(float(text)):
            assert math.isclose(float(text), value, rel_tol=1.01 * step)


@MANY
@given(FINITE)
def test_an_exact_text_reads_back(value: float) -> None:
    assert float(exact_text(value)) == value


@MANY
@given(FINITE, FINITE)
def test_a_printed_bound_keeps_its_side_of_a_limit(value: float, limit: float) -> None:
    assert (float(upper_text(value, within=limit)) <= limit) == (value <= limit)
    assert (float(lower_text(value, beyond=limit)) > limit) == (value > limit)


@MANY
@given(st.floats(0, 1), st.integers(1, 6))
def test_a_printed_share_is_a_bound(share: float, digits: int) -> None:
    exact = 100 * Decimal(repr(share))
    assert Decimal(percent_upper(share, digits)[:-1]) >= exact
    assert Decimal(percent_lower(share, digits)[:-1]) <= exact


def test_missing_and_infinite_values() -> None:
    for write in (upper_text, lower_text, nearest_text, exact_text, percent_upper):
        assert write(None) == write(math.nan) == "—"
    assert upper_text(math.inf) == upper_text("inf") == "∞"
    assert lower_text(-math.inf) == "-∞"


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (17.41623, "17.42", "17.41"),
        (14.2763, "14.28", "14.27"),
        (3.0004, "3.001", "3"),
        (0.1, "0.1", "0.1"),  # the float lies above 1/10, and the text reads back as the same float
        (1e-40, "1e-40", "1e-40"),
        (123456789.0, "1.235e8", "1.234e8"),
        (0.0, "0", "0"),
    ],
)
def test_examples(value: float, up: str, down: str) -> None:
    assert (upper_text(value), lower_text(value)) == (up, down)
