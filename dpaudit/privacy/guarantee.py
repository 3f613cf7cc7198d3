"""A guarantee: what an accountant proves about a ledger, as a frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """ε at δ for one ledger by one accountant.

    Attributes
    ----------
    accountant, version : str
        Who found it, and by which version.
    delta : float
        δ in (0, 1).
    relation : Relation
        Neighbouring relation.
    group_size : int
        Units of privacy that the bound covers together.
    epsilon_lower : float or None
        Certified lower bound on the mechanism's true ε; None where the accountant proves none.
    epsilon_upper : float or None
        Certified upper bound; None where the accountant proves none.
    epsilon_estimate : float or None
        Uncertified value (Gaussian-DP central limit); never stands in ``epsilon_upper``.
    rigorous : bool
        True only when ``epsilon_upper`` is a proven bound for this ledger.
    assumption : str
        What the bound rests on, in words.
    seconds : float
        Wall time of the computation.

    Raises
    ------
    InvalidValue
        If an accountant that is not rigorous fills a bound, or the lower bound exceeds the upper one.
    """

    accountant: str
    version: str
    delta: float
    relation: Relation
    group_size: int = 1
    epsilon_lower: float | None = None
    epsilon_upper: float | None = None
    epsilon_estimate: float | None = None
    rigorous: bool
    assumption: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.rigorous and (self.epsilon_upper is not None or self.epsilon_lower is not None):
            raise InvalidValue(
                f"accountant {self.accountant!r} is not rigorous and may not fill an upper or lower bound."
            )
        if (
            self.epsilon_lower is not None
            and self.epsilon_upper is not None
            and self.epsilon_lower > self.epsilon_upper
        ):
            raise InvalidValue(
                f"accountant {self.accountant!r}: epsilon_lower={self.epsilon_lower} exceeds"
                f" epsilon_upper={self.epsilon_upper}; report this ledger as a defect."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value in the form of ``dpaudit account --json``."""
        return {
            "accountant": self.accountant,
            "version": self.version,
            "epsilon_lower": self.epsilon_lower,
            "epsilon_upper": self.epsilon_upper,
            "epsilon_estimate": self.epsilon_estimate,
            "rigorous": self.rigorous,
            "assumption": self.assumption,
            "seconds": self.seconds,
        }


class Bound(Protocol):
    """The bounds of a guarantee: whether they are proven, and what they are."""

    @property
    def rigorous(self) -> bool: ...
    @property
    def epsilon_upper(self) -> float | None: ...
    @property
    def epsilon_lower(self) -> float | None: ...


G = TypeVar("G", bound="Bound | Mapping[str, Any]")


def certified_upper(guarantee: Bound | Mapping[str, Any]) -> float | None:
    """Certified upper bound on ε of a guarantee, or of its plain JSON form; None where it proves none."""
    if isinstance(guarantee, Mapping):
        rigorous, upper = guarantee.get("rigorous"), guarantee.get("epsilon_upper")
    else:
        rigorous, upper = guarantee.rigorous, guarantee.epsilon_upper
    return float(upper) if rigorous and upper is not None else None


def tightest(guarantees: Iterable[G]) -> G | None:
    """The guarantee with the smallest certified upper bound on ε; None where none certifies any.

    Each certified bound holds by itself, so the smallest decides, whatever order the accountants were named in. An
    estimate never decides.

    Parameters
    ----------
    guarantees : iterable of Guarantee, or of their plain JSON form
        For one ledger at one δ and one relation; infinity may stand there as "inf".
    """
    best: tuple[float, G] | None = None
    for guarantee in guarantees:
        upper = certified_upper(guarantee)
        if upper is not None and (best is None or upper < best[0]):
            best = upper, guarantee
    return None if best is None else best[1]


def smallest_upper(guarantees: Iterable[Bound | Mapping[str, Any]]) -> float | None:
    """Smallest certified upper bound on ε, the one that decides; None where none certifies any."""
    return min((upper for g in guarantees if (upper := certified_upper(g)) is not None), default=None)
