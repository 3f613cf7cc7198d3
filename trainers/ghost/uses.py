"""Uses of one parameter, and their clipped-sum arithmetic: norms and weighted sums (cross terms: ``cross``).

A *use* is one place where a parameter met the data in a forward pass. With a loss per example, every use gives a
per-example gradient G_i; a use knows |G_i|² and Σ_i c_i G_i without writing G_i down where that is cheaper.

Notation, as in the papers: B examples, T positions, a layer s = a W with a: (B, T, d), b = dL_i/ds: (B, T, p).

- ``MatrixUse``: G_i = a_iᵀ b_i, |G_i|² = Σ_{t,s} (a_it·a_is)(b_it·b_is) (Goodfellow 1510.01799; Li et al. 2110.05679)
- ``RowUse``: an embedding; a is one-hot, so equal ids are summed first (segment sum) and then squared
- ``DirectUse``: G_i itself, for parameters so small that writing it down is cheapest (biases, gains)
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from dpaudit.trainers.ghost import products
from dpaudit.trainers.ghost.cost import Strategy, strip_starts

_CHUNK_WORDS = 2**22  # 16 MiB of fp32 copies at a time


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32; fp64 stays fp64."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def gram_plan(length: int, width: int, like: Tensor) -> tuple[tuple[int, ...], bool]:
    """Where to cut T, and whether oneDNN multiplies, for the device and type of ``like``."""
    onednn = products.onednn_for(wide(like[:0])) and products.worth_onednn(length, length, width)
    return strip_starts(length, onednn), onednn


def _chunks(x: Tensor) -> list[slice]:
    """Slices of examples: all at once, or a few at a time where a wide copy of a narrow tensor would be large."""
    if x.dtype in (torch.float32, torch.float64) or x.numel() <= _CHUNK_WORDS:
        return [slice(None)]
    step = max(1, _CHUNK_WORDS * x.shape[0] // x.numel())
    return [slice(i, i + step) for i in range(0, x.shape[0], step)]


def _times(tensor: Tensor, factors: Tensor) -> Tensor:
    """Multiply every example's slice by its factor; ``factors`` has shape (B,)."""
    return tensor * _spread(factors, tensor)


class Scratch:
    """Memory for one scaled copy at a time: on a CPU, new memory for each costs more than the multiplication."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def times(self, tensor: Tensor, factors: Tensor) -> Tensor:
        """Every example's slice times its factor, (B,), in memory that the next call overwrites."""
        known, kind = self._memory, (tensor.dtype, tensor.device)
        if known is None or known.numel() < tensor.numel() or (known.dtype, known.device) != kind:
            known = self._memory = tensor.new_empty(tensor.numel())
        place = known[: tensor.numel()].view(tensor.shape)
        return torch.mul(tensor, _spread(factors, tensor), out=place)


def _spread(factors: Tensor, tensor: Tensor) -> Tensor:
    return factors.to(tensor.dtype).view(-1, *([1] * (tensor.dim() - 1)))


def _weighted_rows(full: Tensor, factors: Tensor, total: Tensor | None) -> Tensor:
    """Σ_i c_i full_i for full of shape (B, *shape)."""
    new = torch.mv(full.flatten(1).mT, factors.to(full.dtype)).view(full.shape[1:])
    return new if total is None else total.add_(new)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Square:
    """|G_i|² of one use, and how far rounding may have moved it.

    ``value`` (B,): the squared norms. ``scale`` (B,): the size of the terms that were added up to get it; where
    ``value`` is far below ``scale`` the terms cancelled and the value is recomputed from G_i.
    """

    value: Tensor
    scale: Tensor


