"""Directions spread over processes: each evaluates its share, one process draws the batch and the noise.

Differences are gathered, not summed, since a joint clip needs an example's whole P-vector; they are P·B numbers. The
result is the one-process result, because every direction is evaluated alone and the noisy vector is drawn once.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dpaudit.privacy.errors import InvalidValue


class World(Protocol):
    """The processes that share a step."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def share(self, value: Any) -> Any:
        """Rank 0's value, in every process."""

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """All directions' rows in order: process r holds rows r, r + size, …; result of shape (total, B)."""


class OneProcess:
    """No other process."""

    rank, size = 0, 1

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """The rows themselves."""
        return rows


class TorchWorld:
    """The default ``torch.distributed`` process group (``gloo`` on a CPU), as ``torchrun`` sets it up."""

    def __init__(self) -> None:
        from torch import distributed

        if not distributed.is_initialized():
            raise InvalidValue("no process group is initialised; call torch.distributed.init_process_group first.")
        self._distributed = distributed
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()

    def share(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        box = [value]
        self._distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Rows of all processes, interleaved back into the order of directions."""
        parts: list[Tensor | None] = [None] * self.size
        self._distributed.all_gather_object(parts, rows)
        whole = torch.zeros(total, rows.shape[1], dtype=rows.dtype)
        for rank, part in enumerate(parts):
            if part is not None and part.numel():
                whole[rank :: self.size] = part
        return whole
