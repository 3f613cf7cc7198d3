"""Philox4x64-10 in torch's integer arithmetic, for devices that NumPy does not reach.

The words equal ``numpy.random.Philox(key=key).random_raw``: the same direction is drawn on every device. Constants and
rounds follow Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_BUMPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF
_WORD = 1 << 64


def philox_words(key: tuple[int, int], first: int, count: int, device: torch.device) -> Tensor:
    """Words ``first .. first + count`` of a key's stream, as int64 holding the unsigned bits, shape (count,)."""
    counter, offset = divmod(first, 4)
    blocks = -(-(offset + count) // 4)
    # NumPy raises the counter before it draws, so its first block is number 1.
    c0 = torch.arange(counter + 1, counter + 1 + blocks, dtype=torch.int64, device=device)
    c1 = torch.zeros_like(c0)
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(k0), low1, high0 ^ c3 ^ _signed(k1), low0
        k0, k1 = (k0 + _BUMPS[0]) % _WORD, (k1 + _BUMPS[1]) % _WORD
    return torch.stack([c0, c1, c2, c3], dim=1).view(-1)[offset : offset + count]


def _signed(value: int) -> int:
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _multiply(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of x · constant, all unsigned, from 32-bit halves; int64 products wrap as they must."""
    a, b = constant >> 32, constant & _LOW
    high, low = (x >> 32) & _LOW, x & _LOW
    first = high * b + (((low * b) >> 32) & _LOW)
    second = low * a + (first & _LOW)
    return high * a + ((first >> 32) & _LOW) + ((second >> 32) & _LOW), x * _signed(constant)
