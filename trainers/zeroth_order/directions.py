"""Perturbation directions from a counter: any coordinate of any step, on any device, in any order.

A direction is a pure function of a public key ``(run, step, direction, tensor)`` and of the coordinate. Its bits are
Philox4x64-10 (Salmon et al., SC 2011) under a 128-bit key that is a hash of that tuple; its values are looked up in a
table, so that no transcendental function stands between two machines and the same bits. Directions are public and
carry no privacy: the noise comes from :class:`dpaudit.trainers.NoiseSource`, whose entropy no key here can reach.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.zeroth_order.bits import philox_words

BLOCK = 1 << 16  # coordinates expanded at once: few calls for each, and values stay in a processor's caches
DEVICE_BLOCK = 1 << 22  # the same on an accelerator, where a launch costs more than memory
_UNIT = 64  # every block starts on a multiple of this, so that both kinds start on a whole 64-bit word
_PER_COUNTER = 4  # 64-bit words that one counter value yields


class DirectionKind(StrEnum):
    """Distribution of a direction's coordinates; both have mean 0, variance 1 and independent coordinates."""

    GAUSSIAN = "gaussian"
    RADEMACHER = "rademacher"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """The family of public random directions of one run.

    Parameters
    ----------
    run : str
        Public name or key of the run. Two runs on the same private data should not share it.
    kind : DirectionKind
        ``gaussian``: 16 bits a coordinate, looked up among the 65,536 midpoint quantiles of N(0, 1), scaled to unit
        variance (largest value 4.17). ``rademacher``: one bit a coordinate, ±1.

    Raises
    ------
    InvalidValue
        If ``run`` is empty or ``kind`` unknown.

    Examples
    --------
    >>> v = Directions(run="example")
    >>> whole = v.values(step=3, direction=0, tensor="head.weight", size=1000)
    >>> bool((whole[512:] == v.values(step=3, direction=0, tensor="head.weight", size=488, start=512)).all())
    True
    """

    run: str
    kind: DirectionKind = DirectionKind.GAUSSIAN

    def __post_init__(self) -> None:
        if not isinstance(self.run, str) or not self.run:
            raise InvalidValue(f"run={self.run!r} must be a non-empty string; name the run's public direction key.")
        validate.one_of([k.value for k in DirectionKind], kind=str(self.kind))
        object.__setattr__(self, "kind", DirectionKind(self.kind))

    @property
    def generator(self) -> str:
        """Name of the generator, with the digest of its value table, as it is written into the log."""
        return f"philox4x64-10/{self.kind.value}/{_table_digest(self.kind)}"

    @property
    def coordinates_per_word(self) -> int:
        """Coordinates that one 64-bit word serves."""
        return 4 if self.kind is DirectionKind.GAUSSIAN else 64

    def values(
        self,
        *,
        step: int,
        direction: int,
        tensor: str,
        size: int,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Coordinates ``start .. start + size`` of one direction, fp32 of shape (size,).

        Parameters
        ----------
        step, direction : int
            Number of the step, and of the direction in it, from 0.
        tensor : str
            Name of the parameter.
        size : int
            Number of coordinates.
        start : int, default=0
            First coordinate.
        device : torch device, default="cpu"
            Where the result lies; the values are the same on every device.

        Returns
        -------
        fp32 Tensor of shape (size,)
            Of unit variance.

        Raises
        ------
        InvalidValue
            If ``step`` or ``direction`` is negative.
        """
        out = torch.empty(size, dtype=torch.float32, device=device)
        stream = self.stream(step=step, direction=direction, tensor=tensor)
        for low, high, block in stream.blocks(size, start=start, device=out.device):
            out[low:high] = block
        return out

    def stream(self, *, step: int, direction: int, tensor: str) -> DirectionStream:
        """The coordinates of one tensor in one direction of one step.

        Parameters
        ----------
        step, direction : int
            Number of the step, and of the direction in it, from 0.
        tensor : str
            Name of the parameter.

        Returns
        -------
        DirectionStream
            Gives any range of coordinates.

        Raises
        ------
        InvalidValue
            If ``step`` or ``direction`` is negative.
        """
        validate.integer_at_least(0, step=step, direction=direction)
        return DirectionStream(key=_key(self.run, step, direction, tensor), kind=self.kind)


@dataclasses.dataclass(frozen=True, slots=True)
class DirectionAt:
    """One random direction of one step."""

    directions: Directions
    step: int
    direction: int

    def stream(self, tensor: str) -> DirectionStream:
        """Its coordinates in one tensor."""
        return self.directions.stream(step=self.step, direction=self.direction, tensor=tensor)


@dataclasses.dataclass(frozen=True, slots=True)
class DirectionStream:
    """One key's coordinates, readable from any multiple of 64 and, more slowly, from anywhere."""

    key: tuple[int, int]
    kind: DirectionKind

    def words(self, size: int) -> NDArray[np.uint64]:
        """The raw 64-bit words behind the first ``size`` coordinates, for a cache of bits."""
        return _numpy_words(self.key, 0, -(-size // self._density))

    def blocks(
        self,
        size: int,
        *,
        start: int = 0,
        device: torch.device | None = None,
        words: NDArray[np.uint64] | None = None,
        buffer: Buffer | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(low, high, values)`` until ``size`` coordinates are covered.

        ``values`` is fp32 of shape (high - low,) in a buffer that the next block overwrites; the caller may change
        it in place. ``words`` are cached bits from :meth:`words`, of the whole stream or up to the part's
        end. ``buffer`` is memory of at least one block to use again, where many streams are read one after the other.
        """
        device = torch.device("cpu") if device is None else device
        skip = start % _UNIT
        begin, position = start - skip, 0
        if buffer is None:
            buffer = Buffer(min(skip + size, block_size(device)), device)
        reader = _Reader(self.key, begin // self._density) if words is None and device.type == "cpu" else None
        while position < size:
            take = min(block_size(device), skip + size - position)
            if reader is None:
                values = self.expand(begin, take, buffer, words)
            else:
                values = self._fill(reader.take(-(-take // self._density)), buffer)[:take]
            yield position, position + take - skip, values[skip:]
            position, begin, skip = position + take - skip, begin + take, 0
        if reader is not None:
            reader.close()

    def expand(self, begin: int, size: int, buffer: Buffer, words: NDArray[np.uint64] | None = None) -> Tensor:
        """Coordinates ``begin .. begin + size`` in the buffer's memory; ``begin`` is a multiple of 64."""
        first, count = begin // self._density, -(-size // self._density)
        if buffer.device.type != "cpu":
            table = _table(self.kind, buffer.device)
            on_device = philox_words(self.key, first, count, buffer.device)
            shifts = torch.arange(0, 64, 16 if self.kind is DirectionKind.GAUSSIAN else 8, device=buffer.device)
            mask = 0xFFFF if self.kind is DirectionKind.GAUSSIAN else 0xFF
            index = ((on_device[:, None] >> shifts) & mask).view(-1)
            return table.index_select(0, index).view(-1)[:size]
        raw = _numpy_words(self.key, first, count) if words is None else words[first : first + count]
        return self._fill(raw, buffer)[:size]

    def _fill(self, raw: NDArray[np.uint64], buffer: Buffer) -> Tensor:
        """All coordinates that the words hold, in the buffer's memory."""
        values = buffer.values[: raw.size * self._density]
        if self.kind is DirectionKind.GAUSSIAN:
            index = buffer.index[: values.numel()]
            index.copy_(torch.from_numpy(raw.astype("<u8", copy=False).view("<u2")))
            torch.index_select(_table(self.kind, buffer.device), 0, index, out=values)
        else:
            octets = raw.astype("<u8", copy=False).view(np.uint8)
            np.take(_numpy_sign_rows(), octets, axis=0, out=values.numpy().reshape(-1, 8), mode="clip")
        return values

    @property
    def _density(self) -> int:
        return 4 if self.kind is DirectionKind.GAUSSIAN else 64


class Buffer:
    """Reusable memory for one block of coordinates: allocating a new array for each takes as long as filling it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.device = device
        whole = -(-size // _UNIT) * _UNIT if device.type == "cpu" else 0
        self.values = torch.empty(whole, dtype=torch.float32)
        self.index = torch.empty(whole, dtype=torch.int32)


def part_buffer(size: int, device: torch.device) -> Buffer:
    """Memory for the blocks of any part of at most ``size`` coordinates, wherever in its tensor the part begins."""
    return Buffer(min(size + _UNIT, block_size(device)), device)


def block_size(device: torch.device) -> int:
    """Coordinates expanded at once on a device; the values do not depend on it."""
    return BLOCK if device.type == "cpu" else DEVICE_BLOCK


@functools.lru_cache(maxsize=2048)  # both signs and the update ask for the same keys
def _key(run: str, step: int, direction: int, tensor: str) -> tuple[int, int]:
    """128 bits of a hash of the public tuple."""
    name = f"{len(run)}:{run}|{step}|{direction}|{tensor}".encode()
    digest = hashlib.blake2b(name, digest_size=16, person=b"dpaudit-zo-dir").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


_EMPTY = np.zeros(_PER_COUNTER, dtype=np.uint64)
# A generator that is made reads the system's entropy, so used ones are kept and their state is set anew.
_IDLE: list[np.random.Philox] = []


class _Reader:
    """Words of a Philox stream one after the other, the generator set up once."""

    def __init__(self, key: tuple[int, int], first: int) -> None:
        # ``random_raw`` raises the counter before it draws, so that counter ``c`` stands before word 4c.
        counter, self._skip = divmod(first, _PER_COUNTER)
        self._generator = _IDLE.pop() if _IDLE else np.random.Philox(0)
        self._generator.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array((counter, 0, 0, 0), dtype=np.uint64),
                "key": np.array(key, dtype=np.uint64),
            },
            "buffer": _EMPTY,
            "buffer_pos": _PER_COUNTER,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def take(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` words."""
        skip, self._skip = self._skip, 0
        words: NDArray[np.uint64] = self._generator.random_raw(skip + count)
        return words[skip:]

    def close(self) -> None:
        """Give the generator back for the next reader; this one reads no more."""
        _IDLE.append(self._generator)
        del self._generator


def _numpy_words(key: tuple[int, int], first: int, count: int) -> NDArray[np.uint64]:
    """Words ``first .. first + count`` of a Philox stream."""
    reader = _Reader(key, first)
    words = reader.take(count)
    reader.close()
    return words


@functools.cache
def _table(kind: DirectionKind, device: torch.device) -> Tensor:
    if kind is DirectionKind.RADEMACHER:
        return torch.from_numpy(_numpy_sign_rows()).to(device)
    midpoints = (torch.arange(1 << 15, dtype=torch.float64) + (1 << 15) + 0.5) / (1 << 16)
    upper = torch.special.ndtri(midpoints)
    upper = upper / upper.square().mean().sqrt()  # unit variance exactly, so that E[v vᵀ] = I
    return torch.cat([-upper.flip(0), upper]).float().to(device)


@functools.cache
def _numpy_sign_rows() -> NDArray[np.float32]:
    """Row b holds the eight signs of byte b, lowest bit first: bit 1 is +1, bit 0 is -1."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (2.0 * bits - 1.0).astype(np.float32)


@functools.cache
def _table_digest(kind: DirectionKind) -> str:
    return hashlib.sha256(_table(kind, torch.device("cpu")).numpy().astype("<f4").tobytes()).hexdigest()[:16]
