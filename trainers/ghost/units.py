"""Several rows, one unit of privacy: the uses of a forward pass over rows, folded so that each unit is one example.

Rows of one unit are laid behind each other on the axis of positions: (R, T, d) becomes (U, G·T, d), where positions
without a row are zero. A layer's rule is then that of one long example, so that |Σ_r G_r|² has the terms between the
unit's rows too, and one factor multiplies them all.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.ghost.cross import Use
from dpaudit.trainers.ghost.head import HeadUse, UnitHeadUse
from dpaudit.trainers.ghost.uses import DirectUse, MatrixUse, RowUse, wide


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UnitRows:
    """Which unit each row of a forward pass belongs to.

    Parameters
    ----------
    of : Tensor of shape (R,)
        Unit of each row, in [0, ``count``).
    count : int
        U, units; one may have no row, and then contributes nothing.
    width : int
        G, rows of the largest unit.
    slots : Tensor of shape (R,) or None
        Where each row stands among U·G places; None where the rows already stand there in order.
    """

    of: Tensor
    count: int
    width: int
    slots: Tensor | None

    @classmethod
    def blocks(cls, count: int, width: int, device: torch.device) -> UnitRows:
        """``count`` units of ``width`` successive rows each."""
        return cls(torch.arange(count, device=device).repeat_interleave(width), count, width, None)

    @classmethod
    def assigned(cls, of: Tensor, count: int) -> UnitRows:
        """Rows in any order, units of any size.

        Raises
        ------
        InvalidValue
            If ``of`` is no vector of whole numbers in [0, ``count``).
        """
        if of.dim() != 1 or of.is_floating_point() or of.is_complex() or of.dtype is torch.bool:
            raise InvalidValue(
                f"units of shape {tuple(of.shape)} and type {of.dtype} must be (R,) integers, the unit of each row."
            )
        if len(of) and not bool(((of >= 0) & (of < count)).all()):
            raise InvalidValue(
                f"units go from {int(of.min())} to {int(of.max())} and must lie in [0, {count}), one loss for each;"
                " number the units of this batch from 0."
            )
        of = of.long()
        sizes = torch.bincount(of, minlength=count)
        width = int(sizes.max()) if len(of) else 0
        order = torch.argsort(of, stable=True)
        starts = sizes.cumsum(0) - sizes
        places = torch.empty_like(of)
        places[order] = torch.arange(len(of), device=of.device) - starts[of[order]]
        slots = of * width + places
        in_order = len(of) == count * width and bool((slots == torch.arange(len(of), device=of.device)).all())
        return cls(of, count, width, None if in_order else slots)

    @property
    def rows(self) -> int:
        """R."""
        return len(self.of)

    def folded(self, use: Use) -> Use:
        """The use with each unit as one example."""
        match use:
            case MatrixUse():
                return dataclasses.replace(use, a=self._behind(use.a), b=self._behind(use.b))
            case RowUse():
                return dataclasses.replace(use, ids=self._behind(use.ids), b=self._behind(use.b))
            case DirectUse():
                full = wide(use.full.detach())
                return DirectUse(full.new_zeros(self.count, *full.shape[1:]).index_add_(0, self.of, full))
            case HeadUse():
                return UnitHeadUse(use, self.of, torch.arange(self.count, device=self.of.device))
            case UnitHeadUse():
                return use

    def _behind(self, tensor: Tensor) -> Tensor:
        """(R, T, ...) as (U, G·T, ...), zero where a unit has fewer rows than the largest."""
        if self.slots is not None:
            places = tensor.new_zeros(self.count * self.width, *tensor.shape[1:])
            tensor = places.index_copy_(0, self.slots, tensor.detach())
        return tensor.reshape(self.count, self.width * tensor.shape[1], *tensor.shape[2:])
