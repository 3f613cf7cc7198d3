"""Gaussian noise from a secret stream of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.normals import SUPPORT, Normals, on_device
from dpaudit.trainers.secret import PerProcess, Secret
from dpaudit.trainers.words import BytesWords, openssl, openssl_bytes

_SMALLEST, _LARGEST = 1e-30, 1e30  # standard deviations whose values and tails fp32 holds
_FINER = 2.0**-20  # each further draw of sample_double, relative to the one before
_DRAWN_THERE = ("cuda",)  # devices whose own fp64 normals are used


class Noise(Protocol):
    """Secret noise; ``is_test`` marks injected randomness."""

    @property
    def is_test(self) -> bool: ...
    def sample(self, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor: ...


class NoiseSource(Secret):
    """Independent N(0, std²) values in fp32, with a Gaussian's tails to 8.57 std, from operating-system entropy.

    The state is never logged, stored or shared: after a resume a new source is made, a forked child draws from a
    stream of its own, and threads may draw from one source. On a CPU, and for every other device but CUDA ones, the
    bits are those of OpenSSL's cryptographic generator (of the operating system's where Python has no OpenSSL, or it
    fails); on a CUDA device every call has a fresh key of 64 bits (Philox).

    Parameters
    ----------
    generator : torch.Generator or None
        For tests only: injected randomness marks the run ``status: test``.
    secure : bool
        Take every bit from the operating system's cryptographic generator directly, on the CPU, for CUDA devices too.
        About three times slower on a CPU.

    Notes
    -----
    A value is a Box-Muller transform of a radius of 53 random bits: a law with a Gaussian's density up to ±8.57 std,
    beyond which a Gaussian has mass 1e-17. It is still an approximation of the mechanism that the accountants treat:
    fp32 values lie on a lattice (Mironov 2012; Jin et al. 2112.05307), which only an integer mechanism mends; and
    Philox, on a CUDA device, is not cryptographic, which ``secure`` mends. (Rounding the noise, and not the noisy sum,
    to a grid would show the sum's lower bits in the clear, so nothing is rounded here.)
    """

    def __init__(self, *, generator: torch.Generator | None = None, secure: bool = False) -> None:
        self.is_test = generator is not None
        self.secure = secure
        self._injected = generator
        self._normals = PerProcess(lambda: Normals(BytesWords(os.urandom if secure else openssl_bytes)))
        self._keyed: PerProcess[dict[torch.device, torch.Generator]] = PerProcess(dict)

    def sample(self, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor:
        """fp32 tensor of ``shape`` with independent N(0, std²) values; zeros where std is 0.

        Parameters
        ----------
        shape : sequence of int
            Shape of the result.
        std : float
            Standard deviation of every value; 0 gives zeros.
        device : torch device, default="cpu"
            Where the result lies.

        Returns
        -------
        fp32 Tensor
            Of the shape asked for.

        Raises
        ------
        InvalidValue
            If ``std`` is negative, not finite, or outside what fp32 can hold with its tails (1e-30 to 1e30).
        """
        if not _SMALLEST <= std <= _LARGEST:
            _refuse(std)
            return torch.zeros(tuple(shape), dtype=torch.float32, device=device)
        device = torch.device(device)
        if self._injected is not None:  # drawn where the test's generator lives, so that devices agree
            return on_device(shape, std, device, self._injected)
        if device.type in _DRAWN_THERE and not self.secure:
            return on_device(shape, std, device, self._generator(device))
        drawn = torch.from_numpy(self._normals.get().sample(tuple(shape), std))
        return drawn if device.type == "cpu" else drawn.to(device)

    def _generator(self, device: torch.device) -> torch.Generator:
        """The device's generator under a fresh key."""
        held = self._keyed.get()
        if device not in held:
            held[device] = torch.Generator(device=device)
        return held[device].manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))


def _refuse(std: float) -> None:
    """Refuse every standard deviation without noise but 0."""
    validate.non_negative(std=std)
    validate.finite(std=std)
    if std != 0:
        raise InvalidValue(
            f"std={std:g} must lie between {_SMALLEST:g} and {_LARGEST:g}, or fp32 holds no Gaussian of it; scale the"
            " losses, and the clipping norm with them."
        )


class NoNoise:
    """Zeros instead of noise, for tests and planted faults; always marks the run as a test."""

    is_test = True

    def sample(self, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor:
        """fp32 zeros of ``shape``."""
        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


def sample_double(noise: Noise, shape: Sequence[int], std: float, device: torch.device | str = "cpu") -> Tensor:
    """fp64 tensor of independent Gaussian values with standard deviation std, random in all of fp64's bits.

    fp32 noise added to an fp64 sum would leave the sum's lower bits as they are, in the clear. Two further draws, 2⁻²⁰
    and 2⁻⁴⁰ of the first, cover them; a sum of independent Gaussian values is Gaussian, here with 1e-12 more variance.
    Injected noise (``is_test``) is taken as it is, once: such a run protects nobody, and is replayed to the last bit.
    """
    drawn = noise.sample(shape, std, device).double()
    for power in (
        () if noise.is_test else (1, 2)
    ):  # each made at the first one's scale, so that none leaves fp32's range
        drawn += noise.sample(shape, std, device).double() * _FINER**power
    return drawn


def noise_statement(*, secure: bool = False) -> dict[str, object]:
    """What the noise of :class:`NoiseSource` is, where it ends and what it does not prove, for a certificate.

    Parameters
    ----------
    secure : bool, default=False
        Whether every bit came from the operating system's cryptographic generator directly.

    Returns
    -------
    dict
        Keys of a certificate's mechanism: ``noise_source``, ``noise_generator``, ``noise_support_sigma``,
        ``noise_mass_beyond_support``, ``noise_not_proven``.
    """
    generator = (
        "the operating system's cryptographic generator, for every bit"
        if secure
        else f"{openssl.get().statement()} on a CPU, Philox on a CUDA device (64-bit key, a fresh one every tensor),"
        " which is not a cryptographic generator"
    )
    unproven = ["values are floating-point numbers on a lattice and not the real-valued Gaussian of the accounting"]
    if not secure:
        unproven.append("on a CUDA device, who sees noise alone could in principle predict noise under the same key")
    return {
        "noise_source": "Gaussian from operating-system entropy, a stream apart from sampling, coins and public seeds",
        "noise_generator": generator,
        "noise_support_sigma": math.floor(SUPPORT * 100) / 100,
        "noise_mass_beyond_support": math.erfc(SUPPORT / math.sqrt(2)),
        "noise_not_proven": unproven,
    }
