"""The secret canary file: ``private/canaries.secret.parquet``, mode 0600, written atomically.

One row per canary. Coins and nonce are columns like the others, so that the attack reads the columns it needs and
never touches these two.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.canaries.canary import CanarySet, commit, from_rows
from dpaudit.attacks.canaries.coins import Coins, as_coins
from dpaudit.privacy.commitment import canonical_json
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.parts import PRIVATE_MODE, write_atomically

MARK, VERSION = b"dpaudit.canaries", b"1"
_OPEN = ["id", "text", "input_ids", "scored", "label"]  # what an attack may read
_OTHER = "other_label"  # stands where coins replace labels; an attack may read it too
_SEALED = ["coin", "nonce", "copies"]


@dataclass(frozen=True, slots=True, eq=False)
class Secret:
    """Content of the secret file: canaries, their opaque ids, coins (m,), nonce and copies."""

    canaries: CanarySet
    ids: tuple[str, ...]
    coins: Coins
    nonce: bytes
    copies: int

    @property
    def commitment(self) -> str:
        """The digest that was, or is to be, published before training."""
        return commit(self.canaries, self.coins, self.nonce, self.copies).commitment


def write_secret(path: str | os.PathLike[str], canaries: CanarySet, coins: object, nonce: bytes, copies: int) -> Secret:
    """Write the secret file atomically, readable by its owner only.

    Parameters
    ----------
    path : path
        Usually ``private/canaries.secret.parquet``; the folder is made (mode 0700) when absent.
    canaries : CanarySet
        m canaries.
    coins : array (m,) of 0/1
        1 = inserted.
    nonce : bytes
        32 secret bytes.
    copies : int
        How often an inserted canary stands in the data; k copies test the group-k claim.

    Returns
    -------
    Secret
        What was written, with the ids that the nonce gives.

    Raises
    ------
    InvalidValue
        If coins are not m of 0 and 1, the nonce has not 32 bytes, or ``copies`` is below 1.
    OSError
        If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flips = as_coins(coins, len(canaries))
    committed = commit(canaries, flips, nonce, copies)
    m = len(canaries)
    labels = [None] * m if canaries.labels is None else canaries.labels.tolist()
    rows = [canaries.input_ids[i, : int(n)].tolist() for i, n in enumerate(canaries.lengths)]
    others = {} if canaries.others is None else {_OTHER: pa.array(canaries.others, pa.int32())}
    table = pa.table(
        {
            "id": pa.array(committed.ids, pa.string()),
            "text": pa.array(canaries.texts, pa.string()),
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "scored": pa.array([np.flatnonzero(row).tolist() for row in canaries.score_mask], pa.list_(pa.int32())),
            "label": pa.array(labels, pa.int32()),
            **others,
            "coin": pa.array(flips, pa.int8()),
            "nonce": pa.array([nonce] * m, pa.binary()),
            "copies": pa.array([copies] * m, pa.int32()),
        }
    ).replace_schema_metadata(
        {
            MARK: VERSION,
            b"kind": canaries.kind.encode(),
            b"params": canonical_json(dict(canaries.params)),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_private(Path(path), sink.getvalue().to_pybytes())
    return Secret(canaries, committed.ids, flips, nonce, copies)


def read_secret(path: str | os.PathLike[str]) -> Secret:
    """Read the secret file whole; refuses one whose ids are not the HMAC of its texts.

    Parameters
    ----------
    path : path
        As :func:`write_secret` was given.

    Returns
    -------
    Secret
        Canaries, ids, coins, nonce and copies.

    Raises
    ------
    InvalidEvidence
        The file is absent, of another kind, or was changed.
    """
    table = _read(path, [*_OPEN, *_SEALED])
    canaries, ids = _canaries(table, path)
    coins = np.asarray(table.column("coin").to_numpy(), dtype=np.int8)
    nonces = set(table.column("nonce").to_pylist())
    copies = set(table.column("copies").to_pylist())
    if len(nonces) != 1 or len(copies) != 1:
        raise InvalidEvidence(
            f"{path} holds {len(nonces)} nonces and {len(copies)} copy counts and must hold one each."
        )
    secret = Secret(canaries, ids, coins, nonces.pop(), copies.pop())
    try:
        expected = commit(canaries, coins, secret.nonce, secret.copies).ids
    except InvalidValue as error:
        raise InvalidEvidence(f"{path} was changed: {error}") from error
    if expected != ids:
        changed = [a for a, b in zip(ids, expected, strict=True) if a != b]
        raise InvalidEvidence(
            f"{path} was changed: {len(changed)} ids are not the HMAC of their text (first: {changed[0]}); "
            "restore the file that was written before training."
        )
    return secret


def read_open(path: str | os.PathLike[str]) -> tuple[CanarySet, tuple[str, ...]]:
    """Canaries and opaque ids for an attack: the columns of coins and nonce are not read.

    Returns
    -------
    canaries, ids
    """
    return _canaries(_read(path, _OPEN), path)


def write_private(path: Path, data: bytes) -> None:
    """Write bytes atomically with mode 0600: temporary name, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, data, mode=PRIVATE_MODE)


def is_secret(path: str | os.PathLike[str]) -> bool:
    """Whether a Parquet file is a secret canary file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return MARK in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException) as error:
        raise InvalidEvidence(f"{path} cannot be read as Parquet ({_reason(error)}); check the path.") from error


def _read(path: str | os.PathLike[str], columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        if (schema.metadata or {}).get(MARK) != VERSION:
            raise InvalidEvidence(f"{path} is no secret canary file of version 1; give the file that the run wrote.")
        return pq.read_table(path, columns=[*columns, *(name for name in (_OTHER,) if name in schema.names)])
    except (OSError, pa.ArrowException) as error:
        raise InvalidEvidence(
            f"{path} cannot be read as a secret canary file ({_reason(error)}); check the path."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _canaries(table: Any, path: object) -> tuple[CanarySet, tuple[str, ...]]:
    metadata = table.schema.metadata
    labels = table.column("label").to_pylist()
    if any(label is None for label in labels) and any(label is not None for label in labels):
        raise InvalidEvidence(f"{path} gives a label to some canaries and not to others; labels are all or none.")
    try:
        canaries = from_rows(
            table.column("text").to_pylist(),
            table.column("input_ids").to_pylist(),
            table.column("scored").to_pylist(),
            kind=metadata[b"kind"].decode(),
            params=json.loads(metadata[b"params"]),
            labels=None if labels[:1] in ([None], []) else labels,
            others=table.column(_OTHER).to_pylist() if _OTHER in table.column_names else None,
        )
    except InvalidValue as error:
        raise InvalidEvidence(f"{path} was changed: {error}") from error
    return canaries, tuple(table.column("id").to_pylist())
