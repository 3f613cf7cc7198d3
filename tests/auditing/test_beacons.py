"""Beacons decide one thing: whether silence of the attack may count. They convict nothing and enter no bound."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import AuditPlan, Control, Scores, audit, design
from dpaudit.auditing.beacons import BeaconPlan, beacon_finding
from tests.auditing.test_liveness import simulate

PLANNED = BeaconPlan(count=40, copies=16, group_size=16, group_epsilon=107.0, commitment="a" * 64)


def beacons(shift: float, seed: int = 1, count: int = 40) -> Scores:
    rng = np.random.default_rng(seed)
    coins = rng.permutation(np.arange(count) % 2)
    return Scores([f"b{i}" for i in range(count)], rng.normal(size=count) + shift * coins, coins)


def plan_with(beacon: BeaconPlan | None, m: int = 1000) -> AuditPlan:
    return dataclasses.replace(design(m, 2.0, 1e-5, relation="add_or_remove_one", unit="record"), beacons=beacon)


def names(result: object) -> set[str]:
    return {finding.name for finding in result.findings}  # type: ignore[attr-defined]


def test_beacons_told_apart_are_alive_and_say_what_is_promised_to_their_groups() -> None:
    found = beacon_finding(PLANNED, beacons(12.0))
    assert found.name == "beacons" and found.status == "note" and found.p_value is not None
    assert found.p_value <= 1e-6 and "alive" in found.text
    assert "groups of 16" in found.text and "epsilon <= 107" in found.text and "not tested" in found.text
    assert found.power is None  # a sign of life is no power


def test_shuffled_constant_missing_and_reversed_beacons_are_never_alive() -> None:
    alive, rng = beacons(12.0), np.random.default_rng(0)
    shuffled = [Scores(alive.ids, rng.permutation(alive.values), alive.members) for _ in range(3000)]
    reversed_ = Scores(alive.ids, -alive.values, alive.members)
    constant = Scores(alive.ids, np.zeros(40), alive.members)
    one_class = Scores(alive.ids, alive.values, np.ones(40))
    for scores in (*shuffled, reversed_, constant, one_class, beacons(12.0, count=41), None):
        found = beacon_finding(PLANNED, scores)
        assert found.name == "dead_beacons" and found.status == "inconclusive"


def test_the_level_is_stricter_than_an_exact_permutation_test() -> None:
    # Out here the rank sum's normal approximation is above the exact tail, so that "alive" is no cheaper than stated.
    from math import comb

    for inserted in range(11, 30):
        coins = np.arange(40) < inserted
        p = beacon_finding(PLANNED, Scores([str(i) for i in range(40)], coins + np.arange(40) / 100, coins)).p_value
        assert p is not None and 1 / comb(40, inserted) < p <= 1e-6


def test_a_quiet_run_with_live_beacons_and_a_strong_control_is_consistent_and_a_dead_attack_never() -> None:
    ids, quiet, member = simulate(1000, 0.0)
    _, strong, coins = simulate(1000, 9.0, 3)
    runs = [str(run) for run in range(20) for _ in ids]
    everyone = [f"{run}-{i}" for run in range(20) for i in ids]
    many = Control(scores=Scores(everyone, np.tile(strong, 20), np.tile(coins, 20)), fault="no noise", runs=runs)
    scores = Scores(ids, quiet, member)

    def judged(plan: AuditPlan, theirs: Scores | None) -> tuple[str, set[str]]:
        result = audit(scores, plan, coins="verified", control=many, beacons=theirs, secondary=False)
        return str(result.verdict), names(result)

    assert judged(plan_with(None), None) == ("inconclusive", {"null_scores", "positive_control"})
    assert judged(plan_with(PLANNED), beacons(12.0)) == ("consistent", {"beacons", "positive_control"})
    rng = np.random.default_rng(2)
    for _ in range(3):
        alive = beacons(12.0)
        dead = Scores(alive.ids, rng.permutation(alive.values), alive.members)
        assert judged(plan_with(PLANNED), dead)[0] == "inconclusive"
    assert judged(plan_with(PLANNED), None) == ("inconclusive", {"dead_beacons", "positive_control"})


def test_beacons_change_no_bound_and_cannot_hide_reversed_scores() -> None:
    ids, scores, member = simulate(1000, 1.5)
    plain = audit(Scores(ids, scores, member), plan_with(None), secondary=False)
    beside = audit(Scores(ids, scores, member), plan_with(PLANNED), beacons=beacons(12.0), secondary=False)
    assert (plain.epsilon_lower, plain.p_value, plain.auc) == (beside.epsilon_lower, beside.p_value, beside.auc)
    backwards = audit(Scores(ids, -scores, member), plan_with(PLANNED), beacons=beacons(12.0), secondary=False)
    assert backwards.verdict == "inconclusive" and {"beacons", "reversed_scores"} <= names(backwards)


def test_beacons_that_no_plan_froze_are_refused() -> None:
    ids, scores, member = simulate(100, 1.0)
    with pytest.raises(InvalidValue, match="the plan froze none"):
        audit(Scores(ids, scores, member), plan_with(None, 100), beacons=beacons(12.0), secondary=False)


def test_a_plan_keeps_its_bytes_without_beacons_and_reads_them_back() -> None:
    assert "beacons" not in plan_with(None).to_dict()
    plan = plan_with(PLANNED)
    assert AuditPlan.from_dict(plan.to_dict()) == plan and plan.to_dict()["beacons"]["copies"] == 16
    with pytest.raises(InvalidEvidence, match="the beacons of an audit plan"):
        AuditPlan.from_dict({**plan.to_dict(), "beacons": {"count": 40}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": 39}, "beacons=39"),
        ({"copies": 1}, "beacon_copies=1"),
        ({"level": 0.05}, "at most 1e-06"),
        ({"commitment": "a"}, "64 hexadecimal digits"),
    ],
)
def test_a_plan_of_beacons_that_could_show_nothing_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        dataclasses.replace(PLANNED, **change)  # type: ignore[arg-type]