@dataclasses.dataclass(slots=True, eq=False)
class Gram:
    """The upper triangle of x xᵀ for x (B, T, d), as strips: strip k has rows ``starts[k]:starts[k+1]`` and all
    columns from ``starts[k]`` on; what lies right of its square block counts twice.
    """

    strips: list[Tensor]

    @classmethod
    def of(cls, x: Tensor, starts: tuple[int, ...], onednn: bool) -> Gram:
        """Compute the strips; ``starts`` ends with T."""
        pairs = list(itertools.pairwise(starts))
        parts = []
        for rows in _chunks(x):
            part = wide(x[rows])
            parts.append([products.gram(part[:, lo:hi], part[:, lo:], onednn=onednn) for lo, hi in pairs])
        return cls([torch.cat(strips) if len(strips) > 1 else strips[0] for strips in zip(*parts, strict=True)])

    def dot(self, other: Gram) -> Square:
        """Σ_{t,s} K_ts K'_ts per example, (B,), and the sum over t = s alone as its scale."""
        total: Tensor | None = None
        scale: Tensor | None = None
        for mine, theirs in zip(self.strips, other.strips, strict=True):
            rows = mine.shape[1]
            part = torch.linalg.vecdot(mine.flatten(1), theirs.flatten(1))
            if rows < mine.shape[2]:
                block = (mine[:, :, :rows] * theirs[:, :, :rows]).sum((1, 2))
                part = 2 * part - block
            diagonal = (mine.diagonal(dim1=1, dim2=2) * theirs.diagonal(dim1=1, dim2=2)).sum(1)
            total, scale = (part, diagonal) if total is None or scale is None else (total + part, scale + diagonal)
        assert total is not None and scale is not None
        return Square(total, scale)


def _squared(full: Tensor) -> Square:
    value = torch.linalg.vector_norm(full.flatten(1), dim=1).square()
    return Square(value, value)


_SIBLINGS = 4  # Grams remembered at a time


