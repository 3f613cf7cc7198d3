"""Fair coins: which canaries are inserted, and which real records are held out.

The one-run bounds are theorems about independent fair coins and about nothing else. The coins therefore come from
operating-system entropy, apart from every seed of the run; a generator is accepted for tests only.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit._commitment import NONCE_BYTES
from dpaudit._errors import InvalidValue
from dpaudit._validate import integer_at_least

IntArray = NDArray[np.int64]
Coins = NDArray[np.int8]


def flip_coins(m: int, *, generator: np.random.Generator | None = None) -> Coins:
    """Independent fair coins, 1 = inserted.

    Parameters
    ----------
    m : int
        Number of coins, at least 1.
    generator : numpy.random.Generator, optional
        For tests only: the coins of a real audit come from operating-system entropy, which this default uses.

    Returns
    -------
    ndarray of shape (m,), int8, each 0 or 1
    """
    integer_at_least(1, m=m)
    size = (m + 7) // 8
    raw = secrets.token_bytes(size) if generator is None else generator.bytes(size)
    return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=m).astype(np.int8)


def draw_nonce() -> bytes:
    """A fresh secret nonce for the commitment, from operating-system entropy."""
    return secrets.token_bytes(NONCE_BYTES)


def as_coins(coins: object, m: int) -> Coins:
    """Check coins against m canaries: shape (m,), every value 0 or 1."""
    array = np.asarray(coins)
    if array.shape != (m,):
        raise InvalidValue(f"coins have shape {array.shape} and must have shape ({m},): one coin for each canary.")
    if not np.isin(array, (0, 1)).all():
        raise InvalidValue("coins must be 0 (left out) or 1 (inserted); draw them with flip_coins(m).")
    return array.astype(np.int8)


@dataclass(frozen=True, slots=True)
class Holdout:
    """Real records put to the coin before training.

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


def hold_out(n: int, holdout_fraction: float, *, generator: np.random.Generator | None = None) -> Holdout:
    """Hold real records out by fair coins, for a membership audit on real data.

    A uniform subset of ``round(2 * holdout_fraction * n)`` records becomes candidates and each candidate's coin is
    fair, so that ``holdout_fraction * n`` records are held out on average. A fixed half/half split of a fixed size
    is not covered by the one-run theorems. The result is private: only counts may leave ``private/``.

    Parameters
    ----------
    n : int
        Number of real records.
    holdout_fraction : float
        Expected share held out, in (0, 0.5].
    generator : numpy.random.Generator, optional
        For tests only.
    """
    integer_at_least(1, n=n)
    if not 0 < holdout_fraction <= 0.5:
        raise InvalidValue(
            f"holdout_fraction={holdout_fraction} must be in (0, 0.5]; a fair coin holds out half the candidates."
        )
    m = min(n, round(2 * holdout_fraction * n))
    if m < 1:
        raise InvalidValue(
            f"holdout_fraction={holdout_fraction} of n={n} records leaves no candidate; it must be at least {0.5 / n}."
        )
    rng = np.random.default_rng(secrets.randbits(128)) if generator is None else generator
    candidates = np.sort(rng.choice(n, size=m, replace=False)).astype(np.int64)
    return Holdout(candidates, flip_coins(m, generator=generator), n)
