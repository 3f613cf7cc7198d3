"""Accountants side by side on one ledger: who is rigorous, who is loose, and who is wrong here, in plain sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from dpaudit.accounting.account import Reply, answered, replies
from dpaudit.accounting.comparison_curves import comparison_curves
from dpaudit.accounting.registry import BUILT_IN
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger

SCHEMA = "dpaudit.compare/1"
LOOSE = 1.02
UNBOUNDED = "valid, and no finite bound at this delta"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One accountant's answer, or why it has none, and a sentence about it for this ledger."""

    reply: Reply
    remark: str

    @property
    def accountant(self) -> str:
        """Name of the accountant."""
        return self.reply.accountant

    @property
    def guarantee(self) -> Guarantee | None:
        """Its answer; None where it refused."""
        return self.reply.guarantee


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of a ledger at one δ, with series for figures as plain lists (empty where not asked for)."""

    ledger: Ledger
    delta: float
    group_size: int
    rows: tuple[Row, ...]
    curves: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, schema ``dpaudit.compare/1``."""
        results = [row.reply.to_dict() | {"remark": row.remark} for row in self.rows]
        return {
            "schema": SCHEMA,
            "delta": self.delta,
            "relation": str(self.ledger.relation),
            "unit": self.ledger.unit,
            "group_size": self.group_size,
            "stages": [stage.to_dict() for stage in self.ledger.stages],
            "results": results,
            **self.curves,
        }


def compare(
    ledger: Ledger,
    *,
    delta: float,
    accountants: Sequence[str] = BUILT_IN,
    group_size: int = 1,
    assume: Collection[str] = (),
    curves: bool = False,
    empirical: Sequence[Sequence[float]] = (),
) -> Comparison:
    """Ask every accountant for ε at δ and say what each answer is worth here.

    Parameters
    ----------
    ledger : Ledger
        Stages that ran or are planned, with their neighbouring relation.
    delta : float
        δ in (0, 1).
    accountants : sequence of str
        Names, in the order of the rows.
    group_size : int, default=1
        Units of privacy that the claim covers together, beside the ledger's own ``max_records_per_unit``.
    assume : collection of str
        Premises that the caller vouches for and the ledger does not record; an accountant that needs one names it.
    curves : bool
        Also compute ε over steps (with stage boundaries), ε over δ, and the trade-off band with the curves that the
        other accountants imply; see ``dpaudit.accounting.comparison_curves``.
    empirical : sequence of (fpr, tpr)
        Points of an attack, carried into the trade-off figure.

    Returns
    -------
    Comparison
        One row for each accountant, in the order asked for; a refusal is a row with its reason.

    Raises
    ------
    InvalidValue
        If an accountant is unknown or δ is outside (0, 1).
    UnsupportedStage
        If no accountant can treat the ledger.
    """
    options: dict[str, Any] = {"group_size": group_size, "assume": tuple(assume)}
    ledger = ledger.merged()  # checkpoints cut one stage into many segments, which cost the same together
    found = replies(ledger, delta=delta, accountants=accountants, **options)
    answered(found)
    certified = next((reply.guarantee for reply in found if reply.accountant == "prv"), None)
    if certified is None:
        certified = replies(ledger, delta=delta, **options)[0].guarantee
    rows = tuple(
        Row(reply, _remark(reply.guarantee, certified) if reply.guarantee else str(reply.refused)) for reply in found
    )
    drawn = comparison_curves(ledger, delta, found, options, empirical) if curves and certified is not None else {}
    return Comparison(ledger, delta, group_size * ledger.max_records_per_unit, rows, drawn)


def _remark(found: Guarantee, certified: Guarantee | None) -> str:
    """What an answer is worth for this ledger."""
    if found.accountant == "prv":
        if found.epsilon_upper == math.inf:
            return found.assumption or UNBOUNDED
        return "certified: the true ε lies in this interval" if found.epsilon_lower is not None else found.assumption
    value = found.epsilon_upper if found.rigorous else found.epsilon_estimate
    if value is None or certified is None or certified.epsilon_upper is None:
        return found.assumption
    upper, lower = certified.epsilon_upper, certified.epsilon_lower
    if math.isinf(value) and math.isinf(upper):
        return certified.assumption or UNBOUNDED
    if lower is not None and value < lower:
        short = "below the certified lower bound" + (f" by {1 - value / lower:.1%}" if lower > 0 else "")
        if not found.rigorous:
            return f"wrong here: an estimate {short}; it may not be used as a guarantee"
        return f"wrong here: {short}; report this ledger"
    if not found.rigorous:
        if value > upper * LOOSE:
            return f"an estimate, {_times(value, upper)} the certified upper bound here; not a guarantee"
        if lower is None or value > lower * LOOSE:
            return "an estimate near the certified upper bound; how near to the truth is not known; not a guarantee"
        return "close to the truth here, but an estimate and not a guarantee"
    if math.isinf(value):
        return UNBOUNDED
    if value > upper * LOOSE:
        return f"valid but loose: {_times(value, upper)} the certified upper bound"
    if lower is None or value > lower * LOOSE:
        return "valid; how near to the truth is not known here"
    return "valid and tight here"


def _times(value: float, upper: float) -> str:
    return f"{value / upper:.2f} times" if upper > 0 else "above"
