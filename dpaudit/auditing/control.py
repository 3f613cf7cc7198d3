"""A positive control: the same attack on a run of the same configuration with a planted fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.coins import COIN_TAIL, member_count_is_plausible
from dpaudit.auditing.guess import check_ids, check_member, check_scores, count_correct, guess
from dpaudit.auditing.many_runs import cp_power_at, split_counts
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.power import MINIMUM_CONTROL_GUESSES, control_guesses, power_from_control
from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.verdict import enough_power

_TAIL = 0.025  # each end of a 95 % interval
_LARGEST_CONTROL = 10_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Control:
    """Scores of a positive control.

    Attributes
    ----------
    ids : sequence of str
        Canary ids of the control, each once.
    scores, member : array of shape (n,)
        Its scores (higher = member) and coins, which must be fair as the audit's own are.
    fault : str
        The planted fault, in words: it is what the measured power refers to.
    runs : sequence of str, optional
        Control run of each canary, where several runs of one configuration are put together: each is guessed by
        itself, and their counts are added. For ``many_runs`` every canary is its own run and this is not read.
    """

    ids: Sequence[str]
    scores: ArrayLike
    member: ArrayLike
    fault: str = "unspecified"
    runs: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlPower:
    """Power of an attack as measured on a control: estimate, 95 % interval, and the counts it rests on.

    The lower end of ``interval`` is what a verdict may rest on.
    """

    power: float
    interval: tuple[float, float]
    guesses: int
    correct: int
    fault: str
    canaries: int = 0

    @property
    def lower(self) -> float:
        """Lower end of the 95 % interval."""
        return self.interval[0]


def control_power(plan: AuditPlan, tested_epsilon: float, control: Control) -> ControlPower:
    """Probability that this attack, meeting a fault like the control's, would convict at the plan's verdict level.

    The control is guessed at the plan's shares of in and out. Constant scores have power 0.

    Raises
    ------
    InvalidEvidence
        When the control's coins were not fair: its share of right guesses would then say nothing on the attack.
    """
    scores = check_scores(control.scores, name="control scores")
    coins = check_member(control.member, scores.size)
    names = check_ids(control.ids)
    if len(names) != scores.size:
        raise InvalidValue(f"{len(names)} control ids stand beside {scores.size} scores; give one score for each id.")
    if not member_count_is_plausible(int(coins.sum()), scores.size):
        raise InvalidEvidence(
            f"{int(coins.sum())} of {scores.size} control canaries are members, outside the central 1 - {COIN_TAIL:g}"
            " range of fair coins; make the control with fair coins."
        )
    if plan.kind == "many_runs":
        return _many_runs_power(plan, tested_epsilon, control, scores, coins)
    made = right = 0
    for rows in _runs(control, scores.size):
        shares = control_guesses(rows.size, plan.m, plan.guesses_in, plan.guesses_out)
        if sum(shares) and np.unique(scores[rows]).size > 1:
            counted = count_correct(guess([names[i] for i in rows], scores[rows], shares), coins[rows])
            made, right = made + counted[0], right + counted[1]
    if made == 0:
        return ControlPower(
            power=0.0, interval=(0.0, 0.0), guesses=0, correct=0, fault=control.fault, canaries=scores.size
        )
    estimate, interval = power_from_control(
        plan.m,
        plan.guesses_in + plan.guesses_out,
        tested_epsilon,
        plan.delta,
        plan.alpha_split.primary,
        control_guesses=made,
        control_correct=right,
    )
    return ControlPower(
        power=estimate, interval=interval, guesses=made, correct=right, fault=control.fault, canaries=scores.size
    )


def _runs(control: Control, size: int) -> list[NDArray[np.int64]]:
    """Positions of each control run's canaries."""
    if control.runs is None:
        return [np.arange(size)]
    labels = np.asarray([str(run) for run in control.runs])
    if labels.size != size:
        raise InvalidValue(f"{labels.size} control runs are named for {size} scores; name the run of each canary.")
    return [np.flatnonzero(labels == run) for run in np.unique(labels)]


def _many_runs_power(
    plan: AuditPlan, tested: float, control: Control, scores: NDArray[np.float64], coins: NDArray[np.bool_]
) -> ControlPower:
    level = plan.alpha_split.primary
    (tp, n_pos, fp, n_neg), _ = split_counts(control.ids, scores, coins, plan.delta, level)
    n = max(plan.m // 4, 1)

    def power(tpr: float, fpr: float) -> float:
        return cp_power_at(n, n, tpr, fpr, tested, plan.delta, level)

    low = power(rate_lower(tp, n_pos, _TAIL), rate_upper(fp, n_neg, _TAIL))
    high = power(rate_upper(tp, n_pos, _TAIL), rate_lower(fp, n_neg, _TAIL))
    return ControlPower(
        power=power(tp / n_pos, fp / n_neg),
        interval=(low if n_pos + n_neg >= MINIMUM_CONTROL_GUESSES else 0.0, high),
        guesses=n_pos + n_neg,
        correct=tp + n_neg - fp,
        fault=control.fault,
        canaries=scores.size,
    )


def many_runs_control_needed(m: int, epsilon: float, delta: float, alpha: float) -> int | None:
    """Fewest runs of a positive control that can show a power of at least 0.8 for m independent runs.

    As :func:`~dpaudit.auditing.power.control_canaries_needed`: half of them choose the threshold, half of the others
    are members.
    """
    n = max(m // 4, 1)

    def enough(k: int) -> bool:
        return enough_power(cp_power_at(n, n, rate_lower(k, k, _TAIL), rate_upper(0, k, _TAIL), epsilon, delta, alpha))

    least = MINIMUM_CONTROL_GUESSES // 2
    high = least
    while not enough(high):
        high *= 2
        if 4 * high > _LARGEST_CONTROL:
            return None
    low = max(high // 2, least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return 4 * high
