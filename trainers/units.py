"""Records and the units of privacy they belong to: counted, bounded before any draw, and drawn whole.

Two designs give one unit (a person, say) a guarantee (Charles et al., 2407.07737). *Records* are drawn, each clipped by
itself, and a unit has at most k of them: the number of its records in a step is Binomial(k, q). Or *units* are drawn,
at most G records of each, and their gradient is clipped as one: the unit is then what a record is elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.sampling import secret_stream
from dpaudit.trainers.secret import Secret

RULES = ("refuse", "choose")
REDUCTIONS = ("mean", "sum")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Which unit each record belongs to; the numbers are private, as the records are.

    Parameters
    ----------
    of : array of shape (N,)
        Number of each record's unit, in [0, ``count``).
    count : int
        U.
    """

    of: NDArray[np.int64]
    count: int

    @classmethod
    def named(cls, names: Iterable[Any], *, records: int | None = None) -> Units:
        """Units from one name a record: text, whole numbers or anything that equals itself.

        Texts that differ in case, blanks or width alone are one unit: two names for one person would break the bound,
        and one name for two persons breaks none.

        Raises
        ------
        InvalidValue
            If a name is missing (None, NaN or blank text), or there is not one for each of ``records``.
        """
        numbers: dict[Any, int] = {}
        of = []
        for place, name in enumerate(names):
            if name is None or name != name or (isinstance(name, str) and not name.strip()):
                raise InvalidValue(
                    f"record {place} names no unit of privacy ({name!r}); fill it in, with a name of its own where the"
                    " record belongs to nobody else."
                )
            of.append(numbers.setdefault(unit_name(name) if isinstance(name, str) else name, len(numbers)))
        if records is not None and len(of) != records:
            raise InvalidValue(f"units has {len(of)} names for {records} records; give one for each record.")
        return cls(np.asarray(of, dtype=np.int64), len(numbers))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Records of each unit, (U,); PRIVATE."""
        return np.bincount(self.of, minlength=self.count)

    def members(self) -> list[NDArray[np.int64]]:
        """Positions of each unit's records, in their order."""
        order = np.argsort(self.of, kind="stable")
        return np.split(order, np.cumsum(self.sizes)[:-1]) if self.count else []

    def refuse_above(self, max_records: int, *, unit: str = "unit") -> None:
        """Refuse records of which a unit has more than ``max_records``: the guarantee for units rests on that bound.

        Raises
        ------
        InvalidValue
            With the largest number, which is private: the sentence is for the owner of the records.
        """
        validate.integer_at_least(1, max_records=max_records)
        largest = int(self.sizes.max()) if self.count else 0
        if largest > max_records:
            raise InvalidValue(
                f"one {unit} has {largest} records, above max_records_per_unit={max_records}, so that no number would"
                f" hold for one {unit}; choose at random (max_records_rule='choose'), draw units whole"
                " (sampling_unit='unit'), or raise the bound."
            )


def unit_name(name: str) -> str:
    """A unit's name in one form: case, blanks and character width are made alike.

    >>> unit_name(" Ann  MOSS ")
    'ann moss'
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def bound_records(
    units: Units | Iterable[Any],
    max_records: int,
    *,
    rule: str,
    unit: str = "unit",
    marks: Sequence[float] | None = None,
) -> NDArray[np.int64]:
    """Positions of the records that stay when every unit keeps at most ``max_records``.

    Which records of a unit stay depends on that unit alone: were they taken in the order of the file, or until a total
    is reached, one person's records would move another's.

    Parameters
    ----------
    units : iterable
        Name of each record's unit.
    max_records : int
        k >= 1.
    rule : str
        "refuse": a unit with more is an error. "choose": k of them, at random.
    unit : str
        What one unit is called, for messages.
    marks : sequence of float or None
        One number a record, a function of that record and of public randomness: the smallest k of a unit stay. By
        default they are drawn afresh from the operating system's entropy, so that a second call keeps others.

    Returns
    -------
    array of int
        In the records' order.

    Examples
    --------
    >>> bound_records(["ann", "bob", "ann", "ann"], 2, rule="choose", marks=[0.3, 0.9, 0.1, 0.2]).tolist()
    [1, 2, 3]
    """
    validate.one_of(RULES, max_records_rule=rule)
    known = units if isinstance(units, Units) else Units.named(units)
    if rule == "refuse":
        known.refuse_above(max_records, unit=unit)
        return np.arange(len(known.of))
    validate.integer_at_least(1, max_records=max_records)
    drawn = secret_stream().get().random(len(known.of)) if marks is None else np.asarray(marks, dtype=np.float64)
    if len(drawn) != len(known.of):
        raise InvalidValue(f"marks has {len(drawn)} numbers for {len(known.of)} records; give one for each record.")
    kept = [rows[np.argsort(drawn[rows], kind="stable")[:max_records]] for rows in known.members()]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype=np.int64)


def record_mark(record: Any, *, seed: int = 0) -> float:
    """A number in [0, 1) that follows from a record's content and a public seed, the same at every start."""
    content = json.dumps(record, sort_keys=True, default=str, ensure_ascii=True)
    return int(hashlib.sha256(f"{seed}/{content}".encode()).hexdigest()[:13], 16) / 16**13


