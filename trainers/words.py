"""Random bits of a cryptographic generator: OpenSSL's, or the operating system's directly."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainers.secret import PerProcess

try:
    import ssl
except ImportError:  # a Python built without OpenSSL
    ssl = None  # type: ignore[assignment]

_ADDED_AFTER = 6 << 20  # bytes, those of 2²⁰ values, between two additions of the operating system's entropy


class Words(Protocol):
    """Where random bits come from."""

    def uniforms(self, out: NDArray[np.float64]) -> None:
        """Fill with uniform multiples of 2⁻⁵³ in (0, 1]."""

    def integers(self, count: int) -> NDArray[np.int32]:
        """Uniform integers of 32 bits."""


class BytesWords:
    """Words from a function that returns so many random bytes; no bit is used twice and none is kept.

    Parameters
    ----------
    take : callable
        Returns as many uniform random bytes as it is asked for.
    """

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take = take

    def uniforms(self, out: NDArray[np.float64]) -> None:
        """Fill with uniform multiples of 2⁻⁵³ in (0, 1]."""
        signed = np.frombuffer(self._take(8 * out.size), dtype=np.int64) >> 11  # -2⁵² to 2⁵² - 1
        np.multiply(signed, 2.0**-53, out=out)
        np.add(out, 0.5 + 2.0**-53, out=out)  # exact: a multiple of 2⁻⁵³ that is at most 1

    def integers(self, count: int) -> NDArray[np.int32]:
        """Uniform integers of 32 bits."""
        return np.frombuffer(self._take(4 * count), dtype=np.int32)


class OpenSSL:
    """OpenSSL's generator in one process; from its first failure on, the operating system's takes its place.

    ``RAND_bytes`` is a deterministic generator that the operating system seeds and seeds again (CTR-DRBG with AES-256,
    unless OpenSSL is configured otherwise), with a state for each thread and another one in a forked child. Entropy of
    the operating system is added at the first call in a process and every 2²⁰ values, so that two copies of a virtual
    machine soon part. Threads may share an object: calls at once move the next addition, and nothing else.
    """

    def __init__(self) -> None:
        self._works = ssl is not None and ssl.RAND_status()
        self._has_given = False
        self._left = 0  # bytes until the next addition

    def take(self, count: int) -> bytes:
        """So many random bytes."""
        if self._works:
            try:
                if self._left < count:
                    ssl.RAND_add(os.urandom(32), 32.0)
                    self._left = _ADDED_AFTER
                self._left -= count
                drawn = ssl.RAND_bytes(count)
            except ssl.SSLError:
                self._works = False
            else:
                self._has_given = True
                return drawn
        return os.urandom(count)

    def statement(self) -> str:
        """Which generator gave the bits so far in this process, or gives the first ones."""
        if self._works:
            return (
                "OpenSSL's cryptographic generator (seeded from the operating system, whose own takes its place if it"
                " fails)"
            )
        if self._has_given:
            return "OpenSSL's cryptographic generator and, after it failed, the operating system's"
        return "the operating system's cryptographic generator (OpenSSL's is missing or failed)"


openssl = PerProcess(OpenSSL)
"""OpenSSL's generator, for every process its own object."""


def openssl_bytes(count: int) -> bytes:
    """So many random bytes of OpenSSL's generator, or of the operating system's where OpenSSL's fails."""
    return openssl.get().take(count)
