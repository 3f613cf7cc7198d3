"""The certified accountant: golden intervals, an extended-precision oracle, and the laws ε has to obey."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import Ledger, Relation, Stage, UnsupportedStage
from dpaudit.accounting import account
from dpaudit.accounting.prv.compose import FFT_CONSTANT, Law, compose
from dpaudit.accounting.prv.curves import delta_interval, epsilon_interval
from dpaudit.accounting.prv.loss import UNIT, cells
from dpaudit.accounting.relations import Component, Step, charges
from dpaudit.privacy.gaussian import gaussian_epsilon
from dpaudit.privacy.stage import Mechanism
from tests import DATA

GOLDEN = json.loads((DATA / "accounting_cases.json").read_text())["cases"]
DELTA = 1e-5
few = settings(max_examples=8, deadline=None, derandomize=True)


def make(*stages: tuple[float, float, int], relation: str = "add_or_remove_one", **more: Any) -> Ledger:
    made = [
        Stage(sampling_probability=q, noise_multiplier=s, steps=t, sampling=more.get("sampling", "poisson"))
        for q, s, t in stages
    ]
    return Ledger(stages=tuple(made), relation=Relation.parse(relation))


def interval(ledger: Ledger, delta: float = DELTA, **options: Any) -> tuple[float, float]:
    found = epsilon_interval(charges(ledger), delta, **options)
    assert 0 <= found.lower <= found.upper
    return found.lower, found.upper


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["name"])
def test_golden_intervals_are_met_and_narrow(case: dict[str, Any]) -> None:
    stages = tuple(Stage(sampling="poisson", **stage) for stage in case["stages"])  # type: ignore[arg-type]
    lower, upper = interval(Ledger(stages=stages, relation=case["relation"]), case["delta"])
    assert upper >= case["epsilon_lower"]
    assert lower <= case["epsilon_upper"]
    assert upper - lower <= 5e-3 * upper


def test_peers_fail_here_at_tiny_delta() -> None:
    # Reference interval [10.8269, 10.8339]; a float64 FFT without a tilt gives 10.515.
    lower, upper = interval(make((0.01, 1.0, 10_000)), 1e-13)
    assert upper >= 10.8269
    assert lower <= 10.8339
    assert upper - lower <= 0.0025 * upper


def single_step_delta(q: float, sigma: float, epsilon: float, direction: int) -> mpmath.mpf:
    """δ(ε) of one Poisson-subsampled Gaussian in closed form, 40 digits (section 6 of the reference)."""
    with mpmath.workdps(40):
        q, sigma, grow = mpmath.mpf(q), mpmath.mpf(sigma), mpmath.e ** mpmath.mpf(epsilon)

        def above(x: mpmath.mpf, mean: int) -> mpmath.mpf:
            return mpmath.erfc((x - mean) / sigma / mpmath.sqrt(2)) / 2

        if direction > 0:  # (1−q)N(0) + qN(1) against N(0): reject above x
            x = sigma**2 * mpmath.log((grow - (1 - q)) / q) + mpmath.mpf(1) / 2
            p, n = (1 - q) * above(x, 0) + q * above(x, 1), above(x, 0)
            return p - grow * n
        if grow * (1 - q) >= 1:
            return mpmath.mpf(0)
        x = sigma**2 * mpmath.log((1 / grow - (1 - q)) / q) + mpmath.mpf(1) / 2
        mixture = (1 - q) * (1 - above(x, 0)) + q * (1 - above(x, 1))
        return (1 - above(x, 0)) - grow * mixture


def single_step_epsilon(q: float, sigma: float, delta: float) -> float:
    best = 0.0
    for direction in (1, -1):
        if single_step_delta(q, sigma, 0.0, direction) <= delta:
            continue
        low, high = 0.0, 1.0
        while single_step_delta(q, sigma, high, direction) > delta:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if single_step_delta(q, sigma, middle, direction) > delta else (low, middle)
        best = max(best, high)
    return best


@pytest.mark.parametrize(
    ("q", "sigma", "delta"),
    [(1e-5, 0.3, 1e-7), (1e-3, 0.4, 1e-5), (0.01, 0.5, 1e-9), (0.1, 1.0, 1e-6), (0.5, 2.0, 1e-12), (0.99, 5.0, 1e-5)],
)
def test_one_step_contains_the_forty_digit_value(q: float, sigma: float, delta: float) -> None:
    truth = single_step_epsilon(q, sigma, delta)
    lower, upper = interval(make((q, sigma, 1)), delta)
    assert lower * (1 - 1e-12) <= truth <= upper * (1 + 1e-12)
    assert upper - lower <= max(5e-3 * upper, 1e-6)


def test_one_thousandth_of_a_percent_on_request() -> None:
    lower, upper = interval(make((0.01, 1.0, 1000)), rtol=1e-4)
    assert upper - lower <= 1e-4 * upper
    assert lower <= 1.82829 and upper >= 1.82741


@few
@given(st.lists(st.tuples(st.floats(0.3, 50), st.integers(1, 500)), min_size=1, max_size=4), st.floats(-13, -2))
def test_full_batch_stages_fuse_to_the_closed_form(parts: list[tuple[float, int]], exponent: float) -> None:
    ledger = make(*[(1.0, s, t) for s, t in parts])
    mu = math.sqrt(sum(t / s**2 for s, t in parts))
    lower, upper = interval(ledger, 10**exponent)
    assert lower == pytest.approx(gaussian_epsilon(mu, 10**exponent), rel=1e-9, abs=1e-12)
    assert upper == pytest.approx(lower, rel=1e-9)


def test_gaussian_closed_form_against_forty_digits() -> None:
    for mu, delta in ((1.0, 1e-5), (20.0, 1e-12), (0.02, 1e-3)):
        epsilon = mpmath.mpf(gaussian_epsilon(mu, delta))
        with mpmath.workdps(40):
            m = mpmath.mpf(mu)
            value = mpmath.ncdf(m / 2 - epsilon / m) - mpmath.e**epsilon * mpmath.ncdf(-m / 2 - epsilon / m)
            assert abs(value / delta - 1) < 1e-9


stage = st.tuples(st.floats(1e-4, 0.3), st.floats(0.6, 5.0), st.integers(1, 3000))


@few
@given(stage, stage)
def test_permutation_splitting_and_merging_change_nothing(a: Any, b: Any) -> None:
    one = interval(make(a, b))
    assert one == pytest.approx(interval(make(b, a)), rel=1e-9, abs=1e-9)
    q, s, t = a
    split = interval(make((q, s, t // 2), b, (q, s, t - t // 2)))
    assert one == pytest.approx(split, rel=1e-9, abs=1e-9)


@few
@given(stage)
def test_free_stages_cost_nothing_and_no_noise_costs_all(a: Any) -> None:
    free = [(0.3, 1.0, 0), (0.0, 1.0, 50), (0.2, math.inf, 50)]
    assert interval(make(a, *free)) == interval(make(a))
    assert interval(make(*free)) == (0.0, 0.0)
    (found,) = account(make(a, (0.2, 0.0, 3)), delta=DELTA)
    assert found.epsilon_upper == math.inf
    assert "stage 2 adds no noise" in found.assumption


@pytest.mark.parametrize("a", [(0.01, 1.0, 1000), (0.1, 4.0, 200)])
def test_renyi_bounds_lie_above(a: Any) -> None:
    (rdp,) = account(make(a), delta=DELTA, accountants=("rdp",))
    assert rdp.epsilon_upper is not None and interval(make(a))[0] <= rdp.epsilon_upper


@few
@given(stage, st.floats(1.1, 3.0))
def test_monotone_in_every_parameter(a: Any, factor: float) -> None:
    q, s, t = a
    lower, upper = interval(make(a))
    assert interval(make((min(1.0, q * factor), s, t)))[1] >= lower
    assert interval(make((q, s * factor, t)))[0] <= upper
    assert interval(make((q, s, int(t * factor))))[1] >= lower
    assert interval(make(a), DELTA / 10)[1] >= lower


@few
@given(stage)
def test_dominance_chain(a: Any) -> None:
    ledger = make(a)
    lower, upper = interval(ledger)
    assert interval(make((a[0], a[1], 1)))[0] <= upper
    replaced = interval(dataclasses.replace(ledger, relation=Relation.REPLACE_ONE))
    assert replaced[1] >= lower


@few
@given(stage)
def test_delta_of_epsilon_is_delta(a: Any) -> None:
    ledger = make(a)
    lower, upper = interval(ledger)
    if lower > 0:
        assert delta_interval(charges(ledger), upper).lower <= DELTA
        assert delta_interval(charges(ledger), lower).upper >= DELTA
    zero = delta_interval(charges(ledger), 0.0)
    if zero.upper < 0.999:
        lower, upper = interval(ledger, min(0.9999, zero.upper * 1.001))
        assert lower == 0 and upper <= 1e-6


def test_replacement_of_a_full_batch_record_halves_sigma() -> None:
    assert interval(make((1.0, 4.0, 30), relation="replace_one")) == interval(make((1.0, 2.0, 30)))


def test_extremes_stay_finite() -> None:
    for q, s, t, delta in ((1e-6, 0.2, 10**9, 1e-5), (1e-6, 100.0, 1, 1e-9), (0.5, 50.0, 10**6, 1e-5)):
        lower, upper = interval(make((q, s, t)), delta)
        assert 0 < lower <= upper < math.inf


POISSON: dict[str, Any] = {"sampling": "poisson"}
CAPPED: dict[str, Any] = {"sampling": "truncated_poisson", "public_size": 10_000}
LAPLACE: dict[str, Any] = {"mechanism": "laplace"}
# ε at δ by dp_accounting 0.6 (PLD, grid 1e-4; groups of four and eight by its mixture of Gaussians).
PEER = [
    ("replace_one", 1, 1e-5, dict(sampling_probability=0.2, noise_multiplier=3.0, steps=50, **POISSON), 4.06473),
    ("replace_one", 1, 1e-5, dict(sampling_probability=0.01, noise_multiplier=0.8, steps=500, **POISSON), 3.00708),
    ("zero_out", 1, 1e-5, dict(sampling_probability=0.01, noise_multiplier=0.8, steps=500, **POISSON), 2.39944),
    ("add_or_remove_one", 4, 1e-6, dict(sampling_probability=1e-3, noise_multiplier=1.0, steps=5000, **POISSON), 1.746),
    ("add_or_remove_one", 8, 1e-6, dict(sampling_probability=1e-3, noise_multiplier=1.0, steps=5000, **POISSON), 3.743),
    (
        "add_or_remove_one",
        1,
        1e-5,
        dict(sampling_probability=0.1, noise_multiplier=1.5, steps=50, **POISSON, **LAPLACE),
        1.77527,
    ),
    (
        "add_or_remove_one",
        1,
        1e-5,
        dict(sampling_probability=1.0, noise_multiplier=4.0, steps=20, sampling="none", **LAPLACE),
        4.31858,
    ),
    (
        "add_or_remove_one",
        1,
        1e-5,
        dict(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, max_batch=120, **CAPPED),
        5.29717,
    ),
    (
        "add_or_remove_one",
        1,
        1e-5,
        dict(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, max_batch=140, **CAPPED),
        1.97120,
    ),
    (
        "replace_one",
        1,
        1e-5,
        dict(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, max_batch=130, **CAPPED),
        4.05987,
    ),
]


@pytest.mark.parametrize(("relation", "group", "delta", "fields", "peer"), PEER)
def test_agrees_with_the_pairs_of_another_implementation(
    relation: str, group: int, delta: float, fields: dict[str, Any], peer: float
) -> None:
    ledger = Ledger(stages=(Stage(**fields),), relation=Relation.parse(relation))
    found = epsilon_interval(charges(ledger, group_size=group), delta)
    assert found.lower <= peer * 1.001
    assert peer * 0.999 <= found.upper
    assert found.upper - found.lower <= 5e-3 * found.upper


def test_a_cap_that_never_binds_costs_nothing_and_has_no_lower_bound() -> None:
    capped = Stage(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, max_batch=10_000, **CAPPED)
    (found,) = account(Ledger(stages=(capped,), relation=Relation.ADD_OR_REMOVE_ONE), delta=DELTA)
    assert found.epsilon_upper == pytest.approx(interval(make((0.01, 1.0, 1000)))[1], rel=5e-3)
    assert found.epsilon_lower is None


def test_the_discrete_pairs_are_laws_and_order_the_truth() -> None:
    component = Component(Mechanism.GAUSSIAN, 0.8, (0.98, 0.02), (1.0,))
    cut = cells(Step(((1.0, component),)), 2**-8, 0.01, 8.0)
    p = np.exp(cut.above_log_p)
    losses = cut.origin + cut.h * cut.above_index
    assert p.sum() + math.exp(cut.log_p_at_infinity) == pytest.approx(1, abs=1e-14)
    assert (p * np.exp(-losses)).sum() + math.exp(cut.log_q_at_infinity) == pytest.approx(1, abs=1e-13)
    assert np.exp(cut.below_log_p).sum() == pytest.approx(1, abs=1e-14)
    for epsilon in (-0.01, 0.0, 0.05, 0.5, 2.0):
        with mpmath.workdps(40):
            truth = float(single_step_delta(0.02, 0.8, epsilon, 1))
        above = float((p * np.maximum(-np.expm1(epsilon - losses), 0)).sum()) + math.exp(cut.log_p_at_infinity)
        gain = np.exp(cut.below_log_p) - math.exp(epsilon) * np.exp(cut.below_log_q)
        below = float(np.maximum(gain, 0).sum())
        assert below <= truth * (1 + 1e-12) + 1e-15
        assert truth <= above * (1 + 1e-12) + 1e-15


def test_round_off_of_the_fft_stays_within_its_bound() -> None:
    from scipy.fft import rfft

    rng = np.random.default_rng(0)
    for size in (256, 5 * 2**9, 2**14):
        x = rng.exponential(size=size) ** 4
        x /= x.sum()
        exact = rfft(x.astype(np.longdouble))
        worst = float(np.abs(np.fft.rfft(x) - exact).max())
        assert worst <= FFT_CONSTANT * math.log2(size) * UNIT


def test_composition_error_covers_the_difference_to_direct_convolution() -> None:
    rng = np.random.default_rng(1)
    index = np.arange(6)
    mass = rng.dirichlet(np.ones(6))
    law = Law(index, np.log(mass), np.zeros(6), 0.0)
    found = compose([(law, 7)], theta=0.3, h=0.1, first=-4, size=256, slopes=(1.0, 1.0))
    direct = np.array([1.0], dtype=np.longdouble)
    for _ in range(7):
        direct = np.convolve(direct, mass.astype(np.longdouble))
    untilted = found.mass * np.exp(found.log_norm - 0.3 * 0.1 * (found.first + np.arange(256)))
    error = np.abs(untilted[4 : 4 + len(direct)] - direct.astype(float)) * np.exp(
        0.3 * 0.1 * np.arange(len(direct)) - found.log_norm
    )
    assert error.max() <= found.sup + found.total + found.relative * found.mass.max()


def test_distribution_function_is_as_accurate_as_charged() -> None:
    from scipy.special import ndtr

    z = np.concatenate((np.linspace(-14, 8, 1200), np.linspace(-36, -14, 200)))
    with mpmath.workdps(30):
        exact = [mpmath.ncdf(mpmath.mpf(v)) for v in z]
        error = np.array([abs(float(mpmath.mpf(float(a)) / e - 1)) for a, e in zip(ndtr(z), exact)])
    assert np.all(error <= (8 + 3 * np.minimum(z, 0) ** 2) * UNIT)


def one_direction(ledger: Ledger, direction: int, delta: float) -> tuple[float, float]:
    from dpaudit.accounting.prv.refine import refine
    from dpaudit.accounting.prv.saddle import aim_at_delta
    from dpaudit.accounting.prv.sides import with_gaussian

    runs, log_delta = with_gaussian(charges(ledger)), math.log(delta)
    return refine((runs, runs), aim_at_delta(runs, direction, log_delta), (log_delta, log_delta), 1e-3, 1e-6, 0.0)


@pytest.mark.parametrize(("q", "sigma", "delta"), [(0.1, 1.0, 1e-6), (0.5, 2.0, 1e-12), (0.02, 0.6, 1e-3)])
def test_the_adding_direction_alone_contains_the_forty_digit_value(q: float, sigma: float, delta: float) -> None:
    low, high = 0.0, -math.log1p(-q)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if single_step_delta(q, sigma, middle, -1) > delta else (low, middle)
    lower, upper = one_direction(make((q, sigma, 1)), -1, delta)
    assert lower * (1 - 1e-12) <= high <= upper * (1 + 1e-12) + 1e-15


@pytest.mark.parametrize(
    ("ledger", "adding", "removing"),
    [(make((0.01, 0.8, 500)), 1.277222, 2.399439), (make((0.2, 3.0, 50)), 1.740914, 2.060768)],
)
def test_both_directions_agree_with_another_implementation(ledger: Ledger, adding: float, removing: float) -> None:
    for direction, peer in ((1, removing), (-1, adding)):
        lower, upper = one_direction(ledger, direction, DELTA)
        assert lower <= peer * 1.0002 and peer * 0.9998 <= upper
        assert upper - lower <= 1e-3 * upper


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_finer_cells_never_cross(cut: int) -> None:
    from dpaudit.accounting.prv.pair import dominated, dominating
    from dpaudit.accounting.prv.readings import epsilon_above, epsilon_below
    from dpaudit.accounting.prv.saddle import aim_at_delta
    from dpaudit.accounting.prv.sides import with_gaussian

    log_delta = math.log(DELTA)

    runs = with_gaussian(charges(make((0.01, 0.8, 500), (1.0, 30.0, 10))))
    aim = aim_at_delta(runs, 1, log_delta)
    coarse, fine = 0.02 / 2**cut, 0.01 / 2**cut
    above = [epsilon_above(dominating(runs, aim, h, 0.01), log_delta) for h in (coarse, fine)]
    below = [epsilon_below(dominated(runs, aim, h, 0.01), log_delta) for h in (coarse, fine)]
    assert above[1] <= above[0] + 1e-9
    assert max(below) <= min(above)


def test_large_groups_under_sampling_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedStage, match="stage 1 is Poisson-sampled and the group has 500 records"):
        charges(make((0.1, 1.0, 10)), group_size=500)
