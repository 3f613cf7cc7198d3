"""Fair coins: which canaries are inserted, and which real records are trained on.

The one-run bounds are theorems about independent fair coins and about nothing else. The coins therefore come from
operating-system entropy, apart from every seed of the run; a generator is accepted for tests only.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.commitment import NONCE_BYTES
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least

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
