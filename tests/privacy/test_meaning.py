"""What (ε, δ) means to people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.privacy.meaning import largest_accuracy, largest_advantage, largest_factor


@given(st.floats(0, 30), st.floats(0, 0.1), st.floats(0, 1))
def test_no_test_within_the_guarantee_is_more_often_right(epsilon: float, delta: float, fpr: float) -> None:
    """TPR ≤ e^ε·FPR + δ, and the same for the two kinds of silence."""
    tpr = min(1.0, math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr))
    assert (tpr + 1 - fpr) / 2 <= largest_accuracy(epsilon, delta) + 1e-12


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-5), (3.0, 1e-5), (8.0, 1e-3)])
def test_the_bound_is_reached(epsilon: float, delta: float) -> None:
    fpr = (1 - delta) / (math.exp(epsilon) + 1)
    assert math.exp(epsilon) * fpr + delta - fpr == pytest.approx(largest_advantage(epsilon, delta), abs=1e-12)


def test_extremes() -> None:
    assert largest_factor(0.0) == 1.0 and largest_factor(1e9) == math.inf
    assert largest_accuracy(0.0, 0.0) == 0.5 and largest_accuracy(1e9, 0.5) == 1.0
