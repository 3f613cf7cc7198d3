"""Units of privacy of a data set in Hugging Face's Trainer: told by a column or by names, bounded, and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.draw import Draw
from dpaudit.trainers.huggingface.arguments import PrivacyArguments
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.sampling import countable
from dpaudit.trainers.units import RULES, RecordDraws, UnitDraws, Units, bound_records, draws_of, record_mark


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetUnits:
    """The records that stay under the bound, and what the sampler draws of them.

    Parameters
    ----------
    dataset : data set or None
        As given, or the chosen part of it.
    drawn : RecordDraws or UnitDraws
        Records, or whole units.
    column : str or None
        Column that told the units; it never reaches the collator.
    statement : dict
        How the unit of privacy was enforced, for the record beside the model; without a count.
    units : Units or None
        Whose the records are, where that was told.
    """

    dataset: Any
    drawn: RecordDraws | UnitDraws
    column: str | None
    statement: dict[str, Any]
    units: Units | None = None

    @classmethod
    def of(
        cls, dataset: Any, plan: PrivacyPlan, arguments: PrivacyArguments | None, units: Iterable[Any] | None
    ) -> DatasetUnits:
        """Bound the records of each unit before anything is drawn.

        Raises
        ------
        InvalidValue
            If a unit has more records than the plan says and the rule is to refuse, or the units cannot be told.
        """
        column = None if arguments is None else arguments.unit_column
        rule = "refuse" if arguments is None else arguments.max_records_rule
        if column is not None and units is not None:
            raise InvalidValue(f"units and unit_column={column!r} both tell the units of privacy; give one of them.")
        validate.one_of(RULES, max_records_rule=rule)
        if dataset is None:  # a trainer that only evaluates
            return cls(None, RecordDraws(0), column, _stated(plan, column, rule))
        size = countable(dataset)
        names = units if column is None else _cells(dataset, column)
        if names is None:
            return cls(dataset, draws_of(plan, size, None), None, _stated(plan, None))
        known = Units.named(names, records=size)
        if rule == "choose" and not plan.draws_units:
            marks = [record_mark(dataset[i]) for i in range(size)]
            kept = bound_records(known, plan.max_records_per_unit, rule=rule, unit=plan.unit, marks=marks)
            dataset = _chosen(dataset, kept.tolist())
            known = Units.named([int(known.of[i]) for i in kept])
        return cls(dataset, draws_of(plan, len(known.of), known), column, _stated(plan, column or "units", rule), known)

    @property
    def placed(self) -> Any:
        """The data set as the loader indexes it; where units are drawn, each record comes with its unit's number."""
        return _Placed(self.dataset) if isinstance(self.drawn, UnitDraws) else self.dataset

    def draw(self, records: Sequence[Any]) -> Draw:
        """A draw of the records that the loader fetched, those of one unit together."""
        if not isinstance(self.drawn, UnitDraws):
            return Draw.of(records, [[i] for i in range(len(records))])
        groups: dict[int, list[int]] = {}
        for place, (unit, _) in enumerate(records):
            groups.setdefault(unit, []).append(place)
        return Draw.of([record for _, record in records], list(groups.values()))

    def without_column(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """The collator, on records that do not name their unit."""
        column = self.column
        if column is None:
            return collate
        return lambda records: collate([{k: v for k, v in record.items() if k != column} for record in records])


class _Placed:
    """Records under the keys (unit, position), so that a record fetched tells which drawn unit it belongs to."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        return key[0], self._dataset[key[1]]


def _cells(dataset: Any, column: str) -> list[Any]:
    """A column of a data set, whose cells are plain values."""
    names = getattr(dataset, "column_names", None)
    if names is not None and column not in names:
        raise InvalidValue(f"unit_column={column!r} is no column of the data set, which has {', '.join(names)}.")
    if names is not None:
        cells = list(dataset[column])
    else:
        try:
            cells = [dataset[i][column] for i in range(len(dataset))]
        except (KeyError, TypeError, IndexError):
            raise InvalidValue(
                f"unit_column={column!r} is missing from a record; give every record its unit."
            ) from None
    return [cell.item() if hasattr(cell, "item") else cell for cell in cells]


def _chosen(dataset: Any, kept: list[int]) -> Any:
    return dataset.select(kept) if hasattr(dataset, "select") else [dataset[i] for i in kept]


def _stated(plan: PrivacyPlan, column: str | None, rule: str = "assumed") -> dict[str, Any]:
    stated: dict[str, Any] = {"column": column, "drawn": plan.sampling_unit}
    if plan.draws_units:
        return stated | {"records_of_a_step": plan.records_per_unit, "reduction": plan.unit_reduction}
    return stated | {"max_records": plan.max_records_per_unit, "rule": "assumed" if column is None else rule}
