"""Beacons: canaries with many copies, outside the audit, that show whether an attack on the released model is alive.

An attack that found nothing says something only if it could have found something in this run. What single canaries leak
is no test of that: the better the privacy, the less they show. A beacon stands in the data so often that its group has
next to no privacy, so that a working attack must tell the beacons that went in from those that stayed out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.auditing.coins import member_count_is_plausible
from dpaudit.auditing.roc import rank_sum_p_value
from dpaudit.privacy import validate
from dpaudit.privacy.canaries import ALIVE, FEWEST_BEACONS
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import upper_text
from dpaudit.privacy.scores import Scores

LIVE_BEACONS = 1e-6
"""Largest rank-sum p-value of beacons at which an attack is alive."""
DEAD = "dead_beacons"
"""Name of the finding on beacons that show no life."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BeaconPlan:
    """The beacons of a run, fixed with its audit plan before the first step.

    Attributes
    ----------
    count : int
        Beacons with a fair coin, at least 40.
    copies : int
        Records that an inserted beacon is in the data, at least 2.
    group_size : int
        Units of privacy that these records are; the claim for one unit says nothing of them.
    group_epsilon : float or None
        The accountant's ε for ``group_size`` units of the planned steps, at the claim's δ.
    commitment : str
        Hexadecimal SHA-256 that commits to their coins.
    level : float
        Largest rank-sum p-value at which the attack is alive.
    """

    count: int
    copies: int
    group_size: int
    group_epsilon: float | None
    commitment: str
    level: float = LIVE_BEACONS

    def __post_init__(self) -> None:
        validate.integer_at_least(FEWEST_BEACONS, beacons=self.count)
        validate.integer_at_least(2, beacon_copies=self.copies)
        validate.integer_at_least(1, group_size=self.group_size)
        if self.group_epsilon is not None:
            validate.non_negative(group_epsilon=self.group_epsilon)
        if not isinstance(self.commitment, str) or len(self.commitment) != 64:
            raise InvalidValue("the beacons' commitment must have 64 hexadecimal digits; give the one that was made.")
        validate.open_unit(level=self.level)
        if self.level > LIVE_BEACONS:
            raise InvalidValue(f"level={self.level:g} of the beacons must be at most {LIVE_BEACONS:g}; lower it.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> BeaconPlan:
        """Read a plan written by :meth:`to_dict`; an unknown or missing key is refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            raise InvalidEvidence(f"the beacons of an audit plan have the keys {sorted(names)}; restore the file.")
        return cls(**value)


def beacon_finding(plan: BeaconPlan, scores: Scores | None) -> Finding:
    """Whether the beacons' scores show a live attack: a note that says so, or what keeps silence from counting.

    Beacons never convict: nothing is claimed for them that could be violated.

    Parameters
    ----------
    plan : BeaconPlan
    scores : Scores or None
        Of the beacons by the attack of the audit, with their opened coins; None where they are not here.
    """
    whole = f"{plan.count} beacons of {plan.copies} copies each, which are no part of the audit,"
    if scores is None:
        return _dead(f"The scores of {whole} are not here, so that nothing shows whether the attack is alive.")
    if len(scores) != plan.count or not member_count_is_plausible(scores.member_count, plan.count):
        return _dead(
            f"The plan froze {whole} and {len(scores)} were scored, {scores.member_count} of them inserted: some were"
            " lost or added, or their coins were not fair, so that they show nothing."
        )
    p = 1.0 if scores.one_class or scores.constant else rank_sum_p_value(scores.values, scores.members)
    detail = {"inserted": scores.member_count, "level": plan.level}
    if p > plan.level:
        text = (
            f"Of {whole} {scores.member_count} were inserted, and the attack ranks them above the others with"
            f" p={upper_text(p, 2)}, short of the {plan.level:g} that shows a live attack: it is too weak for canaries"
            " of one copy to mean anything, dead, or joined to the wrong ids."
        )
        return _dead(text, p, detail)
    return Finding(
        name=ALIVE,
        status="note",
        claim="audit",
        p_value=p,
        text=(
            f"Of {whole} {scores.member_count} were inserted, and the attack ranks them above the others with"
            f" p={upper_text(p, 2)} (at most {plan.level:g} was asked for): it is alive on this run. {_group(plan)}"
        ),
        detail=detail,
    )


def _dead(text: str, p: float | None = None, detail: Mapping[str, Any] | None = None) -> Finding:
    return Finding(name=DEAD, status="inconclusive", claim="audit", p_value=p, text=text, detail=dict(detail or {}))


def _group(plan: BeaconPlan) -> str:
    """What is promised to a beacon: the claim for its whole group."""
    if plan.group_size == 1:
        return "Their copies are one unit of privacy each."
    if plan.group_epsilon is None:
        return f"Their privacy is that of groups of {plan.group_size}, for which no accountant here has a bound."
    return (
        f"Their privacy is that of groups of {plan.group_size}, for which the planned steps have"
        f" epsilon <= {upper_text(plan.group_epsilon)}; the claim for one record is not tested by them."
    )
