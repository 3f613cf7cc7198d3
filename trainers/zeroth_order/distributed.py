"""A zeroth-order step spread over processes: each evaluates its share of the directions, or of the records.

One process draws the batch and the noise, and knows of the in-run canaries. Differences are gathered, not summed,
since a joint clip needs an example's whole P-vector; they are P·B numbers. The result is the one-process result,
because every direction is evaluated alone, records do not meet, and the noisy vector is drawn once. A model in shards
(FSDP2) is gathered layer by layer for each pass, of which all processes then make the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, StorageFailed
from dpaudit.privacy.protocols import Journal

T = TypeVar("T")


class World(Protocol):
    """The processes that share a step."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def share(self, value: Any) -> Any:
        """Rank 0's value, in every process."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all of them ask together."""

    def largest(self, number: int) -> int:
        """The largest number that any process says; all of them ask together."""

    def directions(self, total: int) -> Sequence[int]:
        """Those of a step's directions that this process evaluates."""

    def units(self, drawn: Sequence[T]) -> Sequence[T]:
        """Those of a draw's units that this process evaluates."""

    def gather(self, found: Tensor, directions: int, units: int) -> Tensor:
        """Differences (directions, units) of all processes, in order, from those of this one's share."""


class OneProcess:
    """No other process."""

    rank, size = 0, 1

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def largest(self, number: int) -> int:
        """The number itself."""
        return number

    def directions(self, total: int) -> Sequence[int]:
        """All of them."""
        return range(total)

    def units(self, drawn: Sequence[T]) -> Sequence[T]:
        """All of them."""
        return drawn

    def gather(self, found: Tensor, directions: int, units: int) -> Tensor:
        """The differences themselves."""
        return found


class TorchWorld:
    """The default ``torch.distributed`` process group (``gloo`` on a CPU), as ``torchrun`` sets it up.

    Parameters
    ----------
    spread : str
        What each process takes its share of: ``directions``, which serves where a step has several of them for each
        process, or ``records``, which serves with any number of directions, and alone for a model in shards.
    """

    def __init__(self, spread: Literal["directions", "records"] = "directions") -> None:
        from torch import distributed

        if spread not in ("directions", "records"):
            raise InvalidValue(f"spread={spread!r} must be 'directions' or 'records'.")
        if not distributed.is_initialized():
            raise InvalidValue("no process group is initialised; call torch.distributed.init_process_group first.")
        self._distributed, self._records, self.spread = distributed, spread == "records", spread
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()

    def share(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        box = [value]
        self._distributed.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return any(self._all(flag))

    def largest(self, number: int) -> int:
        """The largest number that any process says."""
        return int(max(self._all(number)))

    def directions(self, total: int) -> Sequence[int]:
        """All, or every size-th."""
        return range(total) if self._records else range(self.rank, total, self.size)

    def units(self, drawn: Sequence[T]) -> Sequence[T]:
        """Every size-th, or all."""
        return drawn[self.rank :: self.size] if self._records else drawn

    def gather(self, found: Tensor, directions: int, units: int) -> Tensor:
        """Shares of all processes, interleaved back into the order of directions or units."""
        whole = torch.zeros(directions, units, dtype=found.dtype)
        for rank, part in enumerate(self._all(found)):
            if part.numel() and self._records:
                whole[:, rank :: self.size] = part
            elif part.numel():
                whole[rank :: self.size] = part
        return whole

    def _all(self, value: Any) -> list[Any]:
        parts: list[Any] = [None] * self.size
        self._distributed.all_gather_object(parts, value)
        return parts


def refuse_apart_from_shards(world: World) -> None:
    """Refuse processes that would not make their forward passes together, in which FSDP2 gathers a model in shards.

    Raises
    ------
    PrivacyRefusal
        For one process that knows of no other, and for processes that share directions.
    """
    if not isinstance(world, TorchWorld) or world.spread != "records":
        raise PrivacyRefusal(
            "the model is sharded over processes (fully_shard), which gather its weights together in every pass; pass"
            " world=TorchWorld('records') in each of them."
        )


def counted_by_the_first(world: World, journal: Journal) -> None:
    """Count one step in rank 0's journal; no process goes on where it could not.

    Raises
    ------
    StorageFailed
        What rank 0's journal raised, or in the other processes that it did.
    """
    failure: StorageFailed | None = None
    if world.rank == 0:
        try:
            journal.count()
        except StorageFailed as error:
            failure = error
    if world.share(failure is not None):
        raise failure or StorageFailed(
            "another process could not count its step, so that none goes on; see that process's error."
        )
