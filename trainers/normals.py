"""Standard normal values in fp32 that keep a Gaussian's tails to 8.57 standard deviations.

torch fills fp32 normals on a CPU from uniforms of 24 bits, so that they end at √(2·24·ln 2) = 5.77σ, and all mass of
the last radius lies on that edge: a release beyond it proves which data set it came from. Here the radius of the
Box-Muller transform comes from 53 random bits, so that the last radius is √(2·53·ln 2) = 8.57σ and has mass 2⁻⁵³.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUPPORT = math.sqrt(2 * 53 * math.log(2))
"""Largest magnitude of a standard normal value here, 8.57: that of a radius made from 53 bits."""

_PAIRS = 1 << 13  # pairs made at once: uniforms, radii and angles stay in the second-level cache
_BLOCK = 2 * _PAIRS
_FRESH_AFTER = 1 << 20  # values drawn under one key
_DEVICE_BLOCK = 1 << 24  # fp64 values drawn at once on an accelerator, 128 MiB


class Words(Protocol):
    """Where random bits come from."""

    def uniforms(self, out: NDArray[np.float64]) -> None:
        """Fill with uniform multiples of 2⁻⁵³ in (0, 1]."""

    def integers(self, count: int) -> NDArray[np.int32]:
        """Uniform integers of 32 bits."""


class KeyedWords:
    """SFC64 under a key of 256 bits from the operating system, exchanged for a fresh one every 2²⁰ values.

    It passes statistical tests and is not cryptographic: who sees its exact output could compute what follows, until
    the next key.
    """

    def __init__(self) -> None:
        self._generator, self._left = _sfc64(), _FRESH_AFTER

    def uniforms(self, out: NDArray[np.float64]) -> None:
        """Fill with uniform multiples of 2⁻⁵³ in (0, 1]."""
        if self._left < 2 * out.size:
            self._generator, self._left = _sfc64(), _FRESH_AFTER
        self._left -= 2 * out.size
        self._generator.random(out=out)
        np.subtract(1.0, out, out=out)  # exact: both are multiples of 2⁻⁵³

    def integers(self, count: int) -> NDArray[np.int32]:
        """Uniform integers of 32 bits."""
        words: NDArray[np.uint64] = self._generator.bit_generator.random_raw((count + 1) // 2)
        return words.view(np.int32)[:count]


class SystemWords:
    """Every bit from the operating system's cryptographic generator."""

    def uniforms(self, out: NDArray[np.float64]) -> None:
        """Fill with uniform multiples of 2⁻⁵³ in (0, 1]."""
        words = np.frombuffer(os.urandom(8 * out.size), dtype=np.uint64)
        np.multiply((words >> np.uint64(11)) + np.uint64(1), 2.0**-53, out=out)

    def integers(self, count: int) -> NDArray[np.int32]:
        """Uniform integers of 32 bits."""
        return np.frombuffer(os.urandom(4 * count), dtype=np.int32)


class Normals:
    """Independent N(0, std²) values in fp32; threads may share one.

    Parameters
    ----------
    words : Words
        Source of the bits.

    Notes
    -----
    Each pair of values is (r cos a, r sin a) with r = √(-2 ln u), u of 53 bits and a of 32 (Box and Muller 1958). The
    logarithm is taken in fp64, everything after it in fp32. Few values at a time are taken from a block made ahead,
    each of them once.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._lock = threading.Lock()
        self._uniform = np.empty(_PAIRS, np.float64)
        self._radius, self._angle = np.empty(_PAIRS, np.float32), np.empty(_PAIRS, np.float32)
        self._ahead, self._used = np.empty(_BLOCK, np.float32), _BLOCK

    def sample(self, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
        """Array of a shape, filled with N(0, std²)."""
        size = math.prod(shape)
        with self._lock:
            start, end = self._used, self._used + size
            if end <= _BLOCK:
                self._used = end
                return np.multiply(self._ahead[start:end], np.float32(std)).reshape(shape)
        out = np.empty(size, np.float32)
        self.fill(out, std)
        return out.reshape(shape)

    def fill(self, out: NDArray[np.float32], std: float) -> None:
        """Fill a flat array that is there."""
        with self._lock:
            whole = out.size - out.size % _BLOCK
            for at in range(0, whole, _BLOCK):
                self._block(out[at : at + _BLOCK], std)
            while whole < out.size:
                if self._used == _BLOCK:
                    self._block(self._ahead, 1.0)
                    self._used = 0
                taken = self._ahead[self._used : self._used + out.size - whole]
                np.multiply(taken, np.float32(std), out=out[whole : whole + taken.size])
                self._used += taken.size
                whole += taken.size

    def _block(self, out: NDArray[np.float32], std: float) -> None:
        uniform, radius, angle = self._uniform, self._radius, self._angle
        self._words.uniforms(uniform)
        np.log(uniform, out=uniform)
        np.multiply(uniform, -2.0, out=radius, casting="same_kind")
        np.sqrt(radius, out=radius)
        whole_turn = np.float32(math.pi / 2**31)
        np.multiply(self._words.integers(_PAIRS), whole_turn, out=angle, dtype=np.float32, casting="unsafe")
        np.multiply(radius, np.float32(std), out=radius)
        for function, half in ((np.cos, out[:_PAIRS]), (np.sin, out[_PAIRS:])):
            function(angle, out=half)
            np.multiply(half, radius, out=half)


def on_device(shape: Sequence[int], std: float, device: torch.device, generator: torch.Generator) -> Tensor:
    """fp32 tensor of N(0, std²) from a torch generator, drawn in fp64 where the generator lives and then rounded.

    torch's fp64 normals come from uniforms of 53 bits on a CPU and on CUDA devices alike; its fp32 ones end at 5.77σ
    on a CPU and at 6.76σ on a CUDA device.
    """
    out = torch.empty(tuple(shape), dtype=torch.float32, device=generator.device)
    flat = out.view(-1)
    block = torch.empty(min(_DEVICE_BLOCK, flat.numel()), dtype=torch.float64, device=generator.device)
    for at in range(0, flat.numel(), _DEVICE_BLOCK):
        part = flat[at : at + _DEVICE_BLOCK]
        part.copy_(block[: part.numel()].normal_(0.0, std, generator=generator))
    return out.to(device)


def _sfc64() -> np.random.Generator:
    # NumPy keeps only 128 bits of a seed unless the pool is made larger.
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(secrets.randbits(256), pool_size=8)))
