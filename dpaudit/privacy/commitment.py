"""Canonical JSON, digests, and the commitment to the canaries' coins.

The commitment is SHA-256(nonce ‖ canonical manifest with coins), published before the first step. An opaque
canary id is HMAC-SHA-256(nonce, text), so that the manifest binds the texts without containing them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

from dpaudit.privacy.errors import InvalidValue

NONCE_BYTES = 32


def canonical_json(value: Any) -> bytes:
    """Encode a plain JSON value in one way only: sorted keys, no spaces, UTF-8, no NaN.

    Raises
    ------
    InvalidValue
        For half of a surrogate pair, which UTF-8 cannot hold, and for NaN and infinities.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(
            f"a text holds {error.object[error.start]!a}, half of a surrogate pair, which no file can hold; remove it."
        ) from None
    except ValueError as error:
        raise InvalidValue(f"a value is not plain JSON ({error}); give finite numbers and plain values.") from None


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def canary_id(nonce: bytes, text: str) -> str:
    """Opaque id (32 hexadecimal digits) that binds a canary's text under the secret nonce.

    Parameters
    ----------
    nonce : bytes
        The 32 secret bytes of the commitment.
    text : str
        The canary's text.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hmac.new(nonce, text.encode("utf-8"), hashlib.sha256).hexdigest()[:32]


def manifest(ids: Sequence[str], coins: Sequence[int], copies: int) -> dict[str, Any]:
    """Manifest of a canary set: opaque ids with coins (1 = inserted), ordered by id.

    Parameters
    ----------
    ids, coins : sequences of equal length m
        Opaque ids, unique, and 0/1 coins.
    copies : int
        How many times an inserted canary stands in the data.

    Returns
    -------
    dict
        Plain JSON value, for :func:`commitment`.

    Raises
    ------
    InvalidValue
        If ids are not unique, or coins are not as many.
    """
    if len(ids) != len(coins) or len(set(ids)) != len(ids):
        raise InvalidValue(
            f"a manifest needs one coin for each of its unique ids; got {len(ids)} ids, {len(coins)} coins."
        )
    rows = sorted((str(i), int(c)) for i, c in zip(ids, coins, strict=True))
    return {"version": 1, "copies": int(copies), "canaries": [[i, c] for i, c in rows]}


def commitment(nonce: bytes, canary_manifest: dict[str, Any]) -> str:
    """SHA-256(nonce ‖ canonical manifest), hexadecimal.

    Parameters
    ----------
    nonce : bytes
        32 secret bytes from the operating system.
    canary_manifest : dict
        As :func:`manifest` gives it.

    Returns
    -------
    str
        64 hexadecimal digits, which may be published before training.

    Raises
    ------
    InvalidValue
        If the nonce has not 32 bytes.
    """
    if len(nonce) != NONCE_BYTES:
        raise InvalidValue(f"the nonce has {len(nonce)} bytes and must have {NONCE_BYTES}; draw it from os.urandom.")
    return sha256_bytes(nonce + canonical_json(canary_manifest))
