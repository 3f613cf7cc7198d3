"""Real records held out by fair coins: a membership audit on the data itself.

Who was held out is as secret as the canaries' coins: it stays in ``private/`` and only counts leave.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries.coins import Coins, flip_coins
from dpaudit.attacks.canaries.secret import write_private
from dpaudit.privacy.commitment import canary_id
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import integer_at_least

IntArray = NDArray[np.int64]
MARK, VERSION = b"dpaudit.holdout", b"1"


@dataclass(frozen=True, slots=True)
class Holdout:
    """Real records of which fair coins decided, before training, whether they are trained on.

    Attributes
    ----------
    candidates : int64 array (m,)
        Indices of the records whose membership was decided by a coin, ascending.
    coins : int8 array (m,)
        1 = trained on, 0 = held out.
    n : int
        Size of the data set.
    """

    candidates: IntArray
    coins: Coins
    n: int

    @property
    def kept(self) -> IntArray:
        """Indices to train on: every record that is no candidate, and the candidates whose coin is 1."""
        keep = np.ones(self.n, dtype=bool)
        keep[self.held_out] = False
        return np.flatnonzero(keep)

    @property
    def held_out(self) -> IntArray:
        """Indices never trained on."""
        out: IntArray = self.candidates[self.coins == 0]
        return out


def unique_records(texts: Sequence[str]) -> IntArray:
    """Indices of the texts that occur once, ascending: a record with a twin in the data cannot be held out."""
    counts = Counter(texts)
    return np.array([i for i, text in enumerate(texts) if counts[text] == 1], dtype=np.int64)


def unique_units(texts: Sequence[str], units: Sequence[int] | IntArray) -> IntArray:
    """Units none of whose texts another unit has, ascending: a unit with a twin elsewhere cannot be held out.

    Parameters
    ----------
    texts : sequence of n str
    units : sequence of n int
        Number of each text's unit, >= 0; a text may occur twice within its unit.
    """
    owner: dict[str, int] = {}
    shared: set[int] = set()
    for text, unit in zip(texts, units, strict=True):
        first = owner.setdefault(text, int(unit))
        if first != unit:
            shared |= {first, int(unit)}
    return np.array(sorted({int(u) for u in units} - shared), dtype=np.int64)


def hold_out(
    n: int,
    holdout_fraction: float,
    *,
    eligible: Sequence[int] | IntArray | None = None,
    generator: np.random.Generator | None = None,
) -> Holdout:
    """Hold real records out by fair coins, for a membership audit on real data.

    A uniform subset of ``round(2 * holdout_fraction * n)`` records becomes candidates and each candidate's coin is
    fair, so that ``holdout_fraction * n`` records are held out on average. A fixed half/half split of a fixed size
    is not covered by the one-run theorems. The result is private: only counts may leave ``private/``.

    Parameters
    ----------
    n : int
        Number of real records; or of units of privacy, where a unit has several records and is held out whole.
    holdout_fraction : float
        Expected share of all n held out, in (0, 0.5].
    eligible : sequence of int, optional
        Records that may be held out, such as ``unique_records``, or units, ``unique_units``; by default all.
    generator : numpy.random.Generator, optional
        For tests only.

    Returns
    -------
    Holdout
        Candidates in ascending order, a coin for each (1 = stays in the data), and n.

    Raises
    ------
    InvalidValue
        If the fraction is outside (0, 0.5], or asks for more candidates than are eligible.
    """
    integer_at_least(1, n=n)
    if not 0 < holdout_fraction <= 0.5:
        raise InvalidValue(
            f"holdout_fraction={holdout_fraction} must be in (0, 0.5]; a fair coin holds out half the candidates."
        )
    pool = np.arange(n) if eligible is None else np.unique(np.asarray(eligible, dtype=np.int64))
    if pool.size and (pool[0] < 0 or pool[-1] >= n):
        raise InvalidValue(
            f"eligible reaches from {pool[0]} to {pool[-1]} and must lie in [0, {n}); give record indices."
        )
    m = round(2 * holdout_fraction * n)
    if not 1 <= m <= pool.size:
        raise InvalidValue(
            f"holdout_fraction={holdout_fraction} of n={n} records asks for {m} candidates and {pool.size} are "
            "eligible; at least 1 and at most all of these can be put to the coin."
        )
    rng = np.random.default_rng(secrets.randbits(128)) if generator is None else generator
    candidates = np.sort(rng.choice(pool, size=m, replace=False)).astype(np.int64)
    return Holdout(candidates, flip_coins(m, generator=generator), n)


def holdout_ids(holdout: Holdout, texts: Sequence[str], nonce: bytes) -> tuple[str, ...]:
    """Opaque ids of the m candidates, bound to index and text under the secret nonce.

    Parameters
    ----------
    texts : sequence of n str
        The whole data set, in the order that ``holdout`` indexes.
    """
    if len(texts) != holdout.n:
        raise InvalidValue(
            f"texts has {len(texts)} records and the holdout was drawn for {holdout.n}; give the same data."
        )
    return tuple(canary_id(nonce, f"{i}\n{texts[i]}") for i in holdout.candidates)


def write_holdout(path: str | os.PathLike[str], holdout: Holdout, ids: Sequence[str]) -> None:
    """Write ``index``, ``id`` and ``coin`` of the candidates atomically with mode 0600; for ``private/`` only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(ids) != len(holdout.candidates) or len(set(ids)) != len(ids):
        raise InvalidValue(f"ids must be unique, one for each of {len(holdout.candidates)} candidates; got {len(ids)}.")
    table = pa.table(
        {
            "index": pa.array(holdout.candidates, pa.int64()),
            "id": pa.array(list(ids), pa.string()),
            "coin": pa.array(holdout.coins, pa.int8()),
        }
    ).replace_schema_metadata({MARK: VERSION, b"n": str(holdout.n).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_private(Path(path), sink.getvalue().to_pybytes())


def read_holdout(path: str | os.PathLike[str]) -> tuple[Holdout, tuple[str, ...]]:
    """Read what :func:`write_holdout` wrote.

    Raises
    ------
    InvalidEvidence
        The file is absent, of another kind, or broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidEvidence(f"{path} cannot be read as a holdout file ({reason}); check the path.") from error
    metadata = table.schema.metadata or {}
    if metadata.get(MARK) != VERSION:
        raise InvalidEvidence(f"{path} is no holdout file of version 1; give the file that the run wrote.")
    coins = np.asarray(table.column("coin").to_numpy(), dtype=np.int8)
    candidates = np.asarray(table.column("index").to_numpy(), dtype=np.int64)
    if not np.isin(coins, (0, 1)).all() or len(np.unique(candidates)) != len(candidates):
        raise InvalidEvidence(f"{path} was changed: coins are not 0 or 1, or an index occurs twice; restore it.")
    return Holdout(candidates, coins, int(metadata[b"n"])), tuple(table.column("id").to_pylist())
