"""Standard normal values in fp32 that keep a Gaussian's tails to 8.57 standard deviations.

torch fills fp32 normals on a CPU from uniforms of 24 bits, so that they end at √(2·24·ln 2) = 5.77σ, and all mass of
the last radius lies on that edge: a release beyond it proves which data set it came from. Here the radius of the
Box-Muller transform comes from 53 random bits, so that the last radius is √(2·53·ln 2) = 8.57σ and has mass 2⁻⁵³.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainers.words import Words

SUPPORT = math.sqrt(2 * 53 * math.log(2))
"""Largest magnitude of a standard normal value here, 8.57: that of a radius made from 53 bits."""

_BLOCK = 3 << 14  # values made at once: in the caches still, and torch would start threads from 2¹⁵ pairs on
_PAIRS = _BLOCK // 2
_AHEAD = 1 << 14  # values made ahead, from which few at a time are taken
_DEVICE_BLOCK = 1 << 24  # fp64 values drawn at once on an accelerator, 128 MiB


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
        self._ahead, self._used = np.empty(_AHEAD, np.float32), _AHEAD

    def sample(self, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
        """Array of a shape, filled with N(0, std²)."""
        size = math.prod(shape)
        with self._lock:
            start, end = self._used, self._used + size
            if end <= _AHEAD:
                self._used = end
                return np.multiply(self._ahead[start:end], np.float32(std)).reshape(shape)
        out = np.empty(size, np.float32)
        self.fill(out, std)
        return out.reshape(shape)

    def fill(self, out: NDArray[np.float32], std: float) -> None:
        """Fill a flat array that is there."""
        with self._lock:
            at = 0
            while (left := out.size - at) >= _AHEAD:
                size = min(left - left % 2, _BLOCK)
                self._block(out[at : at + size], std)
                at += size
            while at < out.size:
                if self._used == _AHEAD:
                    self._block(self._ahead, 1.0)
                    self._used = 0
                taken = self._ahead[self._used : self._used + out.size - at]
                np.multiply(taken, np.float32(std), out=out[at : at + taken.size])
                self._used += taken.size
                at += taken.size

    def _block(self, out: NDArray[np.float32], std: float) -> None:
        pairs = out.size // 2
        uniform, radius, angle = self._uniform[:pairs], self._radius[:pairs], self._angle[:pairs]
        self._words.uniforms(uniform)
        logarithm = torch.from_numpy(uniform)
        torch.log(logarithm, out=logarithm)  # NumPy's is vectorised under AVX-512 alone
        np.copyto(radius, uniform, casting="same_kind")
        np.multiply(radius, np.float32(-2.0), out=radius)
        np.sqrt(radius, out=radius)
        np.copyto(angle, self._words.integers(pairs), casting="same_kind")
        np.multiply(angle, np.float32(math.pi / 2**31), out=angle)
        np.multiply(radius, np.float32(std), out=radius)
        for function, half in ((np.cos, out[:pairs]), (np.sin, out[pairs:])):
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
