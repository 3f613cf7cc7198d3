"""Matrix products of private steps by the fastest routine of the processor at hand.

On CPUs torch multiplies fp32 matrices with MKL, which uses no more than 256 bits of other makers' vector units; oneDNN,
which torch also carries, uses 512. A core of AMD's Zen 5 gives 100 Gflop/s with the one and 180 to 240 with the other.
Zen 4 does a 512-bit operation in two halves, so that oneDNN gains nothing there, and on Intel's own processors MKL is
the faster of the two: both keep MKL. Either is fp32 throughout, with fp32 accumulation. The choice depends on the
processor alone, never on timing, so results repeat bitwise. The environment variable ``DPAUDIT_PRODUCTS`` decides it
otherwise: ``plain`` keeps torch's own routine everywhere, and ``onednn`` takes oneDNN on any processor with AVX-512.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_enabled = True


@contextmanager
def plain() -> Iterator[None]:
    """Use torch's default routines within the block (for comparison)."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


@contextmanager
def fast() -> Iterator[None]:
    """Use the fastest routines (the default)."""
    yield


def has_wide_units(description: str) -> bool:
    """Whether a description, /proc/cpuinfo or ``platform.processor()``, is of an AMD with full 512-bit units: Zen 5.

    >>> has_wide_units("vendor_id : AuthenticAMD, cpu family : 26"), has_wide_units("GenuineIntel, cpu family : 6")
    (True, False)
    >>> has_wide_units("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD")  # Zen 4
    False
    """
    family = re.search(r"family\s*:?\s*(\d+)", description, re.IGNORECASE)
    return "authenticamd" in description.lower() and family is not None and int(family[1]) >= _ZEN_5


_ZEN_5 = 26


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return platform.processor()


@cache
def has_onednn() -> bool:
    """Whether oneDNN's fp32 product is here, is the faster routine of this processor, and gives what torch.mm gives.

    Whole private steps with oneDNN and with MKL, as ratios to the same ordinary step: Zen 4 1.22 and 1.18 (GPT-2), 1.19
    and 1.18 (BERT); Intel's Sapphire Rapids 1.35 and 1.18; Zen 5 1.19 and 1.77 (BERT).
    """
    wanted = os.environ.get("DPAUDIT_PRODUCTS")
    if wanted == "plain" or (wanted != "onednn" and not has_wide_units(_processor())):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    try:
        x, y, z = torch.linspace(-1, 1, 35).view(5, 7), torch.linspace(0, 2, 21).view(3, 7), torch.linspace(0, 1, 3)
        return torch.allclose(_onednn(x, y, z), x @ y.T + z, rtol=1e-5, atol=1e-6)
    except Exception:  # a private operator may change; torch.mm always works
        return False


LEAST = 2**16
"""Multiplications from which on a call of its own pays."""


def _onednn(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x yᵀ for x (..., k) and y (n, k), plus a bias (n,)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")
    return product


def onednn_for(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices of this device and type."""
    return _enabled and x.device.type == "cpu" and x.dtype == torch.float32 and has_onednn()


def worth_onednn(rows: int, columns: int, inner: int) -> bool:
    """Whether one product is large enough to be called by itself (about 15 microseconds a call)."""
    return rows * columns * inner >= 2**22


def gram(x: Tensor, y: Tensor, *, onednn: bool) -> Tensor:
    """The product x yᵀ of every example: x (B, S, d), y (B, T, d) to (B, S, T)."""
    if onednn:
        return torch.stack([_onednn(u, v) for u, v in zip(x.unbind(), y.unbind(), strict=True)])
    return torch.bmm(x, y.mT)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """The product leftᵀ right: left (n, p), right (n, q) to (p, q)."""
    if not onednn_for(left) or left.shape[0] * left.shape[1] * right.shape[1] < LEAST:
        return torch.mm(left.mT, right)
    # A product with the wide side second is faster, even with the copy that it takes.
    if left.shape[1] > 2 * right.shape[1]:
        return _onednn(right.mT, left.mT).mT.contiguous()
    return _onednn(left.mT, right.mT)


def add_outer(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total`` plus leftᵀ right; torch adds in the total's memory, so that no term is written by itself."""
    if total is None or onednn_for(left):
        product = outer(left, right)
        return product if total is None else total.add_(product)
    return total.addmm_(left.mT, right)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias by oneDNN, for operands that :func:`onednn_for` accepts: x (..., d), W (p, d)."""
    return _onednn(x, weight.detach(), None if bias is None else bias.detach())


def right(x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """Gradient (..., p) to (..., d) through a layer's weight, (p, d) if ``transposed`` and else (d, p)."""
    flat = x.reshape(-1, x.shape[-1])
    if onednn_for(x) and weight.dtype == x.dtype and flat.numel() * weight.shape[0] >= LEAST:
        product = _onednn(flat, weight.mT if transposed else weight)
    else:
        product = torch.mm(flat, weight if transposed else weight.mT)
    return product.view(*x.shape[:-1], product.shape[-1])
