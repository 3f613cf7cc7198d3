"""Matrix products of per-example norms and sums, by the fastest routine of the processor at hand.

On CPUs torch multiplies fp32 matrices with MKL, which leaves half of the vector units of other makers' processors idle
(AMD with AVX-512: about 100 against 210 Gflop/s a core); oneDNN, which torch also carries, does not. On Intel's own
processors MKL is the faster of the two, so it stays. Both are fp32 throughout, with fp32 accumulation. The choice
depends on the machine alone, never on timing, so results repeat bitwise; the environment variable
``DPAUDIT_PRODUCTS=plain`` keeps torch's own routine everywhere.
"""

from __future__ import annotations

import os
import platform
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


def made_by_intel(description: str) -> bool:
    """Whether a processor's description, the text of /proc/cpuinfo or of ``platform.processor()``, names Intel.

    >>> made_by_intel("vendor_id : AuthenticAMD"), made_by_intel("Intel64 Family 6 Model 143, GenuineIntel")
    (False, True)
    """
    return "genuineintel" in description.lower()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return platform.processor()


@cache
def _has_onednn() -> bool:
    """Whether oneDNN's fp32 product is here, is the faster routine of this processor, and gives what torch.mm gives.

    Measured with the whole private step against MKL's products: AMD with AVX-512 0.86 against 1.09 on one machine and
    1.22 against 1.18 (GPT-2), 1.19 against 1.18 (BERT) on another; Intel (Sapphire Rapids) 1.35 against 1.18.
    """
    if os.environ.get("DPAUDIT_PRODUCTS") == "plain" or made_by_intel(_processor()):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    try:
        x, y = torch.linspace(-1, 1, 35).view(5, 7), torch.linspace(0, 2, 21).view(3, 7)
        return torch.allclose(_onednn(x, y), x @ y.T, rtol=1e-5, atol=1e-6)
    except Exception:  # a private operator may change; torch.mm always works
        return False


def _onednn(x: Tensor, y: Tensor) -> Tensor:
    """The product x yᵀ for x (m, k) and y (n, k)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
    return product


def onednn_for(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices of this device and type."""
    return _enabled and x.device.type == "cpu" and x.dtype == torch.float32 and _has_onednn()


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
    if not onednn_for(left) or left.shape[0] * left.shape[1] * right.shape[1] < 2**16:
        return torch.mm(left.mT, right)
    if left.shape[1] > 2 * right.shape[1]:  # the wide side second is faster, even with the copy
        return _onednn(right.mT, left.mT).mT.contiguous()
    return _onednn(left.mT, right.mT)


def right(x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """Gradient (..., p) to (..., d) through a layer's weight, (p, d) if ``transposed`` and else (d, p)."""
    flat = x.reshape(-1, x.shape[-1])
    if onednn_for(x) and weight.dtype == x.dtype and flat.numel() * weight.shape[0] >= 2**16:
        product = _onednn(flat, weight.mT if transposed else weight)
    else:
        product = torch.mm(flat, weight if transposed else weight.mT)
    return product.view(*x.shape[:-1], product.shape[-1])