class RecordDraws:
    """Records drawn one by one: each is a contribution of its own."""

    is_test = False

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, drawn: Iterable[int]) -> list[list[int]]:
        """Positions of the records of each contribution."""
        return [[i] for i in drawn]


class UnitDraws(Secret):
    """The records of drawn units: all of a unit's, or ``records_per_unit`` of them by a fresh uniform choice.

    Parameters
    ----------
    units : Units
    records_per_unit : int
        G >= 1.
    generator : numpy.random.Generator or None
        For tests only.
    """

    def __init__(self, units: Units, records_per_unit: int, *, generator: np.random.Generator | None = None) -> None:
        validate.integer_at_least(1, records_per_unit=records_per_unit)
        self.count, self.records_per_unit = units.count, records_per_unit
        self.is_test = generator is not None
        self._members = units.members()
        self._stream = secret_stream(generator)

    def rows(self, drawn: Iterable[int]) -> list[list[int]]:
        """Positions of the records of each drawn unit, in order."""
        return [self._some(self._members[unit]) for unit in drawn]

    def _some(self, members: NDArray[np.int64]) -> list[int]:
        if len(members) > self.records_per_unit:
            members = np.sort(self._stream.get().choice(members, self.records_per_unit, replace=False, shuffle=False))
        return [int(i) for i in members]


def draws_of(plan: PrivacyPlan, records: int, units: Units | Iterable[Any] | None) -> RecordDraws | UnitDraws:
    """What the plan's sampler draws: records, whose units are held against the bound, or whole units.

    Raises
    ------
    InvalidValue
        If units are to be drawn and none are given, or one has more records than the plan says.
    """
    known = units if isinstance(units, Units) or units is None else Units.named(units, records=records)
    if known is not None and len(known.of) != records:
        raise InvalidValue(f"units has {len(known.of)} entries for {records} records; give one for each record.")
    if plan.records_per_unit is not None:
        if known is None:
            raise InvalidValue("sampling_unit='unit' draws units of records and units=None; give each record's unit.")
        return UnitDraws(known, plan.records_per_unit)
    if known is not None:
        known.refuse_above(plan.max_records_per_unit, unit=plan.unit)
    return RecordDraws(records)


def unit_losses(losses: Tensor, units: Tensor, count: int, *, reduction: str) -> Tensor:
    """(U,) losses of units from (R,) losses of their rows: each unit's mean or sum.

    Parameters
    ----------
    losses : Tensor of shape (R,)
    units : Tensor of shape (R,)
        Unit of each row, in [0, ``count``).
    count : int
        U.
    reduction : str
        "mean" gives every unit's loss the same size whatever its number of rows; "sum" weighs rows alike. Clipping
        bounds either.
    """
    validate.one_of(REDUCTIONS, unit_reduction=reduction)
    total = losses.new_zeros(count).index_add(0, units, losses)
    if reduction == "sum":
        return total
    return total / torch.bincount(units, minlength=count).clamp(min=1).to(losses.dtype)
