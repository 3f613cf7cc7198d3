"""Arrays as short texts: coins as bits, scores as 4-byte and sums as 8-byte numbers, coordinates as gaps; base64."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.errors import InvalidEvidence

MOST = 20_000_000
"""Values that one text may hold."""


def bits_text(values: NDArray[np.bool_]) -> str:
    """Coins or guesses as a bit string, first value in the highest bit, padded with zeros to whole bytes.

    >>> bits_text(np.array([True, False, True]))
    'oA=='
    """
    return _text(np.packbits(np.asarray(values, dtype=np.bool_)).tobytes())


def bits_of(text: object, count: int, *, name: str = "coins") -> NDArray[np.bool_]:
    """The values of :func:`bits_text`; refused when their number is not ``count`` or the padding is not zero."""
    data = _bytes(text, name)
    if len(data) != (count + 7) // 8:
        raise InvalidEvidence(f"{name} has {len(data)} bytes and {count} bits take {(count + 7) // 8}.")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if bits[count:].any():
        raise InvalidEvidence(f"{name} has bits beyond its {count} values.")
    return bits[:count].astype(np.bool_)


def numbers_text(values: NDArray[np.floating], *, width: int) -> str:
    """Numbers as little-endian IEEE 754 of ``width`` bytes each (4 or 8)."""
    return _text(np.ascontiguousarray(values, dtype=f"<f{width}").tobytes())


def numbers_of(text: object, *, width: int, name: str) -> NDArray[np.float64]:
    """The finite numbers of :func:`numbers_text`, as float64."""
    data = _bytes(text, name)
    if len(data) % width:
        raise InvalidEvidence(f"{name} has {len(data)} bytes, no multiple of {width}.")
    values = np.frombuffer(data, dtype=f"<f{width}").astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidEvidence(f"{name} holds numbers that are not finite.")
    return values


def ascending_text(values: NDArray[np.int64]) -> str:
    """Ascending distinct whole numbers from 0, as gaps in groups of seven bits, lowest first."""
    gaps: NDArray[np.int64] = np.diff(np.asarray(values, dtype=np.int64), prepend=-1).astype(np.int64) - 1
    parts, rest, used = [], gaps, np.ones(len(gaps), dtype=np.bool_)
    while used.any():
        more = rest >= 128
        parts.append(np.where(used, (rest & 127) | (more.astype(np.int64) << 7), -1))
        used, rest = used & more, rest >> 7
    columns = np.stack(parts, axis=1) if parts else np.empty((0, 1), dtype=np.int64)
    return _text(columns[columns >= 0].astype(np.uint8).tobytes())


def ascending_of(text: object, *, name: str = "coordinates") -> NDArray[np.int64]:
    """The numbers of :func:`ascending_text`."""
    data = np.frombuffer(_bytes(text, name), dtype=np.uint8)
    if not len(data):
        return np.empty(0, dtype=np.int64)
    ends = np.flatnonzero(data < 128)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise InvalidEvidence(f"{name} ends within a number.")
    starts = np.r_[0, ends[:-1] + 1]
    place = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 7:
        raise InvalidEvidence(f"{name} holds a number above 2^56.")
    terms = (data.astype(np.int64) & 127) << (7 * place)
    values: NDArray[np.int64] = np.cumsum(np.add.reduceat(terms, starts) + 1) - 1
    if values[-1] >= 2**56 or (np.diff(values) < 1).any():
        raise InvalidEvidence(f"{name} are not ascending whole numbers below 2^56.")
    return values


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: object, name: str) -> bytes:
    if not isinstance(text, str) or len(text) > 16 * MOST:
        raise InvalidEvidence(f"{name} must be a base64 text of at most {MOST} values.")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidEvidence(f"{name} is no base64 text ({error}).") from None
    if _text(data) != text:
        raise InvalidEvidence(f"{name} is not written in the one way that base64 allows here.")
    return data