class Grams:
    """The Gram matrices of one backward pass, shared by uses that read the same input (queries, keys, values)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Tensor, Gram]] = {}  # the latest few: siblings follow each other

    def shared(self, x: Tensor, starts: tuple[int, ...], onednn: bool) -> Gram:
        """The Gram of an input that other layers may read too."""
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, starts, onednn)
        if key not in self._kept:  # the tensor is kept beside its Gram, so that its address is not given away meanwhile
            if len(self._kept) >= _SIBLINGS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = (x, Gram.of(x, starts, onednn))
        return self._kept[key][1]

    def clear(self) -> None:
        """Forget every Gram."""
        self._kept.clear()


@dataclasses.dataclass(slots=True, eq=False)
class MatrixUse:
    """A weight of s = a W: a (B, T, d), b (B, T, p); ``transposed`` when the weight is stored (p, d)."""

    a: Tensor
    b: Tensor
    transposed: bool
    shape: torch.Size
    strategy: Strategy = Strategy.GRAM
    kept: Tensor | None = None

    def square(self, grams: Grams) -> Square:
        """|G_i|² by the strategy the cost model chose."""
        if self.a.shape[1] == 1:
            value = wide(self.a).square().sum((1, 2)) * wide(self.b).square().sum((1, 2))
            return Square(value, value)
        if self.strategy is not Strategy.GRAM:
            full = self.instance()
            if self.strategy is Strategy.KEEP:
                self.kept = full
            return _squared(full)
        starts, onednn = gram_plan(self.a.shape[1], (self.a.shape[2] + self.b.shape[2]) // 2, self.a)
        return grams.shared(self.a, starts, onednn).dot(Gram.of(self.b, starts, onednn))

    def instance(self, rows: Tensor | None = None) -> Tensor:
        """G_i written down, (B, *weight shape), for all examples or for ``rows``."""
        if self.kept is not None and rows is None:
            return self.kept
        a, b = (self.a, self.b) if rows is None else (self.a[rows], self.b[rows])
        full = torch.bmm(wide(b).mT, wide(a)) if self.transposed else torch.bmm(wide(a).mT, wide(b))
        return full.view(full.shape[0], *self.shape)

    def weighted(self, factors: Tensor, total: Tensor | None, scratch: Scratch | None = None) -> Tensor:
        """Σ_i c_i G_i, added into ``total`` (weight shape, fp32 or fp64) where there is one."""
        scratch = Scratch() if scratch is None else scratch
        if self.kept is not None:
            return _weighted_rows(self.kept, factors, total)
        for rows in _chunks(self.a if self.a.numel() > self.b.numel() else self.b):
            total = self._product(wide(self.a[rows]), wide(self.b[rows]), factors[rows], total, scratch)
        assert total is not None
        return total

    def _product(self, a: Tensor, b: Tensor, factors: Tensor, total: Tensor | None, scratch: Scratch) -> Tensor:
        if a.shape[2] <= b.shape[2]:
            a = scratch.times(a, factors)
        else:
            b = scratch.times(b, factors)
        a, b = a.reshape(-1, a.shape[2]), b.reshape(-1, b.shape[2])
        new = (products.outer(b, a) if self.transposed else products.outer(a, b)).view(self.shape)
        return new if total is None else total.add_(new)

    def select(self, rows: Tensor) -> MatrixUse:
        """The same use for some of the examples."""
        kept = None if self.kept is None else self.kept[rows]
        return dataclasses.replace(self, a=self.a[rows], b=self.b[rows], kept=kept)


@dataclasses.dataclass(slots=True, eq=False)
class RowUse:
    """An embedding: ids (B, T), b (B, T, d) with the padding row's positions already zero."""

    ids: Tensor
    b: Tensor
    shape: torch.Size

    def _segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of b over equal (example, id): sums (U, d), example (U,), id (U,)."""
        size, width = self.ids.shape
        key = self.ids + torch.arange(size, device=self.ids.device)[:, None] * self.shape[0]
        unique, inverse = torch.unique(key.reshape(-1), return_inverse=True)
        b = wide(self.b).reshape(size * width, -1)
        sums = b.new_zeros(len(unique), b.shape[1]).index_add_(0, inverse, b)
        return sums, unique // self.shape[0], unique % self.shape[0]

    def square(self, grams: Grams) -> Square:
        """|G_i|² after summing the rows of equal ids."""
        sums, example, _ = self._segments()
        value = sums.new_zeros(len(self.ids)).index_add_(0, example, sums.square().sum(1))
        return Square(value, value)

    def instance(self, rows: Tensor | None = None) -> Tensor:
        """G_i written down, (B, V, d)."""
        ids, b = (self.ids, wide(self.b)) if rows is None else (self.ids[rows], wide(self.b[rows]))
        full = b.new_zeros(len(ids), *self.shape)
        return full.scatter_add_(1, ids[:, :, None].expand(-1, -1, b.shape[2]), b)

    def weighted(self, factors: Tensor, total: Tensor | None) -> Tensor:
        """Σ_i c_i G_i, (V, d), added into ``total`` where there is one."""
        b = _times(wide(self.b), factors)
        total = b.new_zeros(self.shape) if total is None else total
        return total.index_add_(0, self.ids.reshape(-1), b.reshape(-1, b.shape[2]))

    def select(self, rows: Tensor) -> RowUse:
        """The same use for some of the examples."""
        return dataclasses.replace(self, ids=self.ids[rows], b=self.b[rows])


@dataclasses.dataclass(slots=True, eq=False)
class DirectUse:
    """A parameter whose per-example gradients are written down: full (B, *parameter shape)."""

    full: Tensor

    def square(self, grams: Grams) -> Square:
        """|G_i|²."""
        return _squared(wide(self.full))

    def instance(self, rows: Tensor | None = None) -> Tensor:
        """G_i, (B, *parameter shape)."""
        return wide(self.full if rows is None else self.full[rows])

    def weighted(self, factors: Tensor, total: Tensor | None) -> Tensor:
        """Σ_i c_i G_i, added into ``total`` where there is one."""
        return _weighted_rows(wide(self.full), factors, total)

    def select(self, rows: Tensor) -> DirectUse:
        """The same use for some of the examples."""
        return DirectUse(self.full[rows])
