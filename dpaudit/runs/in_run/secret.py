"""The secret of the in-run canaries, ``private/in_run.secret.json``: coordinates, coins and the commitment's nonce."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.auditing.in_run.arrays import ascending_of, ascending_text, bits_of, bits_text
from dpaudit.auditing.in_run.evidence import in_run_manifest
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.commitment import NONCE_BYTES, commitment
from dpaudit.storage.files import PRIVATE_MODE
from dpaudit.storage.run_folder import read_json, write_json

SECRET_SCHEMA = "dpaudit.in_run_secret/1"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class InRunSecret:
    """Coordinates and coins of a run's in-run canaries.

    Attributes
    ----------
    coordinates : int64 array (m,)
        Ascending.
    coins : bool array (m,)
        Whether each canary is in the data.
    dimension : int
        Coordinates of one release.
    nonce : bytes
        32 bytes from operating-system entropy.
    """

    coordinates: NDArray[np.int64]
    coins: NDArray[np.bool_]
    dimension: int
    nonce: bytes

    @property
    def commitment(self) -> str:
        """The digest that stands in the plan."""
        return commitment(self.nonce, in_run_manifest(self.coordinates, self.coins, self.dimension))


def write_secret(path: Path, secret: InRunSecret) -> None:
    """Write the secret atomically, readable by its owner only."""
    value = {
        "schema": SECRET_SCHEMA,
        "dimension": secret.dimension,
        "m": len(secret.coordinates),
        "coordinates": ascending_text(secret.coordinates),
        "coins": bits_text(secret.coins),
        "nonce": secret.nonce.hex(),
    }
    write_json(path, value, mode=PRIVATE_MODE)


def read_secret(path: Path) -> InRunSecret:
    """Read the secret; :class:`InvalidEvidence` when it is missing or of another form."""
    value = read_json(path)
    try:
        if value["schema"] != SECRET_SCHEMA:
            raise InvalidEvidence(
                f"{path} has schema {value['schema']!r:.40}, not {SECRET_SCHEMA!r}; restore the file."
            )
        coordinates = ascending_of(value["coordinates"])
        secret = InRunSecret(
            coordinates=coordinates,
            coins=bits_of(value["coins"], len(coordinates)),
            dimension=int(value["dimension"]),
            nonce=bytes.fromhex(value["nonce"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidEvidence):
            raise
        raise InvalidEvidence(f"{path} is no secret of in-run canaries ({error!r:.80}); restore the file.") from None
    if len(secret.nonce) != NONCE_BYTES:
        raise InvalidEvidence(f"{path} has a nonce of {len(secret.nonce)} bytes, not {NONCE_BYTES}; restore the file.")
    return secret
