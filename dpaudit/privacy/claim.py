"""The claim: the guarantee that a model's maker states, as a frozen value."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The privacy a model's maker claims.

    Parameters
    ----------
    epsilon : float
        Claimed upper bound ε > 0.
    delta : float
        δ in (0, 1).
    relation : Relation
        Neighbouring relation.
    unit : str
        Unit of privacy, such as "record" or "user".
    max_records_per_unit : int
        Records that one unit contributes at most.

    Raises
    ------
    InvalidValue
        If ε is not finite and positive, δ is outside (0, 1), the relation is unknown, or the unit is no name.
    """

    epsilon: float
    delta: float
    relation: Relation
    unit: str
    max_records_per_unit: int

    if TYPE_CHECKING:  # for type checkers: the constructor also takes the members' names

        def __init__(
            self,
            *,
            epsilon: float,
            delta: float,
            relation: Relation | str,
            unit: str,
            max_records_per_unit: int,
        ) -> None: ...

    def __post_init__(self) -> None:
        validate.positive(epsilon=self.epsilon)
        validate.finite(epsilon=self.epsilon)
        validate.open_unit(delta=self.delta)
        object.__setattr__(self, "relation", Relation.parse(self.relation))
        validate.integer_at_least(1, max_records_per_unit=self.max_records_per_unit)
        if not self.unit:
            raise InvalidValue("unit='' is empty; name the unit of privacy, such as 'record' or 'user'.")
        validate.label(unit=self.unit)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {**dataclasses.asdict(self), "relation": str(self.relation)}
