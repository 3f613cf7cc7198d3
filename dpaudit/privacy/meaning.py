"""What (ε, δ) means to people: how far an outcome may become likelier, and how often a guess may be right."""

from __future__ import annotations

import math

from dpaudit.privacy import validate


def largest_factor(epsilon: float) -> float:
    """e^ε: the most by which one unit's presence multiplies the probability of any outcome, apart from δ.

    >>> round(largest_factor(3.0), 3)
    20.086
    """
    validate.non_negative(epsilon=epsilon)
    return math.exp(epsilon) if epsilon < 700 else math.inf


def largest_advantage(epsilon: float, delta: float) -> float:
    """Largest TPR − FPR of any test for one unit's presence under (ε, δ)-DP: (e^ε − 1 + 2δ) ÷ (e^ε + 1)."""
    validate.non_negative(epsilon=epsilon, delta=delta)
    rest = math.exp(-epsilon)
    return min(1.0, math.tanh(epsilon / 2) + 2 * delta * rest / (1 + rest))


def largest_accuracy(epsilon: float, delta: float) -> float:
    """Largest share of right answers to "was this unit in the data?" when both answers are equally likely beforehand.

    An upper bound for any (ε, δ)-DP mechanism, whatever the attacker knows or computes.

    >>> round(largest_accuracy(3.0, 1e-5), 4)
    0.9526
    """
    return 0.5 * (1.0 + largest_advantage(epsilon, delta))
