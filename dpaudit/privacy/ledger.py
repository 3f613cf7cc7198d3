"""The ledger as a value: the ordered stages a run executed, and what they protect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation, Stage, merge_identical


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Stages in the order they ran, with the neighbouring relation and the unit of privacy.

    Parameters
    ----------
    stages : tuple of Stage
        What really ran; a crash may over-count and never under-counts.
    relation : Relation
        Neighbouring relation under which the ledger is read.
    unit : str
        Unit of privacy in the users' words: "record", "paragraph", "user".
    max_records_per_unit : int
        Records one unit contributes at most; above 1 the accountant computes the group claim.

    Raises
    ------
    InvalidValue
        If the relation is unknown, the unit is no name, or ``max_records_per_unit`` is below 1.
    """

    stages: tuple[Stage, ...]
    relation: Relation
    unit: str = "record"
    max_records_per_unit: int = 1

    if TYPE_CHECKING:  # for type checkers: the constructor also takes the members' names

        def __init__(
            self,
            *,
            stages: Iterable[Stage],
            relation: Relation | str,
            unit: str = "record",
            max_records_per_unit: int = 1,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "relation", Relation.parse(self.relation))
        validate.integer_at_least(1, max_records_per_unit=self.max_records_per_unit)
        if not self.unit:
            raise InvalidValue("unit='' is empty; name the unit of privacy, such as 'record' or 'user'.")
        validate.label(unit=self.unit)

    @property
    def steps(self) -> int:
        """Total number of noisy releases."""
        return sum(stage.steps for stage in self.stages)

    def merged(self) -> Ledger:
        """The same ledger with consecutive identical stages added up."""
        return dataclasses.replace(self, stages=merge_identical(self.stages))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "relation": str(self.relation),
            "unit": self.unit,
            "max_records_per_unit": self.max_records_per_unit,
            "stages": [stage.to_dict() for stage in self.stages],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Ledger:
        """Read :meth:`to_dict`'s form; unknown or missing keys are refused.

        Parameters
        ----------
        value : mapping
            Plain JSON value.

        Returns
        -------
        Ledger
            Equal to the one that was written.

        Raises
        ------
        InvalidValue
            If a key is unknown or missing, or a value out of its bounds; names it.
        """
        known = {"relation", "unit", "max_records_per_unit", "stages"}
        if not isinstance(value, Mapping):
            raise InvalidValue(
                f"a ledger is {type(value).__name__} and must be an object with {', '.join(sorted(known))}."
            )
        if unknown := sorted(set(value) - known):
            raise InvalidValue(f"ledger key {unknown[0]!r} is unknown; known keys are {', '.join(sorted(known))}.")
        if missing := sorted(known - set(value)):
            raise InvalidValue(f"ledger key {missing[0]!r} is missing; a ledger states it explicitly.")
        if not isinstance(value["stages"], (list, tuple)):
            raise InvalidValue(f"ledger key stages={value['stages']!r:.60} must be a list of stages.")
        stages = tuple(Stage.from_dict(stage) for stage in value["stages"])
        return cls(
            stages=stages,
            relation=Relation.parse(value["relation"]),
            unit=value["unit"],
            max_records_per_unit=value["max_records_per_unit"],
        )
