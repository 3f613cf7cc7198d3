"""A positive control: the same attack on a run of the same configuration with a planted fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpaudit.auditing.coins import COIN_TAIL, member_count_is_plausible
from dpaudit.auditing.guess import count_correct, guess
from dpaudit.auditing.many_runs import cp_power_at, split_counts
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.power import MINIMUM_CONTROL_GUESSES, control_guesses, power_from_control
from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.verdict import enough_power

_TAIL = 0.025  # each end of a 95 % interval
_LARGEST_CONTROL = 10_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Control:
    """Scores of a positive control.

    Attributes
    ----------
    scores : Scores
        The control's canaries with their scores and coins, which must be fair as the audit's own are.
    fault : str
        The planted fault, in words: it is what the measured power refers to.
    runs : sequence of str, optional
        Control run of each canary, where several runs of one configuration are put together: each is guessed by
        itself, and their counts are added. For ``many_runs`` every canary is its own run and this is not read.

    Raises
    ------
    InvalidValue
        If ``runs`` does not name one run for each score.
    """

    scores: Scores
    fault: str = "unspecified"
    runs: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.runs is not None and len(self.runs) != len(self.scores):
            raise InvalidValue(
                f"{len(self.runs)} control runs are named for {len(self.scores)} scores; name the run of each canary."
            )


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
    scores = control.scores
    if not member_count_is_plausible(scores.member_count, len(scores)):
        raise InvalidEvidence(
            f"{scores.member_count} of {len(scores)} control canaries are members, outside the central"
            f" 1 - {COIN_TAIL:g} range of fair coins; make the control with fair coins."
        )
    if plan.kind == "many_runs":
        return _many_runs_power(plan, tested_epsilon, control)
    made = right = 0
    for run in _runs(control):
        shares = control_guesses(len(run), plan.m, plan.guesses_in, plan.guesses_out)
        if sum(shares) and not run.constant:
            counted = count_correct(guess(run.ids, run.values, shares), run.members)
            made, right = made + counted[0], right + counted[1]
    if made == 0:
        return ControlPower(
            power=0.0, interval=(0.0, 0.0), guesses=0, correct=0, fault=control.fault, canaries=len(scores)
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
        power=estimate, interval=interval, guesses=made, correct=right, fault=control.fault, canaries=len(scores)
    )


def _runs(control: Control) -> list[Scores]:
    """The canaries of each control run."""
    if control.runs is None:
        return [control.scores]
    labels = np.asarray([str(run) for run in control.runs])
    return [control.scores.take(np.flatnonzero(labels == run)) for run in np.unique(labels)]


def _many_runs_power(plan: AuditPlan, tested: float, control: Control) -> ControlPower:
    level = plan.alpha_split.primary
    (tp, n_pos, fp, n_neg), _ = split_counts(control.scores, plan.delta, level)
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
        canaries=len(control.scores),
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
