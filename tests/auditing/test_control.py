"""Power counts at the lower end of its interval: a dead attack never shows it, a deserved one can."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import bdtrc
from scipy.stats import binom

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import AuditPlan, Control, Scores, audit, design
from dpaudit.auditing.control import control_power
from dpaudit.auditing.gaussian import gdp_mu
from dpaudit.auditing.one_run import snj_critical_count
from dpaudit.auditing.power import control_guesses, power_from_control
from dpaudit.privacy.verdict import ENOUGH_POWER

DESIGNS = [(24, 1.0), (40, 0.5), (100, 1.0), (200, 1.0), (400, 3.0), (1000, 0.5), (1000, 1.0), (1000, 3.0), (5000, 3.0)]


def plan_for(m: int, claim: float, **more: object) -> AuditPlan:
    return design(m, claim, 1e-5, relation="add_or_remove_one", unit="record", **more)  # type: ignore[arg-type]


def lower_end(plan: AuditPlan, made: int, right: int) -> float:
    g, level = plan.guesses_in + plan.guesses_out, plan.alpha_split.primary
    _, (low, _) = power_from_control(
        plan.m, g, plan.claimed_epsilon, plan.delta, level, control_guesses=made, control_correct=right
    )
    return low


def scored(n: int, mu: float, seed: int, name: str = "c") -> Control:
    rng = np.random.default_rng(seed)
    member = rng.integers(0, 2, n)
    return Control(scores=Scores([f"{name}{i}" for i in range(n)], rng.normal(size=n) + mu * member, member))


@pytest.mark.parametrize("m, claim", DESIGNS)
@pytest.mark.parametrize("size", [0.02, 0.1, 0.5, 1.0, 3.0])
def test_a_dead_attack_reaches_enough_power_in_one_control_of_twenty_at_most(m: int, claim: float, size: float) -> None:
    """Exactly: the right guesses of a dead attack are Bin(guesses, 1/2)."""
    plan = plan_for(m, claim)
    made = sum(control_guesses(max(2, round(size * m)), m, plan.guesses_in, plan.guesses_out))
    if made == 0:
        return
    reaching = [right for right in range(made + 1) if lower_end(plan, made, right) >= ENOUGH_POWER]
    assert sum(binom.pmf(right, made, 0.5) for right in reaching) <= 0.05


@pytest.mark.parametrize("n", [22, 40, 100, 400])
def test_a_dead_attack_in_simulation(n: int) -> None:
    plan = plan_for(1000, 3.0)
    reached = sum(control_power(plan, 3.0, scored(n, 0.0, seed)).lower >= ENOUGH_POWER for seed in range(60))
    assert reached <= 3


def test_a_dead_attack_on_many_runs() -> None:
    plan = plan_for(2000, 1.0, kind="many_runs")
    reached = sum(control_power(plan, 1.0, scored(200, 0.0, seed)).lower >= ENOUGH_POWER for seed in range(20))
    assert reached == 0


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.82, 0.9, 0.97, 0.995])
@pytest.mark.parametrize("made", [30, 92, 400])
@pytest.mark.parametrize("m, claim", [(1000, 1.0), (1000, 3.0)])
def test_the_lower_end_covers_the_true_power(accuracy: float, made: int, m: int, claim: float) -> None:
    plan = plan_for(m, claim)
    g = plan.guesses_in + plan.guesses_out
    critical = snj_critical_count(m, g, claim, plan.delta, plan.alpha_split.primary)
    assert critical is not None
    truth = float(bdtrc(critical - 1, g, accuracy))
    missed = sum(
        binom.pmf(right, made, accuracy) for right in range(made + 1) if lower_end(plan, made, right) > truth + 1e-12
    )
    assert missed <= 0.025


@pytest.mark.parametrize("m, claim", [(200, 1.0), (1000, 1.0), (1000, 2.0), (1000, 3.0)])
def test_the_plan_says_how_many_control_canaries_it_takes(m: int, claim: float) -> None:
    plan = plan_for(m, claim)
    needed = plan.control_canaries
    assert needed is not None

    def perfect(n: int) -> float:
        made = sum(control_guesses(n, m, plan.guesses_in, plan.guesses_out))
        return lower_end(plan, made, made)

    assert perfect(needed) >= ENOUGH_POWER > perfect(needed - 1)
    assert AuditPlan.from_dict(plan.to_dict()) == plan


def test_the_plan_for_many_runs_says_it_too() -> None:
    plan = plan_for(2000, 3.0, kind="many_runs")
    needed = plan.control_canaries
    assert needed is not None and needed < 2000
    assert control_power(plan, 3.0, scored(2 * needed, 30.0, 1)).lower >= ENOUGH_POWER
    assert control_power(plan, 3.0, scored(needed // 2, 30.0, 1)).lower < ENOUGH_POWER


def test_an_undecidable_plan_needs_no_control() -> None:
    assert plan_for(24, 3.0).control_canaries is None


def test_a_plan_of_an_earlier_version_keeps_its_bytes() -> None:
    value = plan_for(1000, 3.0).to_dict()
    del value["control_canaries"]
    assert AuditPlan.from_dict(value).to_dict() == value


def run_scores(claim: float, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    member = rng.integers(0, 2, 1000)
    return [f"a{i}" for i in range(1000)], rng.normal(size=1000) + gdp_mu(claim, 1e-5) * member, member


def test_a_tiny_perfect_control_supports_nothing() -> None:
    """Two right guesses of two: the estimate is 1 and its interval says that nothing is known."""
    ids, scores, member = run_scores(3.0)
    coins = np.array([1, 0] * 11)
    tiny = Control(scores=Scores([f"c{i}" for i in range(22)], coins + np.linspace(0, 0.1, 22), coins))
    result = audit(Scores(ids, scores, member), plan_for(1000, 3.0), control=tiny, secondary=False)
    assert result.verdict == "inconclusive" and result.power == 1.0 and result.power_lower == 0.0
    (finding,) = [f for f in result.findings if f.name == "positive_control"]
    assert "at least 0.8" in finding.text and str(plan_for(1000, 3.0).control_canaries) in finding.text


def test_enough_perfect_controls_support_a_verdict_and_fewer_do_not() -> None:
    ids, scores, member = run_scores(3.0)
    plan = plan_for(1000, 3.0)
    assert plan.control_canaries is not None
    runs = -(-plan.control_canaries // 1000) + 1
    parts = [scored(1000, 40.0, seed, f"r{seed}-") for seed in range(runs)]

    def pooled(count: int) -> Control:
        return Control(
            scores=Scores(
                [i for part in parts[:count] for i in part.scores.ids],
                np.concatenate([part.scores.values for part in parts[:count]]),
                np.concatenate([part.scores.members for part in parts[:count]]),
            ),
            runs=[str(n) for n in range(count) for _ in range(1000)],
            fault="no noise",
        )

    full = audit(Scores(ids, scores, member), plan, control=pooled(runs), secondary=False)
    assert full.verdict == "consistent" and full.power_lower is not None and full.power_lower >= ENOUGH_POWER
    few = audit(Scores(ids, scores, member), plan, control=pooled(runs // 2), secondary=False)
    assert few.verdict == "inconclusive" and few.power == 1.0


def test_a_control_with_unfair_coins_is_refused() -> None:
    fair = scored(400, 12.0, 1)
    skewed = Control(scores=Scores(fair.scores.ids, fair.scores.values, np.array([1] * 300 + [0] * 100)))
    with pytest.raises(InvalidEvidence, match="300 of 400 control canaries"):
        control_power(plan_for(1000, 3.0), 3.0, skewed)
    with pytest.raises(InvalidEvidence, match="more than once"):
        Scores(["x"] * 400, fair.scores.values, fair.scores.members)
    with pytest.raises(InvalidValue, match="control runs are named"):
        dataclasses.replace(fair, runs=["a"])


@pytest.mark.parametrize("m, claim", [(100, 0.1), (400, 1.0), (1000, 3.0), (5000, 0.5), (5000, 9.0)])
def test_a_dead_observer_is_never_consistent_whatever_its_control_shows(m: int, claim: float) -> None:
    plan = plan_for(m, claim)
    needed = plan.control_canaries or 1000
    perfect = scored(2 * needed, 40.0, 1)
    for seed in range(8):
        dead = scored(m, 0.0, seed, "a")
        result = audit(dead.scores, plan, control=perfect, secondary=False)
        assert result.verdict != "consistent"
