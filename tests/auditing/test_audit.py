"""The audit end to end, on simulated scores."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import AuditPlan, Control, Finding, Scores, audit, design, guess, pair_scores, snj_epsilon_lower
from dpaudit.auditing.f_dp import gaussian_trade_off
from dpaudit.auditing.gaussian import gdp_mu
from dpaudit.auditing.guess import count_correct
from dpaudit.auditing.many_runs import split_counts


def simulate(m, mu, seed=0):
    rng = np.random.default_rng(seed)
    member = rng.integers(0, 2, m)
    return [f"canary-{i}" for i in range(m)], rng.normal(size=m) + mu * member, member


def plan_for(m=1000, claim=3.0, **more):
    return design(m, claim, 1e-5, relation="add_or_remove_one", unit="record", **more)


def test_default_design_can_decide_claim_three():
    plan = plan_for()
    assert plan.decidable and plan.ceiling_at_verdict > 3.3
    assert plan.ceiling >= plan.ceiling_at_verdict
    assert AuditPlan.from_dict(plan.to_dict()) == plan


def test_undecidable_claim_names_the_m():
    plan = plan_for(m=100, claim=4.0)
    assert not plan.decidable
    needed = plan.m_needed
    assert needed is not None and plan_for(m=needed, claim=4.0).decidable
    assert not plan_for(m=int(needed * 0.97), claim=4.0).decidable
    assert plan_for(m=1000, claim=9.0).m_needed is None


def test_plan_refuses_unknown_keys():
    value = plan_for().to_dict()
    with pytest.raises(InvalidEvidence, match="surprise"):
        AuditPlan.from_dict({**value, "surprise": 1})
    with pytest.raises(InvalidEvidence, match="schema"):
        AuditPlan.from_dict({**value, "schema": "dpaudit.audit_plan/9"})


def test_violated_by_a_leak():
    ids, scores, member = simulate(1000, 12.0)
    result = audit(Scores(ids, scores, member), plan_for())
    assert result.verdict == "violated" and result.exit_code == 1
    assert result.epsilon_lower_at_verdict > 3.0
    assert {f.claim for f in result.findings if f.status == "violated"} == {"(epsilon, delta)"}


def test_violating_only_the_ledger():
    ids, scores, member = simulate(1000, 12.0)
    result = audit(Scores(ids, scores, member), plan_for(), accounted_upper=1.0)
    assert {f.claim for f in result.findings if f.status == "violated"} == {"(epsilon, delta)"}
    bound = result.epsilon_lower_at_verdict
    loose = dataclasses.replace(plan_for(), claimed_epsilon=bound + 1)
    result = audit(Scores(ids, scores, member), loose, accounted_upper=bound - 0.5)
    assert result.verdict == "violated"
    assert {f.claim for f in result.findings if f.status == "violated"} == {"ledger"}


def test_without_control_at_most_inconclusive():
    ids, scores, member = simulate(1000, gdp_mu(3.0, 1e-5))
    result = audit(Scores(ids, scores, member), plan_for())
    assert result.power is None and result.verdict == "inconclusive" and result.exit_code == 2


def test_consistent_needs_a_control_with_power():
    ids, scores, member = simulate(1000, 0.45)
    strong = Control(scores=Scores(ids, simulate(1000, 12.0, 1)[1], simulate(1000, 12.0, 1)[2]), fault="no noise")
    plan = plan_for(claim=2.0)
    assert plan.control_canaries is not None and plan.control_canaries < 1000
    assert audit(Scores(ids, scores, member), plan, control=strong).verdict == "consistent"
    weak = Control(scores=Scores(ids, simulate(1000, 0.0, 1)[1], simulate(1000, 0.0, 1)[2]))
    result = audit(Scores(ids, scores, member), plan, control=weak)
    assert result.verdict == "inconclusive" and result.power < 0.01


@pytest.mark.parametrize("claim", [0.1, 1.0, 4.0])
def test_null_scores_are_never_consistent(claim):
    strong_ids, strong, coins = simulate(1000, 15.0, 1)
    control = Control(scores=Scores(strong_ids, strong, coins))
    for seed in range(20):
        ids, scores, member = simulate(1000, 0.0, seed)
        result = audit(Scores(ids, scores, member), plan_for(claim=claim), control=control, secondary=False)
        assert result.verdict != "consistent"


def test_accounting_mismatch_outranks_an_invalid_audit():
    ids, scores, member = simulate(1000, 0.5)
    assert audit(Scores(ids, scores, member), plan_for(), accounted_upper=3.2).verdict == "accounting_mismatch"
    skewed = np.zeros(1000, int)
    skewed[:300] = 1
    result = audit(Scores(ids, scores, skewed), plan_for())
    assert result.verdict == "invalid_audit" and result.epsilon_lower is None and result.exit_code == 3
    assert audit(Scores(ids, scores, skewed), plan_for(), accounted_upper=3.2).verdict == "accounting_mismatch"


def test_witness_outranks_everything():
    ids, scores, _ = simulate(1000, 0.5)
    witness = Finding(name="replay", status="violated", claim="step function", text="x", deterministic=True)
    skewed = np.zeros(1000, int)
    skewed[:300] = 1
    assert audit(Scores(ids, scores, skewed), plan_for(), accounted_upper=9.0, findings=[witness]).verdict == "violated"


def test_lost_canaries_are_invalid():
    ids, scores, member = simulate(990, 0.5)
    result = audit(Scores(ids, scores, member), plan_for())
    assert result.verdict == "invalid_audit"
    assert any("1000 canaries and 990" in f.text for f in result.findings)


def test_no_coins_gives_auc_only():
    ids, scores, member = simulate(1000, 12.0)
    value = audit(Scores(ids, scores, member), plan_for(), coins="none").to_dict()
    assert value["verdict"] == "inconclusive" and value["auc"]["value"] > 0.99
    assert value["primary"]["epsilon_lower"] is None and value["ceiling"] is None and value["secondary"] == []


def test_copies_test_the_group_claim():
    ids, scores, member = simulate(1000, 12.0)
    plan = plan_for(copies=4)
    assert audit(Scores(ids, scores, member), plan).verdict == "inconclusive"
    assert audit(Scores(ids, scores, member), plan, group_claim=19.8).verdict == "inconclusive"
    result = audit(Scores(ids, scores, member), plan, group_claim=2.0)
    assert result.verdict == "violated" and result.claim_tested == "group (epsilon, delta)"


def test_declared_curve_convicts_the_mechanism_only():
    ids, scores, member = simulate(1000, 1.8)
    result = audit(Scores(ids, scores, member), plan_for(errors=0), curve=gaussian_trade_off(gdp_mu(3.0, 1e-5)))
    assert result.epsilon_lower_at_verdict < 3.0
    assert {f.claim for f in result.findings if f.status == "violated"} == {"declared mechanism"}


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"scores": [1.0, float("nan"), 0.0, 2.0]}, InvalidEvidence, "NaN"),
        ({"scores": [1.0] * 4}, InvalidEvidence, "constant"),
        ({"ids": ["a", "b", "a", "c"]}, InvalidEvidence, "'a'"),
        ({"member": [1, 1, 1, 1]}, InvalidEvidence, "one class"),
        ({"member": [1, 2, 0, 1]}, InvalidEvidence, "0 and 1"),
        ({"member": [1, 0]}, InvalidValue, "member"),
        ({"ids": ["a"]}, InvalidValue, "ids"),
        ({"scores": [], "ids": [], "member": []}, InvalidEvidence, "empty"),
    ],
)
def test_bad_evidence_is_named(change, error, word):
    given = {"ids": list("abcd"), "scores": [1.0, 0.5, 0.2, 0.1], "member": [1, 0, 1, 0], **change}
    with pytest.raises(error, match=word) as caught:
        audit(Scores(given["ids"], given["scores"], given["member"]), plan_for(m=4, claim=0.1))
    assert str(caught.value).count("\n") == 0


def test_ties_do_not_depend_on_order_or_coins():
    ids = [f"c{i}" for i in range(100)]
    scores = np.repeat([0.0, 1.0], 50)
    first = dict(zip(ids, guess(ids, scores, (10, 10)).tolist()))
    order = np.random.default_rng(3).permutation(100)
    second = dict(zip([ids[i] for i in order], guess([ids[i] for i in order], scores[order], (10, 10)).tolist()))
    assert first == second
    assert sum(v == 1 for v in first.values()) == 10 and sum(v == -1 for v in first.values()) == 10


def test_ties_stand_in_the_order_of_their_digests():
    ids = [f"c{i}" for i in range(50)]
    scores = np.repeat([2.0, 1.0], 25)
    top = sorted(ids[:25], key=lambda i: hashlib.sha256(i.encode()).digest())[:7]
    made = guess(ids, scores, (7, 7))
    assert {i for i, g in zip(ids, made) if g == 1} == set(top)


def test_paired_coins_for_replace_one():
    pairs = ["p1", "p1", "p2", "p2"]
    made = pair_scores(pairs, Scores("abcd", [2.0, 1.0, 0.0, 3.0], [1, 0, 0, 1]))
    assert made.ids == ("p1", "p2") and made.values.tolist() == [1.0, -3.0] and made.members.tolist() == [True, False]
    with pytest.raises(InvalidEvidence, match="'p1'"):
        pair_scores(pairs, Scores("abcd", [2.0, 1.0, 0.0, 3.0], [1, 1, 0, 1]))


def test_bound_is_the_counts_bound():
    ids, scores, member = simulate(1000, 1.5)
    plan = plan_for()
    result = audit(Scores(ids, scores, member), plan)
    made, right = count_correct(guess(ids, scores, plan), member)
    assert result.epsilon_lower == snj_epsilon_lower(1000, made, right, 1e-5, 0.05)
    assert result.to_dict()["design"]["guesses_in"] * 2 == made


def test_many_runs_uses_independent_trials():
    ids, scores, member = simulate(2000, 12.0)
    plan = plan_for(m=2000, kind="many_runs")
    result = audit(Scores(ids, scores, member), plan)
    assert result.verdict == "violated" and result.estimator == "clopper_pearson_split"
    assert 3.0 < result.epsilon_lower_at_verdict <= result.epsilon_lower <= result.ceiling
    honest = audit(Scores(*simulate(2000, gdp_mu(3.0, 1e-5))), plan, curve=gaussian_trade_off(gdp_mu(3.0, 1e-5)))
    assert honest.verdict == "inconclusive" and 0 < honest.epsilon_lower < 3.0
    assert [b.kind for b in honest.secondary] == [
        "unconditional",
        "unconditional",
        "credible",
        "conditional",
        "approximate",
    ]


def test_many_runs_power_comes_from_the_control():
    ids, scores, member = simulate(2000, gdp_mu(3.0, 1e-5))
    plan = plan_for(m=2000, kind="many_runs")
    leaky = Control(scores=Scores(ids, simulate(2000, 12.0, 1)[1], simulate(2000, 12.0, 1)[2]), fault="no noise")
    assert audit(Scores(ids, scores, member), plan, control=leaky).verdict == "consistent"
    same = Control(scores=Scores(ids, scores, member), fault="none at all")
    assert audit(Scores(ids, scores, member), plan, control=same).power < 0.05


def test_threshold_is_chosen_on_runs_that_do_not_judge():
    ids, scores, member = simulate(200, 3.0)
    order = sorted(range(200), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    choosing, judging = order[:100], order[100:]
    (tp, n_pos, fp, n_neg), threshold = split_counts(Scores(ids, scores, member), 1e-5)
    assert (n_pos, n_neg) == (member[judging].sum(), (1 - member[judging]).sum())
    above = scores[judging] >= threshold
    assert (tp, fp) == (int((above & (member[judging] == 1)).sum()), int((above & (member[judging] == 0)).sum()))
    other = scores.copy()
    other[judging] = np.random.default_rng(1).normal(size=100)
    assert split_counts(Scores(ids, other, member), 1e-5)[1] == threshold and len(choosing) == 100
