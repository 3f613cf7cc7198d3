"""Calibration: the noise multiplier, steps or sampling probability of one stage that meets a target ε."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.stage import Relation, Sampling, Stage

FOUND = ("noise_multiplier", "steps", "sampling_probability")
"""What can be found; the other two are given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A stage whose certified ε meets a target.

    Attributes
    ----------
    name : str
        What was found: ``noise_multiplier``, ``steps`` or ``sampling_probability``.
    value : float or int
        The smallest noise multiplier, or the largest number of steps or sampling probability, found to meet the target.
    stage : Stage
        The stage with it.
    relation : Relation
    epsilon_target, delta : float
    group_size : int
    guarantee : Guarantee
        The accountant's certified bound for that stage; its upper end is at most the target.
    limit : str or None
        Said where the search ended at its own end, so that a better value may exist.
    defaulted : tuple of str
        Names of fields that a default filled.
    """

    name: str
    value: float
    stage: Stage
    relation: Relation
    epsilon_target: float
    delta: float
    group_size: int
    guarantee: Guarantee
    limit: str | None = None
    defaulted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.calibrate/1``."""
        filled = {"defaulted": True, "defaulted_fields": sorted(self.defaulted)} if self.defaulted else {}
        return {
            "schema": "dpaudit.calibrate/1",
            self.name: self.value,
            "epsilon_upper": self.guarantee.epsilon_upper,
            "epsilon_target": self.epsilon_target,
            "delta": self.delta,
            "relation": str(self.relation),
            "accountant": self.guarantee.accountant,
            "version": self.guarantee.version,
            "group_size": self.group_size,
            "stage": self.stage.to_dict(),
            "limit": self.limit,
            **filled,
        }

    def __str__(self) -> str:
        # Less noise, more steps or a larger q than was found would miss the target: each is rounded away from it.
        cautious = upper_text if self.name == "noise_multiplier" else lower_text
        upper = upper_text(self.guarantee.epsilon_upper, 6, within=self.epsilon_target)
        return (
            f"{self.name} = {cautious(self.value, 8)}   certified ε ≤ {upper} at δ={exact_text(self.delta)} under"
            f" {self.relation}" + (f"\n{self.limit}" if self.limit else "")
        )


def calibrate(
    stage: Stage,
    find: str,
    *,
    epsilon: float,
    delta: float,
    relation: Relation | str,
    accountant: str = "prv",
    group_size: int = 1,
    assume: Sequence[str] = (),
) -> Calibration:
    """Find the noise multiplier, steps or sampling probability with which a stage's certified ε meets a target.

    Parameters
    ----------
    stage : Stage
        The other two numbers, the sampling and everything else; its value of what is to be found is ignored.
    find : str
        ``noise_multiplier``, ``steps`` or ``sampling_probability``.
    epsilon : float
        Target that the certified UPPER bound has to meet.
    delta : float
    relation : Relation or str
        Neighbouring relation; there is no default.
    accountant : str, default="prv"
        ``prv``, ``pld`` or ``rdp``.
    group_size : int, default=1
        Units that change together.
    assume : sequence of str
        Assumptions of the accountant, such as ``shuffle_fixed_schedule``.

    Returns
    -------
    Calibration

    Raises
    ------
    InvalidValue, PrivacyRefusal
        If nothing meets the target, or the accountant refuses the stage.

    Examples
    --------
    >>> from dpaudit import Stage
    >>> stage = Stage(sampling_probability=0.0152, noise_multiplier=1.0, steps=1320, sampling="poisson")
    >>> found = calibrate(stage, "noise_multiplier", epsilon=3, delta=1e-5, relation="add_or_remove_one")
    >>> 0.8 < found.value < 1.2 and found.guarantee.epsilon_upper <= 3
    True
    """
    from dpaudit.accounting import account
    from dpaudit.accounting.calibrate import (
        LARGEST_STEPS,
        StageTarget,
        calibrate_noise_multiplier,
        calibrate_sampling_probability,
        calibrate_steps,
        stage_ledger,
    )

    if find not in FOUND:
        raise InvalidValue(f"find={find!r} is unknown; choose one of {', '.join(FOUND)}.")
    search = {
        "noise_multiplier": calibrate_noise_multiplier,
        "steps": calibrate_steps,
        "sampling_probability": calibrate_sampling_probability,
    }[find]
    chosen = Relation.parse(relation)
    target = StageTarget(
        epsilon=epsilon, delta=delta, relation=chosen, accountant=accountant, group_size=group_size, assume=assume
    )
    value = search(stage, target)
    final = Stage.from_dict(stage.to_dict() | {find: value})
    (guarantee,) = account(
        stage_ledger(final, chosen),
        delta=delta,
        accountants=(accountant,),
        group_size=group_size,
        assume=assume,
    )
    upper, limit = guarantee.epsilon_upper, None
    if upper is None or upper > epsilon:
        raise InvalidValue(f"{find}={value!r} has a certified epsilon={upper} above {epsilon}; report this plan.")
    if find == "steps" and value == LARGEST_STEPS:
        limit = f"{value} is the largest number of steps that is looked for; more may meet the target too"
    return Calibration(
        name=find,
        value=value,
        stage=final,
        relation=chosen,
        epsilon_target=epsilon,
        delta=delta,
        group_size=group_size,
        guarantee=guarantee,
        limit=limit,
    )


def calibrate_missing(
    *, relation: str | None, sampling: str | None, epsilon: float, delta: float, **options: Any
) -> Calibration:
    """Find the one of noise multiplier, steps and sampling probability that is None, with the others given.

    Parameters
    ----------
    relation : str or None
        ``add_or_remove_one`` where it is None, which the answer says.
    sampling : str or None
        ``poisson`` where it is None, which the answer says.
    epsilon, delta : float
    **options
        ``accountant``, ``group_size`` and ``assume`` as for :func:`calibrate`; all others are fields of a stage.

    Raises
    ------
    InvalidValue
        When not exactly one of the three is None, or as :func:`calibrate` does.
    """
    search = {name: options.pop(name) for name in ("accountant", "group_size", "assume") if name in options}
    missing = [name for name in FOUND if options[name] is None]
    if len(missing) != 1:
        raise InvalidValue("Give exactly two of --sampling-probability, --steps and --noise-multiplier.")
    filled = [name for name, value in (("sampling", sampling), ("relation", relation)) if value is None]
    chosen = Relation.parse(relation or Relation.ADD_OR_REMOVE_ONE)
    stage = Stage(**options | {missing[0]: 1}, sampling=sampling or Sampling.POISSON)
    found = calibrate(stage, missing[0], epsilon=epsilon, delta=delta, relation=chosen, **search)
    return dataclasses.replace(found, defaulted=tuple(filled))
