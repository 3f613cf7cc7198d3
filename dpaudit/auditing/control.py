"""A positive control: the same attack on a run of the same configuration with a planted fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.guess import check_member, check_scores, count_correct, guess
from dpaudit.auditing.many_runs import cp_power_at, split_counts
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.power import power_from_control
from dpaudit.auditing.rates import rate_lower, rate_upper


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Control:
    """Scores of a positive control.

    Attributes
    ----------
    ids : sequence of str
        Canary ids of the control run.
    scores, member : array of shape (n,)
        Its scores (higher = member) and coins.
    fault : str
        The planted fault, in words: it is what the measured power refers to.
    """

    ids: Sequence[str]
    scores: ArrayLike
    member: ArrayLike
    fault: str = "unspecified"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlPower:
    """Power of an attack as measured on a control: estimate, interval, and the counts it rests on."""

    power: float
    interval: tuple[float, float]
    guesses: int
    correct: int
    fault: str


def control_power(plan: AuditPlan, tested_epsilon: float, control: Control) -> ControlPower:
    """Probability that this attack, meeting a fault like the control's, would convict at the plan's verdict level.

    The control is guessed at the plan's shares of in and out. Constant scores have power 0.
    """
    scores = check_scores(control.scores, name="control scores")
    coins = check_member(control.member, scores.size)
    if plan.kind == "many_runs":
        return _many_runs_power(plan, tested_epsilon, control, scores, coins)
    share = scores.size / plan.m
    k_in = min(round(plan.guesses_in * share), scores.size // 2)
    k_out = min(round(plan.guesses_out * share), scores.size // 2)
    if k_in + k_out == 0 or np.unique(scores).size == 1:
        return ControlPower(power=0.0, interval=(0.0, 0.0), guesses=0, correct=0, fault=control.fault)
    made, right = count_correct(guess(control.ids, scores, (k_in, k_out)), coins)
    estimate, interval = power_from_control(
        plan.m,
        plan.guesses_in + plan.guesses_out,
        tested_epsilon,
        plan.delta,
        plan.alpha_split.primary,
        control_guesses=made,
        control_correct=right,
    )
    return ControlPower(power=estimate, interval=interval, guesses=made, correct=right, fault=control.fault)


def _many_runs_power(
    plan: AuditPlan, tested: float, control: Control, scores: NDArray[np.float64], coins: NDArray[np.bool_]
) -> ControlPower:
    level = plan.alpha_split.primary
    (tp, n_pos, fp, n_neg), _ = split_counts(control.ids, scores, coins, plan.delta, level)
    n = max(plan.m // 4, 1)

    def power(tpr: float, fpr: float) -> float:
        return cp_power_at(n, n, tpr, fpr, tested, plan.delta, level)

    low = power(rate_lower(tp, n_pos, 0.025), rate_upper(fp, n_neg, 0.025))
    high = power(rate_upper(tp, n_pos, 0.025), rate_lower(fp, n_neg, 0.025))
    estimate = power(tp / n_pos, fp / n_neg)
    return ControlPower(
        power=estimate, interval=(low, high), guesses=n_pos + n_neg, correct=tp + n_neg - fp, fault=control.fault
    )
