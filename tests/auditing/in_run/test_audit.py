"""An in-run audit: quiet on what was declared, loud on less noise, and never fooled by an observer that is dead."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit import InvalidEvidence
from dpaudit.auditing.energy import ReleaseEnergy
from dpaudit.auditing.in_run.audit import InRunResult, in_run_audit
from dpaudit.auditing.in_run.evidence import ControlRun, InRunEvidence
from dpaudit.auditing.in_run.plan import ControlDesign, InRunPlan, split_alpha
from dpaudit.auditing.in_run.visible import canary_rates, control_for, smallest_visible_canary_shortfall
from dpaudit.auditing.independent import EPSILONS, profile_counts, profile_test
from dpaudit.certificates.curve import declared_deltas
from tests.auditing.in_run.cases import DELTAS, LEDGER, STAGE, STEPS, M, plan_of, quiet_energy, simulated

CONTROL = ControlDesign(noise_factor=0.5, canaries=2_000, repeats=20)


def evidence_of(scores, coins, control: tuple[ControlRun, ...] = ()) -> InRunEvidence:  # type: ignore[no-untyped-def]
    m = len(scores)
    return InRunEvidence(
        coordinates=np.arange(m) * 7, scores=scores, coins=coins, energy=quiet_energy(STEPS), control=control
    )


def audited(scores, coins, plan: InRunPlan, control: tuple[ControlRun, ...] = ()) -> InRunResult:  # type: ignore[no-untyped-def]
    return in_run_audit(plan, evidence_of(scores, coins, control), stages=[STAGE], deltas=DELTAS, accounted_upper=3.0)


def statuses(result: InRunResult) -> dict[str, str]:
    return {finding.name: finding.status for finding in result.findings}


def test_the_points_of_the_profile_are_the_accountants() -> None:
    assert np.allclose(declared_deltas(LEDGER, EPSILONS), DELTAS, rtol=1e-4)


def test_a_correct_run_is_alive_and_nothing_stands_against_it() -> None:
    result = audited(*simulated(np.random.default_rng(0), M), plan_of())
    assert result.alive and result.epsilon_lower is not None and 0.8 < result.epsilon_lower < 3
    assert result.conditional is not None and result.conditional.kind == "conditional"
    assert result.conditional.epsilon_lower is not None and 0.8 < result.conditional.epsilon_lower < 3
    assert set(statuses(result).values()) == {"note"}
    assert result.visible_by_canaries is not None and 0.05 < result.visible_by_canaries < 0.2


def test_less_noise_is_convicted_by_the_profile() -> None:
    result = audited(*simulated(np.random.default_rng(1), M, noise_factor=0.8), plan_of())
    assert statuses(result)["in_run_profile"] == "violated"


def test_shuffled_scores_are_dead_and_support_nothing() -> None:
    rng = np.random.default_rng(2)
    scores, coins = simulated(rng, M)
    control = _control(rng)
    result = audited(rng.permutation(scores), coins, plan_of(control=CONTROL), control)
    assert not result.alive and result.power_lower is None
    assert statuses(result)["in_run_null_scores"] == "inconclusive"


def test_a_control_lends_power_where_it_is_convicted_every_time() -> None:
    rng = np.random.default_rng(3)
    scores, coins = simulated(rng, M)
    control = _control(rng)
    result = audited(scores, coins, plan_of(control=CONTROL), control)
    assert result.control is not None and result.control.convicted == 20
    assert result.power_lower == pytest.approx(0.8316, abs=1e-4)
    with pytest.raises(InvalidEvidence, match="announced 20 controls"):
        audited(scores, coins, plan_of(control=CONTROL), control[:10])


def loud_energy(steps: int) -> ReleaseEnergy:
    """Releases to which the records add as much energy as the noise has."""
    quiet = quiet_energy(steps)
    return dataclasses.replace(quiet, step_squares=2 * quiet.step_squares, block_squares=2 * quiet.block_squares)


def test_records_that_hide_the_controls_fault_leave_no_power() -> None:
    """The control has no records. Where they move canaries and releases, its power is not that of the run."""
    rng, design = np.random.default_rng(6), ControlDesign(noise_factor=0.8, canaries=M, repeats=20)
    scores, coins = simulated(rng, M)
    moved = scores + 0.5 * rng.standard_normal(M)
    faulty = simulated(rng, M, noise_factor=0.8)
    counts = profile_counts(*faulty, DELTAS)
    control = (ControlRun(counts=counts, guesses=0, correct=0, sha256="0" * 64),) * 20
    plan = plan_of(control=design)

    def result_of(values: NDArray[np.float64], energy: ReleaseEnergy) -> InRunResult:
        evidence = dataclasses.replace(evidence_of(values, coins, control), energy=energy)
        return in_run_audit(plan, evidence, stages=[STAGE], deltas=DELTAS, accounted_upper=3.0)

    hidden = result_of(moved, loud_energy(STEPS))
    # Such a run with the control's fault is indeed not seen by the canaries.
    unseen = profile_test(faulty[0] + 0.5 * rng.standard_normal(M), faulty[1], DELTAS)
    assert unseen.p_value > plan.alpha_split.profile
    assert hidden.alive and hidden.control is not None and hidden.control.convicted == 20
    assert hidden.power_lower is None and statuses(hidden)["in_run_hidden"] == "inconclusive"
    for plain in (result_of(scores, loud_energy(STEPS)), result_of(moved, quiet_energy(STEPS))):
        assert plain.power_lower == pytest.approx(0.8316, abs=1e-4) and "in_run_hidden" not in statuses(plain)


def test_what_records_hid_is_measured_in_the_run() -> None:
    rng = np.random.default_rng(7)
    scores, coins = simulated(rng, M)
    level = split_alpha(0.05)[1].profile

    def visible(values: NDArray[np.float64]) -> float:
        return smallest_visible_canary_shortfall(M, [STAGE], DELTAS, EPSILONS, level, seen_in=(values, coins))

    alone = smallest_visible_canary_shortfall(M, [STAGE], DELTAS, EPSILONS, level)
    assert alone <= visible(scores) < 1.4 * alone
    assert visible(scores + 3.0) == pytest.approx(visible(scores), abs=0.005)  # a movement that all share hides nothing
    assert visible(scores) < visible(scores + 0.3 * rng.standard_normal(M)) < visible(rng.permutation(scores))


def _control(rng: np.random.Generator) -> tuple[ControlRun, ...]:
    runs = (simulated(rng, CONTROL.canaries, noise_factor=CONTROL.noise_factor) for _ in range(CONTROL.repeats))
    return tuple(
        ControlRun(counts=profile_counts(s, c, DELTAS), guesses=0, correct=0, sha256="0" * 64) for s, c in runs
    )


def test_rates_are_those_of_simulated_canaries() -> None:
    scores, coins = simulated(np.random.default_rng(4), 40_000, noise_factor=0.9)
    cuts, inside, outside = canary_rates([STAGE], 0.9)
    for cut in (-1.0, 0.0, 1.0):
        at = int(np.argmin(np.abs(cuts - cut)))
        for rate, kind in ((inside, coins), (outside, ~coins)):
            assert float((scores[kind] > cuts[at]).mean()) == pytest.approx(rate[at], abs=4 * (0.25 / 20_000) ** 0.5)


def test_more_canaries_see_more_and_none_see_nothing() -> None:
    seen = [smallest_visible_canary_shortfall(m, [STAGE], DELTAS, EPSILONS, 0.004) for m in (0, 1_000, 10_000, 100_000)]
    assert seen[0] == 1.0 and seen[1] > seen[2] > seen[3] > 0.03
    assert control_for(100, [STAGE], DELTAS, EPSILONS, 0.004) is None
    chosen = control_for(100_000, [STAGE], DELTAS, EPSILONS, 0.004)
    assert chosen is not None and chosen.noise_factor == 0.8 and chosen.canaries < 100_000


def test_plan_and_evidence_come_back_from_json() -> None:
    rng = np.random.default_rng(5)
    scores, coins = simulated(rng, 2_000)
    plan = plan_of(2_000, control=dataclasses.replace(CONTROL, canaries=2_000))
    assert InRunPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    evidence = evidence_of(scores, coins, _control(rng))
    again = InRunEvidence.from_dict(json.loads(json.dumps(evidence.to_dict())), coins)
    assert (again.scores == evidence.scores).all() and (again.coordinates == evidence.coordinates).all()
    assert again.control == evidence.control and again.manifest(9) == evidence.manifest(9)
    with pytest.raises(InvalidEvidence, match="unknown or missing keys"):
        InRunPlan.from_dict({**plan.to_dict(), "more": 1})


def test_an_observer_that_missed_most_steps_is_not_alive() -> None:
    rng = np.random.default_rng(6)
    coins = rng.random(M) < 0.5
    weak = rng.standard_normal(M) + 0.15 * coins
    result = audited(weak, coins, plan_of())
    assert result.rank_sum_p is not None and result.rank_sum_p < 1e-6
    assert not result.alive and statuses(result)["in_run_weak_scores"] == "inconclusive"


def test_recorded_releases_are_compared_with_counted_steps() -> None:
    scores, coins = simulated(np.random.default_rng(7), 2_000)
    for steps, status in ((STEPS, None), (STEPS - 5, "note"), (60, "inconclusive"), (STEPS + 1, "accounting_mismatch")):
        evidence = dataclasses.replace(evidence_of(scores, coins), energy=quiet_energy(steps))
        result = in_run_audit(plan_of(2_000), evidence, stages=[STAGE], deltas=DELTAS)
        assert statuses(result).get("in_run_steps") == status and result.steps == steps
