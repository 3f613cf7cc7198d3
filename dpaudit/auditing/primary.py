"""The one estimator that may convict on (ε, δ), for each kind of design."""

from __future__ import annotations

import dataclasses

from dpaudit.auditing.guess import count_correct, guess_in_order, ranking
from dpaudit.auditing.many_runs import Counts, cp_ceiling, cp_p_value, split_counts
from dpaudit.auditing.one_run import snj_epsilon_lower, snj_p_value
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.rates import cp_epsilon_lower
from dpaudit.privacy.scores import Scores


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The primary bound at 1 − α and at the verdict's level, what it rests on, and what it could have been."""

    epsilon_lower: float
    at_verdict: float
    p_value: float | None
    guesses: int
    correct: int
    mechanism_guesses: int = 0
    mechanism_correct: int = 0
    counts: Counts | None = None
    ceiling: float
    ceiling_at_verdict: float
    expected: float
    optimal: float
    evidence: str


def one_run_primary(scores: Scores, plan: AuditPlan, tested: float | None) -> Primary:
    """Steinke-Nasr-Jagielski with the plan's guesses: valid for any mechanism, however its canaries interfere."""
    order = ranking(scores.ids, scores.values)
    made, right = count_correct(guess_in_order(order, plan), scores.members)
    made_f, right_f = count_correct(guess_in_order(order, plan.mechanism_guesses), scores.members)
    m, delta = plan.m, plan.delta
    return Primary(
        mechanism_guesses=made_f,
        mechanism_correct=right_f,
        epsilon_lower=snj_epsilon_lower(m, made, right, delta, plan.alpha),
        at_verdict=snj_epsilon_lower(m, made, right, delta, plan.alpha_split.primary),
        p_value=None if tested is None else snj_p_value(m, made, right, tested, delta),
        guesses=made,
        correct=right,
        ceiling=plan.ceiling,
        ceiling_at_verdict=plan.ceiling_at_verdict,
        expected=plan.expected_epsilon_lower,
        optimal=plan.power_if_attack_were_optimal,
        evidence=f"{right} of {made} guesses were right",
    )


def many_runs_primary(scores: Scores, plan: AuditPlan, tested: float | None) -> Primary:
    """Clopper-Pearson on the judging half of the runs, at the threshold chosen on the other half."""
    delta, level = plan.delta, plan.alpha_split.primary
    counts, _ = split_counts(scores, delta, level)
    tp, n_pos, fp, n_neg = counts
    return Primary(
        epsilon_lower=cp_epsilon_lower(*counts, delta, plan.alpha),
        at_verdict=cp_epsilon_lower(*counts, delta, level),
        p_value=None if tested is None else cp_p_value(counts, tested, delta),
        guesses=n_pos + n_neg,
        correct=tp + n_neg - fp,
        counts=counts,
        ceiling=cp_ceiling(n_pos, n_neg, delta, plan.alpha),
        ceiling_at_verdict=cp_ceiling(n_pos, n_neg, delta, level),
        expected=plan.expected_epsilon_lower,
        optimal=plan.power_if_attack_were_optimal,
        evidence=f"{tp} of {n_pos} members and {fp} of {n_neg} non-members scored above the threshold",
    )
