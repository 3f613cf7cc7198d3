"""The one-run bounds against slow oracles written from the papers, and the laws they must obey."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom

import dpaudit.auditing
from dpaudit import InvalidValue
from dpaudit.auditing import (
    Scores,
    audit,
    candidate_epsilon_lower,
    design,
    f_dp_epsilon_lower,
    snj_epsilon_lower,
    xiang_mu_lower,
)
from dpaudit.auditing.decidable import errors_allowed
from dpaudit.auditing.design import choose_guesses, planned_again
from dpaudit.auditing.extraction import candidate_p_value
from dpaudit.auditing.f_dp import f_dp_mu_lower, f_dp_p_value, f_dp_rejects, gaussian_trade_off, profile_trade_off
from dpaudit.auditing.gaussian import gdp_accuracy_at_top, gdp_delta, gdp_epsilon, gdp_mu
from dpaudit.auditing.guess import count_correct, guess
from dpaudit.auditing.one_run import snj_ceiling, snj_critical_count, snj_p_value
from dpaudit.auditing.plan import AlphaSplit
from dpaudit.auditing.power import expected_epsilon_lower, power_from_control


def slow_p_value(m, r, v, epsilon, delta):
    """Theorem 5.2 of arXiv:2305.08846, term by term."""
    q = 1 / (1 + math.exp(-epsilon))
    beta = binom.sf(v - 1, r, q)
    worst = max(
        ((binom.cdf(v - 1, r, q) - binom.cdf(v - i - 1, r, q)) / i for i in range(1, v + 1)),
        default=0.0,
    )
    return min(1.0, beta + 2 * m * delta * worst)


@pytest.mark.parametrize("r", [1, 7, 60, 300])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_p_value_is_the_papers(r, epsilon, delta):
    for v in sorted({0, 1, r // 2, (9 * r) // 10, r}):
        if v:
            want = slow_p_value(1000, r, v, epsilon, delta)
            assert snj_p_value(1000, r, v, epsilon, delta) == pytest.approx(want, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("v", [10_500, 14_700, 17_600, 19_000])
def test_window_of_the_delta_term_is_wide_enough(v):
    """Many guesses, the observed count below, at and far above the mean: the whole maximum, without a window."""
    r, epsilon, delta = 20_000, 2.0, 1e-5
    q = 1 / (1 + math.exp(-epsilon))
    mass = binom.pmf(np.arange(v - 1, -1, -1), r, q)
    worst = float(np.max(np.cumsum(mass) / np.arange(1, v + 1)))
    want = binom.sf(v - 1, r, q) + 2 * r * delta * worst
    assert snj_p_value(r, r, v, epsilon, delta) == pytest.approx(min(1.0, want), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(1, 400),
    extra=st.integers(0, 2000),
    share=st.floats(0.5, 1.0),
    delta=st.sampled_from([0.0, 1e-6, 1e-4]),
)
def test_laws(r, extra, share, delta):
    m, v = r + extra, round(r * share)
    bound = snj_epsilon_lower(m, r, v, delta)
    assert 0 <= bound <= snj_ceiling(m, r, delta)
    assert bound >= snj_epsilon_lower(m, r, v, delta, 0.01) - 1e-8
    assert bound >= snj_epsilon_lower(m, r, v, 10 * delta) - 1e-8
    assert bound >= snj_epsilon_lower(2 * m, r, v, delta) - 1e-8
    if v:
        assert bound >= snj_epsilon_lower(m, r, v - 1, delta) - 1e-8
    if bound > 0:
        assert snj_p_value(m, r, v, bound, delta) <= 0.05 + 1e-9
        critical = snj_critical_count(m, r, bound * 0.999, delta, 0.05)
        assert critical is not None and critical <= v


def test_critical_count_is_the_smallest():
    critical = snj_critical_count(1000, 300, 1.0, 1e-5, 0.04)
    assert (
        snj_epsilon_lower(1000, 300, critical, 1e-5, 0.04)
        > 1.0
        >= snj_epsilon_lower(1000, 300, critical - 1, 1e-5, 0.04)
    )
    assert snj_critical_count(1000, 20, 4.0, 1e-5, 0.04) is None


def slow_rejects(m, r, c, alpha, g, alphabet=2):
    """The recursion of arXiv:2410.22235 run to the end, without stopping early."""
    h, mass = [0.0] * (c + 1), [0.0] * (c + 1)
    h[c], mass[c] = alpha * (r - c) / m, alpha * c / m
    for i in range(c - 1, -1, -1):
        h[i] = max(h[i + 1], (alphabet - 1) * g(min(mass[i + 1], 1.0)))
        mass[i] = mass[i + 1] + i / (r - i) * (h[i] - h[i + 1])
    return mass[0] + h[0] > r / m


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("m", "r", "c"), [(100, 100, 60), (100, 100, 100), (500, 80, 70), (300, 300, 150), (10, 3, 0)])
def test_f_dp_early_stop_changes_nothing(mu, m, r, c):
    slow = slow_rejects(m, r, c, 0.05, lambda x: float(ndtr(ndtri(x) - mu)))
    assert f_dp_rejects(m, r, c, gaussian_trade_off(mu), 0.05) == slow


def test_f_dp_p_value_agrees_with_the_bound():
    mu = f_dp_mu_lower(1000, 200, 180, 0.05)
    assert f_dp_p_value(1000, 200, 180, gaussian_trade_off(mu * 0.999)) <= 0.0505
    assert f_dp_p_value(1000, 200, 180, gaussian_trade_off(mu * 1.001)) >= 0.0495
    assert f_dp_p_value(1000, 200, 100, gaussian_trade_off(1.0)) == 1.0
    assert f_dp_epsilon_lower(1000, 0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("m", "v", "delta", "want"),
    [
        (100, 100, 1e-5, 3.8723),
        (100, 60, 1e-5, 0.0),
        (1000, 700, 1e-5, 0.8424),
        (1000, 550, 1e-5, 0.0499),
        (1000, 500, 1e-5, 0.0),
    ],
)
def test_xiang_agrees_with_a_peer_that_bisects_to_a_hundredth(m, v, delta, want):
    assert want - 1e-4 <= xiang_mu_lower(m, m, v) <= want + 0.01


def test_gaussian_reference_is_consistent():
    for mu in (0.1, 1.0, 4.0):
        assert gdp_mu(gdp_epsilon(mu, 1e-5), 1e-5) == pytest.approx(mu, rel=1e-8)
        assert gdp_delta(mu, gdp_epsilon(mu, 1e-5)) == pytest.approx(1e-5, rel=1e-6)
    rng = np.random.default_rng(0)
    member = rng.integers(0, 2, 400_000)
    scores = rng.normal(size=400_000) + 1.3 * member
    top = np.argsort(-scores)[:8000]
    assert gdp_accuracy_at_top(1.3, 0.02) == pytest.approx(member[top].mean(), abs=0.01)


@pytest.mark.parametrize(("m", "k", "epsilon"), [(200, 20, 2.0), (1000, 60, 4.0)])
def test_expected_bound_against_simulation(m, k, epsilon):
    rng, mu = np.random.default_rng(1), gdp_mu(epsilon, 1e-5)
    seen = []
    for _ in range(300):
        member = rng.integers(0, 2, m)
        order = np.argsort(-(rng.normal(size=m) + mu * member))
        right = member[order[:k]].sum() + (1 - member[order[-k:]]).sum()
        seen.append(snj_epsilon_lower(m, 2 * k, int(right), 1e-5))
    assert expected_epsilon_lower(m, 2 * k, mu, 1e-5) == pytest.approx(
        np.mean(seen), abs=4 * np.std(seen) / 300**0.5 + 0.02
    )


@pytest.mark.parametrize(("m", "claim"), [(300, 1.0), (1000, 3.0), (1000, 4.0), (3000, 2.0)])
def test_chosen_guesses_obey_the_rule(m, claim):
    k, decidable = choose_guesses(m, claim, 1e-5, 0.04)
    assert decidable and snj_ceiling(m, 2 * k, 1e-5, 0.04) > 1.1 * claim
    best = expected_epsilon_lower(m, 2 * k, gdp_mu(claim, 1e-5), 1e-5, 0.04)
    for other in np.unique(np.geomspace(1, m // 2, 25).astype(int)):
        if snj_ceiling(m, 2 * int(other), 1e-5, 0.04) > 1.1 * claim:
            rival = expected_epsilon_lower(m, 2 * int(other), gdp_mu(claim, 1e-5), 1e-5, 0.04)
            assert rival <= best * 1.02 + 0.01


@pytest.mark.parametrize("level", [0.04, 0.02])
def test_a_plan_allows_a_wrong_guess_where_some_number_of_guesses_does(level):
    split = AlphaSplit(primary=level, declared_mechanism=0.002, examiner=0.002)
    loose, strict = (
        design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record", alpha_split=split, errors=n)
        for n in (1, 0)
    )
    assert errors_allowed(strict) == 0 < errors_allowed(loose)
    one_wrong = [slow_p_value(1000, r, r - 1, 3.0, 1e-5) for r in (2 * loose.guesses_in, 2 * strict.guesses_in)]
    assert one_wrong[0] <= level < one_wrong[1]
    assert loose.expected_epsilon_lower > 0.97 * strict.expected_epsilon_lower
    assert loose.power_if_attack_were_optimal > 1.5 * strict.power_if_attack_were_optimal
    assert loose.control_canaries < strict.control_canaries / 3
    assert planned_again(loose) == loose and planned_again(strict) == strict  # each by the rule that it names


@pytest.mark.slow
def test_a_plan_that_allows_errors_convicts_correct_runs_no_more_often_than_its_level():
    """Randomised response at the claim is the worst correct run; 2,000 of them, guessed as a run is guessed."""
    rng, m, claim, level = np.random.default_rng(3), 1000, 3.0, 0.02
    split = AlphaSplit(primary=level, declared_mechanism=0.002, examiner=0.002)
    plan = design(m, claim, 1e-5, relation="add_or_remove_one", unit="record", alpha_split=split)
    assert errors_allowed(plan) == 1
    critical = snj_critical_count(m, 2 * plan.guesses_in, claim, 1e-5, level)
    ids, truth = [str(i) for i in range(m)], math.exp(claim) / (1 + math.exp(claim))
    alarms, above = 0, 0
    for _ in range(2000):
        coins = rng.random(m) < 0.5
        told = coins ^ (rng.random(m) >= truth)
        scores = np.where(told, 1.0, -1.0) * (1 + rng.random(m))
        made, right = count_correct(guess(ids, scores, plan), coins)
        alarms += right >= critical
        above += snj_epsilon_lower(m, made, right, 1e-5) > claim
    assert alarms / 2000 <= level + 2 * (level * (1 - level) / 2000) ** 0.5
    assert above / 2000 <= 0.05 + 2 * (0.05 * 0.95 / 2000) ** 0.5
    # A run without noise answers every guess rightly but a rare one, and is convicted though one is wrong.
    assert critical == 2 * plan.guesses_in - 1


def test_control_power_against_simulation():
    power, (low, high) = power_from_control(1000, 300, 2.0, 1e-5, 0.04, control_guesses=300, control_correct=280)
    critical = snj_critical_count(1000, 300, 2.0, 1e-5, 0.04)
    seen = np.mean(np.random.default_rng(0).binomial(300, 280 / 300, 20_000) >= critical)
    assert power == pytest.approx(seen, abs=0.02) and low <= power <= high


def test_candidate_guessing():
    assert candidate_epsilon_lower(1000, 1000, 700, 2, 0.0) == pytest.approx(
        snj_epsilon_lower(1000, 1000, 700, 0.0), abs=1e-7
    )
    pure, approximate = candidate_epsilon_lower(10, 10, 5, 2**20, 0.0), candidate_epsilon_lower(10, 10, 5, 2**20, 1e-6)
    assert pure == pytest.approx(12.611, abs=1e-3) and 0.9 * pure < approximate <= pure
    epsilon = 3.0
    q = math.exp(epsilon) / (math.exp(epsilon) + 7)
    assert candidate_p_value(50, 40, 8, epsilon) == pytest.approx(binom.sf(39, 50, q))


def test_candidate_bound_covers_randomised_response():
    """k-ary randomised response is exactly (ε, 0)-DP under replacement, and the tightest case."""
    rng, epsilon, k = np.random.default_rng(3), 2.0, 16
    q = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    above = sum(candidate_epsilon_lower(200, 200, int(v), k, 1e-6) > epsilon for v in rng.binomial(200, q, 400))
    assert above <= 0.05 * 400 + 2 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize(
    "arguments",
    [(10, 11, 5, 1e-5), (10, 5, 6, 1e-5), (0, 0, 0, 1e-5), (10, 5, 5, 1.0), (10, 5, -1, 1e-5), (10.0, 5, 5, 0)],
)
def test_bad_counts(arguments):
    with pytest.raises(InvalidValue):
        snj_epsilon_lower(*arguments)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(dpaudit.auditing.__path__)])
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(f"dpaudit.auditing.{name}"))
    assert failed == 0


def test_everything_public_has_a_docstring():
    for name in dir(dpaudit.auditing):
        thing = getattr(dpaudit.auditing, name)
        if not name.startswith("_") and name != "TradeOff" and callable(thing):
            assert thing.__doc__, name


def test_numpy_counts_are_whole_numbers():
    assert snj_epsilon_lower(np.int64(100), np.int32(20), np.int64(19), 1e-5) == snj_epsilon_lower(100, 20, 19, 1e-5)
    with pytest.raises(InvalidValue, match="correct=True"):
        snj_epsilon_lower(10, 5, True, 1e-5)


def test_profile_curve_is_a_lower_envelope_of_the_truth():
    deltas = np.geomspace(1e-6, 0.3, 40)
    curve = profile_trade_off([gdp_epsilon(1.0, d) for d in deltas], deltas)
    truth = gaussian_trade_off(1.0)
    for fpr in (0.0, 1e-3, 0.05, 0.3, 0.5, 0.9, 1.0):
        assert curve(fpr) <= (truth(fpr) if 0 < fpr < 1 else 1 - fpr) + 1e-9
    assert curve(0.2) == pytest.approx(truth(0.2), abs=5e-3)
    assert profile_trade_off([math.inf], [0.1])(0.2) == 0.0
    with pytest.raises(InvalidValue, match="profile"):
        profile_trade_off([1.0], [0.1, 0.2])


def test_order_of_canaries_does_not_matter():
    rng = np.random.default_rng(11)
    ids, member = [f"c{i}" for i in range(400)], rng.integers(0, 2, 400)
    scores = np.round(rng.normal(size=400) + member, 1)  # many ties
    plan = design(400, 2.0, 1e-5, relation="add_or_remove_one", unit="record")
    order = rng.permutation(400)
    first = audit(Scores(ids, scores, member), plan)
    second = audit(Scores([ids[i] for i in order], scores[order], member[order]), plan)
    assert first == second and first.design["ties"] > 300
