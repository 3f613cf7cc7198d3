"""Gaussian noise in fp32 from a secret stream of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.trainers.sampling import _Secret

_STATE_WORDS = 624  # of the Mersenne twister behind torch's CPU generator
_STATE_OFFSET = 24  # bytes of seed, counters and position before those words


class NoiseSource(_Secret):
    """Independent N(0, std²) values, drawn in fp32 from operating-system entropy.

    The generator's state comes from the operating system, is never logged and never stored; after a resume a new
    source is made. On a CPU the whole Mersenne-twister state is filled with entropy (``manual_seed`` would keep only
    32 bits of it); on an accelerator the Philox key takes 64 bits.

    Parameters
    ----------
    generator : torch.Generator or None
        For tests only: injected randomness marks the run ``status: test``.
    secure : bool
        Take every value from the operating system's cryptographic generator, by Box-Muller in fp64, and round it to
        a grid of std·2⁻¹⁶. About ten times slower.

    Notes
    -----
    Floating-point Gaussian noise is an approximation of the mechanism that the accountants treat: its values lie on
    a lattice (Mironov 2012; Jin et al. 2112.05307), and neither the Mersenne twister nor Philox is cryptographic, so
    an adversary who sees noise-only coordinates of every step could in principle predict others. ``secure`` removes
    the second objection and coarsens the first; a proof needs an integer mechanism.
    """

    def __init__(self, *, generator: torch.Generator | None = None, secure: bool = False) -> None:
        self.is_test = generator is not None
        self.secure = secure
        self._injected = generator
        self._generators: dict[torch.device, torch.Generator] = {}

    def sample(self, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor:
        """fp32 tensor of ``shape`` with independent N(0, std²) values; zeros where std is 0."""
        validate.non_negative(std=std)
        validate.finite(std=std)
        device = torch.device(device)
        if std == 0:
            return torch.zeros(tuple(shape), dtype=torch.float32, device=device)
        if self._injected is not None:  # drawn where the test's generator lives, so that devices agree
            drawn = torch.randn(
                tuple(shape), dtype=torch.float32, generator=self._injected, device=self._injected.device
            )
            return drawn.to(device).mul_(std)
        if self.secure:
            return _from_system(shape, std).to(device)
        drawn = torch.randn(tuple(shape), dtype=torch.float32, generator=self._generator(device), device=device)
        return drawn.mul_(std)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = _entropy_generator(device)
        return self._generators[device]


class NoNoise:
    """Zeros instead of noise, for tests and planted faults; always marks the run as a test."""

    is_test = True

    def sample(self, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor:
        """fp32 zeros of ``shape``."""
        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


def _entropy_generator(device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    if device.type != "cpu":
        return generator
    state = generator.get_state().numpy().copy()
    words = torch.frombuffer(bytearray(os.urandom(4 * _STATE_WORDS)), dtype=torch.int32).to(torch.int64) & 0xFFFFFFFF
    end = _STATE_OFFSET + 8 * _STATE_WORDS
    if state.size < end:  # an unknown layout keeps the 32-bit seed rather than a broken state
        return generator
    state[_STATE_OFFSET:end] = words.numpy().view("uint8")
    state[8:12] = (1, 0, 0, 0)  # one value left: the next draw regenerates the block from the new words
    generator.set_state(torch.from_numpy(state))
    return generator


def _from_system(shape: Sequence[int], std: float) -> Tensor:
    size = 1
    for extent in shape:
        size *= extent
    pairs = (size + 1) // 2
    raw = torch.frombuffer(bytearray(os.urandom(16 * pairs) or b"\0" * 16), dtype=torch.int64)[: 2 * pairs]
    uniform = ((raw >> 11) & ((1 << 52) - 1)).to(torch.float64).add_(0.5).mul_(2.0**-52)  # in (0, 1), never 0
    radius = uniform[:pairs].log_().mul_(-2).sqrt_()
    angle = uniform[pairs:].mul_(2 * torch.pi)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()])[:size]
    grid = 2.0**-16
    return normal.div_(grid).round_().mul_(grid * std).to(torch.float32).reshape(tuple(shape))
