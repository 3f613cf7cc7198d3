"""Opaque ids of canaries with their coins: what is committed before training and opened after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.privacy import validate
from dpaudit.privacy.commitment import NONCE_BYTES, commitment, manifest
from dpaudit.privacy.errors import InvalidValue

ALIVE = "beacons"
"""Name of the finding that a plan's beacons were told apart, so that the attack is alive."""
FEWEST_BEACONS = 40
"""Fewest beacons of a run: 32 of them, 13 inserted and perfectly told apart, have p = 1.2e-6, short of the level."""
SUBSTITUTION = "label_substitution"
"""Kind of the canaries that a coin replaces by another record, where it puts others in or leaves them out."""


def substituted(plan: Mapping[str, Any] | None) -> bool:
    """Whether an audit plan's coins replace canaries, so that each is a pair of records by itself (replace_one)."""
    parameters = (plan or {}).get("attack_parameters")
    made = parameters.get("canaries") if isinstance(parameters, Mapping) else None
    return isinstance(made, Mapping) and made.get("kind") == SUBSTITUTION


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """An opened canary manifest; checked once, when it is made.

    Attributes
    ----------
    ids, coins
        Opaque ids, each once, and 0/1 coins of equal length; 1 = inserted.
    copies : int
        Times an inserted canary stands in the data.
    nonce : bytes or None
        32 bytes; with ids and coins it opens the commitment inside the audit plan. None where nothing was committed.
    published : str or None
        Digest that the manifest's file says was published before training.

    Raises
    ------
    InvalidValue
        When an id is repeated, a coin is neither 0 nor 1, or the nonce has another length.
    """

    ids: tuple[str, ...]
    coins: tuple[int, ...]
    copies: int
    nonce: bytes | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        validate.integer_at_least(1, copies=self.copies)
        if len(self.ids) != len(self.coins) or len(set(self.ids)) != len(self.ids) or not self.ids:
            raise InvalidValue(
                f"{len(self.coins)} canaries with {len(set(self.ids))} ids are no manifest; every id needs one coin."
            )
        if any(isinstance(coin, bool) or coin not in (0, 1) for coin in self.coins):
            raise InvalidValue("a coin other than 0 and 1 stands in the manifest; restore it.")
        if self.nonce is not None and len(self.nonce) != NONCE_BYTES:
            raise InvalidValue(
                f"a nonce of {len(self.nonce)} bytes, not {NONCE_BYTES}, opens nothing; restore the manifest."
            )

    @property
    def by_id(self) -> dict[str, int]:
        """Coin of each id."""
        return dict(zip(self.ids, self.coins, strict=True))

    @property
    def commitment(self) -> str | None:
        """The digest that ids, coins and nonce open; None without a nonce."""
        return None if self.nonce is None else commitment(self.nonce, self.manifest())

    def manifest(self) -> dict[str, Any]:
        """Ids with coins in the canonical form that is committed to."""
        return manifest(self.ids, self.coins, self.copies)
