"""Preflight of a loop of one's own: does its clipped sum treat each unit's records as one contribution?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers.contribution import ClippedSum
from dpaudit.trainers.units import Units

Flat = Callable[[Sequence[int]], Tensor]
_REACHED = 0.9
"""Share of C that a unit's sum must reach: rows of a unit that is not clipped may be counted for another unseen."""


def preflight_units(
    clipped_sum: Callable[[list[Any]], ClippedSum | Iterable[Tensor]],
    records: Sequence[Any],
    units: Units | Iterable[Any],
    *,
    clipping_norm: float,
    tolerance: float = 1e-3,
) -> float:
    """Check on made-up records that a path from records to their clipped sum keeps the bound of every unit.

    The path is a black box: collator, numbers of the rows' units, micro-batches and clipper together. What is asked of
    it holds for every right one. A unit alone moves the sum by at most C, and the sum of records of several units is
    the sum of each unit's own, in whatever order they stand. A row counted for another unit, a unit whose rows lie in
    two micro-batches, and a loss that looks at another unit's rows break one of the two.

    Parameters
    ----------
    clipped_sum : callable
        Records to their clipped sum without noise: a ``ClippedSum``, or its tensors in a fixed order. Dropout must be
        off, and the weights may not change.
    records : sequence
        Made up, and nobody's data: at least two units, one of them with two records or more.
    units : iterable
        Name of each record's unit: the truth, against which the path is held.
    clipping_norm : float
        C, the bound that the path clips to. Take it so small that every unit is clipped.
    tolerance : float
        Of C, for rounding.

    Returns
    -------
    float
        Largest difference between the sum over all records and the sum of the units' own, in C.

    Raises
    ------
    PrivacyRefusal
        If a unit alone moves the sum by more than C, or the sum is not that of the units; names the unit.
    InvalidValue
        If the records cannot show it: too few units or records, or a unit that is not clipped.
    """
    validate.positive(clipping_norm=clipping_norm, tolerance=tolerance)
    known = units if isinstance(units, Units) else Units.named(units, records=len(records))
    members = [rows.tolist() for rows in known.members()]
    if len(members) < 2 or max(map(len, members)) < 2:
        raise InvalidValue(
            f"{len(members)} units of at most {max(map(len, members), default=0)} records show nothing about units;"
            " make up at least two, one of them with two records or more."
        )

    def flat(rows: Sequence[int]) -> Tensor:
        found = clipped_sum([records[i] for i in rows])
        tensors = found.sums.values() if isinstance(found, ClippedSum) else found
        return torch.cat([t.detach().double().flatten().cpu() for t in tensors])

    alone = [_alone(flat, rows, unit, clipping_norm, tolerance) for unit, rows in enumerate(members)]
    worst = 0.0
    everyone, own = list(range(len(records))), torch.stack(alone).sum(0)
    for order in (everyone, everyone[::-1], [row for rows in members for row in rows]):
        moved = float((flat(order) - own).norm()) / clipping_norm
        if not moved <= tolerance:
            _refuse_mixed(flat, members, alone, clipping_norm, moved)
        worst = max(worst, moved)
    return worst


def _alone(flat: Flat, rows: Sequence[int], unit: int, bound: float, tolerance: float) -> Tensor:
    """The sum of one unit's records by themselves, whose norm is at most C and near it."""
    total = flat(rows)
    reached = float(total.norm()) / bound
    if not reached <= 1 + tolerance:
        raise PrivacyRefusal(
            f"the {len(rows)} records of unit {unit} alone move the clipped sum by {reached:.4g} C and must move it by"
            " at most C; clip them as one: give clipped_sum(losses, units=...) one loss and one number for each unit,"
            " and keep a unit's rows in one micro-batch."
        )
    if reached < _REACHED:
        raise InvalidValue(
            f"the records of unit {unit} move the clipped sum by {reached:.3g} C, so that nothing is clipped and a"
            " wrong unit would not show; give a smaller clipping_norm to this check and to the path it takes."
        )
    return total


def _refuse_mixed(
    flat: Flat, members: Sequence[Sequence[int]], alone: Sequence[Tensor], bound: float, moved: float
) -> None:
    """Refuse, with the first two units whose sum together is not the sum of each."""
    pair = next(
        (
            f"units {a} and {b}"
            for a in range(len(members))
            for b in range(a)
            if float((flat([*members[b], *members[a]]) - alone[a] - alone[b]).norm()) > 1e-3 * bound
        ),
        "records of several units",
    )
    raise PrivacyRefusal(
        f"the clipped sum of all records lies {moved:.4g} C from the sum of each unit's own, first for {pair}: a row is"
        " counted for another unit, or a loss looks at another unit's rows; number the rows of the collated batch, in"
        " its order, by the units of the records that they came from."
    )
