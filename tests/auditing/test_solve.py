"""The largest value that a monotone test rejects: bisection, and interpolation on the grid of that bisection."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dpaudit.auditing.one_run import snj_epsilon_lower, snj_p_value
from dpaudit.auditing.solve import largest_not_above, largest_rejected


@given(
    root=st.floats(0, 900),
    power=st.sampled_from([0.2, 1.0, 3.0, 9.0]),
    step=st.booleans(),
    start=st.sampled_from([1.0, 2.0]),
    tol=st.sampled_from([1e-2, 1e-4, 1e-9]),
)
def test_interpolation_ends_where_bisection_does(
    root: float, power: float, step: bool, start: float, tol: float
) -> None:
    def value(x: float) -> float:
        if step:
            return 1.0 if x > root else -1.0
        return float(x**power - root**power)

    found = largest_not_above(value, 0.0, start=start, limit=700.0, tol=tol)
    assert found == largest_rejected(lambda x: value(x) <= 0.0, start=start, limit=700.0, tol=tol)
    assert value(found) <= 0.0 and (found == 700.0 or root - found <= tol * 1.001)


def test_it_takes_few_evaluations_and_none_off_the_answer() -> None:
    seen: list[float] = []

    def value(x: float) -> float:
        seen.append(x)
        return math.expm1(x) - 5.0

    assert abs(largest_not_above(value, 0.0, start=1.0, tol=1e-9) - math.log(6.0)) < 1e-9
    assert len(seen) <= 16  # bisection takes 33
    assert largest_not_above(lambda x: x + 1.0, 0.0, tol=1e-9) == 0.0


@given(
    m=st.integers(2, 20_000),
    share=st.floats(0.01, 1),
    right=st.floats(0.4, 1),
    delta=st.sampled_from([0.0, 1e-7, 1e-4]),
)
def test_the_one_run_bound_is_that_of_bisection(m: int, share: float, right: float, delta: float) -> None:
    guesses = max(1, int(m * share))
    correct = min(guesses, round(guesses * right))

    def rejects(epsilon: float) -> bool:
        return snj_p_value(m, guesses, correct, epsilon, delta) <= 0.05

    expected = largest_rejected(rejects, start=2.0, limit=700.0, tol=1e-6)
    assert snj_epsilon_lower(m, guesses, correct, delta, 0.05, tol=1e-6) == expected
