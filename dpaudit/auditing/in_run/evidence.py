"""What an in-run audit saw: scores, coordinates, the energy of the releases, and the counts of a simulated control."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.auditing.energy import ReleaseEnergy
from dpaudit.auditing.in_run.arrays import (
    ascending_of,
    ascending_text,
    bits_text,
    numbers_of,
    numbers_text,
)
from dpaudit.auditing.independent import ProfileCounts
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import Scores

IN_RUN_SCHEMA = "dpaudit.in_run/1"
_COLUMNS = ("step_squares", "probe_squares", "lagged")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlRun:
    """One repetition of the simulated control, as the counts that the audit's tests need.

    Attributes
    ----------
    counts : tuple of ProfileCounts
        Its counted canaries in the events that its others set.
    guesses, correct : int
        Guesses at the plan's share, and those that were right.
    sha256 : str
        Digest of its scores and coins, which the trainer keeps: float32 scores ‖ coins as bytes 0 or 1.
    """

    counts: tuple[ProfileCounts, ...]
    guesses: int
    correct: int
    sha256: str

    def __post_init__(self) -> None:
        validate.integer_at_least(0, guesses=self.guesses, correct=self.correct)
        if self.correct > self.guesses:
            raise InvalidValue(f"{self.correct} of {self.guesses} guesses right is no count of the control's canaries.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InRunEvidence:
    """Everything that an in-run audit reads.

    Attributes
    ----------
    coordinates : int64 array (m,)
        The canaries' coordinates, ascending; numbers of the canaries for zeroth order.
    scores : float64 array (m,)
        Log-likelihood ratios in nats, rounded to float32 when the value is made; higher = member.
    coins : bool array (m,)
        Whether each canary was in the data.
    energy : ReleaseEnergy or None
        Of every release; None where the mechanism has none that can be tested.
    control : tuple of ControlRun
        Repetitions of the simulated control.
    """

    coordinates: NDArray[np.int64]
    scores: NDArray[np.float64]
    coins: NDArray[np.bool_]
    energy: ReleaseEnergy | None
    control: tuple[ControlRun, ...] = ()

    def __post_init__(self) -> None:
        m = len(self.coordinates)
        if self.scores.shape != (m,) or self.coins.shape != (m,):
            raise InvalidEvidence(
                f"{m} in-run canaries have {self.scores.size} scores and {self.coins.size} coins; give one of each."
            )
        object.__setattr__(self, "scores", self.scores.astype(np.float32).astype(np.float64))
        if not np.isfinite(self.scores).all():
            raise InvalidEvidence("scores of in-run canaries must be finite; the run released numbers that are not.")

    def scored(self) -> Scores:
        """The canaries' scores and coins, under their coordinates as ids."""
        return Scores([str(c) for c in self.coordinates.tolist()], self.scores, self.coins)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value of ``release/in_run.json``: everything but the coins, which the certificate opens."""
        return {
            "schema": IN_RUN_SCHEMA,
            "m": len(self.coordinates),
            "coordinates": ascending_text(self.coordinates),
            "scores": numbers_text(self.scores, width=4),
            "energy": None if self.energy is None else energy_to_dict(self.energy),
            "control": [dataclasses.asdict(run) for run in self.control],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], coins: NDArray[np.bool_]) -> InRunEvidence:
        """Read what :meth:`to_dict` gave; anything of another form is refused in one sentence."""
        if value.get("schema") != IN_RUN_SCHEMA:
            raise InvalidEvidence(f"in-run evidence has schema={value.get('schema')!r:.40}, not {IN_RUN_SCHEMA!r}.")
        if set(value) != {"schema", "m", "coordinates", "scores", "energy", "control"}:
            raise InvalidEvidence("in-run evidence has unknown or missing keys; restore the file.")
        coordinates = ascending_of(value["coordinates"])
        if value["m"] != len(coordinates):
            raise InvalidEvidence(f"in-run evidence states m={value['m']!r:.20} and holds {len(coordinates)}.")
        energy = value["energy"]
        return cls(
            coordinates=coordinates,
            scores=numbers_of(value["scores"], width=4, name="scores"),
            coins=np.asarray(coins, dtype=np.bool_),
            energy=None if energy is None else energy_from_dict(energy),
            control=_control(value["control"]),
        )

    def manifest(self, dimension: int) -> dict[str, Any]:
        """What the commitment of the plan binds: SHA-256(nonce ‖ canonical JSON of this)."""
        return in_run_manifest(self.coordinates, self.coins, dimension)


def in_run_manifest(coordinates: NDArray[np.int64], coins: NDArray[np.bool_], dimension: int) -> dict[str, Any]:
    """Coordinates and coins as one plain value, for the commitment that is published before the first step."""
    return {
        "version": 1,
        "kind": "in_run",
        "dimension": int(dimension),
        "m": len(coordinates),
        "coordinates": ascending_text(coordinates),
        "coins": bits_text(coins),
    }


def energy_to_dict(energy: ReleaseEnergy) -> dict[str, Any]:
    """Plain JSON value of an energy record; sums as 8-byte numbers in base64."""
    return {
        "blocks": list(energy.blocks),
        "sizes": [int(n) for n in energy.sizes],
        "probe": [int(n) for n in energy.probe],
        "block_squares": numbers_text(energy.block_squares, width=8),
        **{name: numbers_text(getattr(energy, name), width=8) for name in _COLUMNS},
        "within": numbers_text(energy.within, width=8),
    }


def energy_from_dict(value: Any) -> ReleaseEnergy:
    """Read what :func:`energy_to_dict` gave."""
    names = {"blocks", "sizes", "probe", "block_squares", "within", *_COLUMNS}
    if not isinstance(value, Mapping) or set(value) != names:
        raise InvalidEvidence("the energy record has unknown or missing keys; restore the file.")
    within = numbers_of(value["within"], width=8, name="within")
    if len(within) % 2:
        raise InvalidEvidence("within holds two products for each step and an odd number of them.")
    return ReleaseEnergy(
        blocks=tuple(str(name) for name in _list(value["blocks"], "blocks")),
        sizes=_whole(value["sizes"], "sizes"),
        probe=_whole(value["probe"], "probe"),
        block_squares=numbers_of(value["block_squares"], width=8, name="block_squares"),
        within=within.reshape(-1, 2),
        **{name: numbers_of(value[name], width=8, name=name) for name in _COLUMNS},
    )


def energy_from_state(state: Mapping[str, Any]) -> ReleaseEnergy | None:
    """The energy record of a ``ReleaseRecorder``'s state; None before its first release."""
    if not state["step_squares"]:
        return None
    floats = ("step_squares", "block_squares", "probe_squares", "lagged")
    return ReleaseEnergy(
        blocks=tuple(state["blocks"]),
        sizes=np.asarray(state["sizes"], dtype=np.int64),
        probe=np.asarray(state["probe"], dtype=np.int64),
        within=np.asarray(state["within"], dtype=np.float64).reshape(-1, 2),
        **{name: np.asarray(state[name], dtype=np.float64) for name in floats},
    )


def _control(value: Any) -> tuple[ControlRun, ...]:
    runs = []
    for row in _list(value, "control"):
        try:
            counts = tuple(ProfileCounts(**event) for event in _list(row["counts"], "counts"))
            runs.append(ControlRun(**{**row, "counts": counts}))
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidEvidence(f"a control of the in-run audit cannot be read ({error}).") from None
    return tuple(runs)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > 100_000:
        raise InvalidEvidence(f"{name} of the in-run evidence must be a list of at most 100,000 values.")
    return value


def _whole(value: Any, name: str) -> NDArray[np.int64]:
    items = _list(value, name)
    if any(type(n) is not int or not 0 <= n < 2**56 for n in items):
        raise InvalidEvidence(f"{name} of the energy record must be whole numbers from 0.")
    return np.asarray(items, dtype=np.int64)
