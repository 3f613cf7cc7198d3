"""The certified interval at the edge of the floats, against a slow accountant that works in logarithms throughout."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest

from dpaudit import Ledger, Relation, Stage
from dpaudit.accounting import account
from dpaudit.accounting.prv import participation
from dpaudit.accounting.prv.curves import CrossedBounds, checked, delta_interval, epsilon_interval
from dpaudit.accounting.relations import Charges, charges
from tests.accounting import log_domain_oracle

Stages = list[tuple[float, float, int]]
pytestmark = pytest.mark.filterwarnings("error")


def ledger(stages: Stages, relation: str = "add_or_remove_one", **more: Any) -> Ledger:
    made = [
        Stage(sampling_probability=q, noise_multiplier=s, steps=t, **({"sampling": "poisson"} | more))
        for q, s, t in stages
    ]
    return Ledger(stages=tuple(made), relation=Relation.parse(relation))


def oracle(cost: Charges, delta: float, laplace: bool = False) -> tuple[float, float]:
    """ε by :mod:`log_domain_oracle`, from the same pairs."""
    runs = [(part.up, part.down, part.scale, times) for step, times in cost.runs for _, part in step.components]
    if cost.mu:
        runs.append(((0.0, 1.0), (1.0,), 1 / cost.mu, 1))
    return log_domain_oracle.epsilon(runs, math.log(delta), laplace)


def agrees(cost: Charges, delta: float) -> tuple[float, float]:
    """The interval, which has to meet that of the oracle where its lattice indices are integers of 64 bits."""
    found = epsilon_interval(cost, delta)
    try:
        low, high = oracle(cost, delta)
    except OverflowError:
        return found.lower, found.upper
    assert found.upper >= low * (1 - 1e-9) - 1e-12
    assert found.lower <= high * (1 + 1e-9) + 1e-12
    return found.lower, found.upper


RARE: Stages = [
    (1e-05, 1.1813881725438011, 74889),
    (0.00021158021861760699, 0.9876043316855573, 16964),
    (0.00725765770545462, 69.19014699356025, 220),
]
HEAVY: Stages = [
    (8.17372085374498e-06, 35.41647264063618, 807),
    (0.01099318891228397, 4.397162841013762, 65),
    (1.3135551890225666e-06, 4.6757289912874125, 475075),
    (0.05696825872911729, 2.804175535983679, 7),
    (1.0, 254.34537798499105, 155976099),
]
# Ledger, δ, and a point that the true ε is near: lower bounds once lay up to 16 % above it, and upper ones at 0.
CROSSED: list[tuple[Stages, float, float]] = [
    (RARE, 1.26e-208, 30.525),
    (HEAVY, 2.25e-08, 1473.48),
    ([(0.0011208250059879738, 4.685602932185683, 2742), (0.16930531678350852, 213.6667862049033, 1)], 8.63e-165, 0.30),
    ([(0.00034, 4.0, 10_000)], 1e-110, 0.1953),
    ([(0.01, 1.0, 1000)], 1e-150, 44.2),
    ([(0.001, 0.7, 100_000)], 1e-150, 67.7),
]


@pytest.mark.parametrize(("stages", "delta", "near"), CROSSED, ids=lambda v: f"{v:g}" if isinstance(v, float) else "")
def test_lower_bounds_stay_below_the_truth_at_tiny_delta_and_large_epsilon(
    stages: Stages, delta: float, near: float
) -> None:
    lower, upper = agrees(charges(ledger(stages)), delta)
    assert lower <= near * 1.01 and upper >= near * 0.99


@pytest.mark.parametrize("delta", [1e-300, 1e-310, 5e-324])
@pytest.mark.parametrize("stages", [[(0.01, 1.0, 100)], [(0.00034, 4.0, 10_000)], [(0.5, 0.5, 3), (1.0, 2.0, 5)]])
def test_the_smallest_delta_that_a_float_holds_has_a_finite_interval(stages: Stages, delta: float) -> None:
    lower, upper = agrees(charges(ledger(stages)), delta)
    assert 0 < upper < math.inf and lower >= 0


def test_bounds_that_cross_are_an_error_and_never_a_thin_interval() -> None:
    with pytest.raises(CrossedBounds, match=r"lower=2\.0 is above upper=1\.0"):
        checked(2.0, 1.0)
    with pytest.raises(CrossedBounds):
        checked(math.nan, 1.0)


SIGMAS = [1e-300, 1e-200, 1e-154, 1e-30, 1e-3, 0.019, 0.021, 1e3, 1e8, 1e16, 1e100, 1e154, 1e200, 1e300, 1e308]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("q", [1.0, 0.3, 1e-9])
@pytest.mark.parametrize("delta", [0.3, 1e-5, 1e-300])
def test_every_noise_from_nothing_to_everything_is_answered(q: float, sigma: float, delta: float) -> None:
    for relation in ("add_or_remove_one", "replace_one"):
        found = epsilon_interval(charges(ledger([(q, sigma, 7)], relation)), delta)
        assert 0 <= found.lower <= found.upper
        assert found.lower < math.inf


@pytest.mark.slow
def test_narrow_noise_costs_the_participations_it_can_have() -> None:
    # ε is that of k certain participations, k/(2σ²), for the k that δ allows.
    for sigma in (1e-3, 1e-30):
        lower, upper = agrees(charges(ledger([(0.01, sigma, 100)])), 1e-5)
        assert lower == pytest.approx(7 / (2 * sigma**2), rel=0.01)
        assert upper == pytest.approx(7 / (2 * sigma**2), rel=0.01)
    assert agrees(charges(ledger([(1e-9, 1e-3, 10), (0.01, 1.0, 100)])), 1e-5)[1] < 2  # too rare to matter at this δ


def test_what_passes_the_largest_float_is_infinite_above_and_finite_below() -> None:
    for stages in ([(1.0, 1e-200, 1)], [(0.5, 1e-200, 1)]):
        found = epsilon_interval(charges(ledger(stages)), 1e-5)
        assert found.upper == math.inf and found.lower > 1e300


@pytest.mark.parametrize(("steps", "delta"), [(1, 1e-9), (10, 1e-9), (10, 0.01), (1, 1e-200), (3, 0.3)])
def test_laplace_noise_has_a_lower_bound_where_its_loss_ends(steps: int, delta: float) -> None:
    cost = charges(ledger([(1.0, 1.0, steps)], mechanism="laplace"))
    found, (low, high) = epsilon_interval(cost, delta), oracle(cost, delta, laplace=True)
    assert found.lower <= high and found.upper >= low
    assert found.upper - found.lower <= 5e-3 * found.upper


def test_a_delta_of_nearly_everything_and_of_nothing_is_answered() -> None:
    cost = charges(ledger([(0.01, 0.8, 500), (1.0, 40.0, 10)]))
    assert epsilon_interval(cost, 1 - 1e-12) == epsilon_interval(cost, 0.9)
    assert delta_interval(cost, 800.0).upper < 1e-300
    assert delta_interval(cost, 1e6).lower == 0.0


def test_participation_bounds_hold_beside_the_lattice() -> None:
    for stages in ([(0.01, 0.3, 50)], [(0.2, 0.1, 4), (1.0, 3.0, 2)], [(1e-4, 0.05, 10_000)]):
        for delta in (1e-2, 1e-6, 1e-100):
            cost = charges(ledger(stages))
            found = epsilon_interval(cost, delta)
            assert participation.epsilon_below(cost, delta) <= found.upper
            assert participation.epsilon_above(cost, delta) >= found.lower


def test_the_add_direction_is_never_zero_by_mistake() -> None:
    (found,) = account(ledger([(0.999999, 0.25, 10_000)]), delta=1e-50)
    assert found.epsilon_upper is not None and found.epsilon_upper > 75_000


def drawn(draw: random.Random) -> tuple[Stages, str, int, float]:
    """A ledger, relation, group and δ far beyond what anybody trains with."""

    def spread(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    stages = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        q = draw.choice([1.0, 0.999999, spread(1e-12, 1), spread(1e-4, 1)])
        sigma = draw.choice([spread(1e-300, 1e308), spread(1e-3, 1e4), spread(0.3, 10)])
        stages.append((q, sigma, int(spread(1, 1e9))))
    relation = draw.choice(["add_or_remove_one", "zero_out", "replace_one"])
    delta = draw.choice([10 ** draw.uniform(-300, -0.31), 10 ** draw.uniform(-20, -0.31)])
    return stages, relation, draw.choice([1, 1, 1, 2, 7]), delta


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_random_extremes_contain_the_truth(seed: int) -> None:
    stages, relation, group, delta = drawn(random.Random(seed))
    cost = charges(ledger(stages, relation), group_size=group)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = epsilon_interval(cost, delta)
    assert 0 <= found.lower <= found.upper
    within = [part.scale for step, _ in cost.runs for _, part in step.components] + [1 / cost.mu if cost.mu else 1.0]
    if all(1e-30 < scale < 1e30 for scale in within):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            agrees(cost, delta)
