"""The records of one draw, cut into micro-batches, and their clipped sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.contribution import ClippedSum, RunningSum, Summing
from dpaudit.trainers.lengths import length_of
from dpaudit.trainers.objective import Batch, Collate, Objective
from dpaudit.trainers.physical import PhysicalBatch
from dpaudit.trainers.step import PrivateStep, accumulate


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """The records drawn for one step, the longest first.

    Records of like length share a micro-batch, so that little is computed on padding, and memory runs out at the first
    pass or not at all. No sum depends on the order.

    Parameters
    ----------
    rows : tuple of list
        The records of each contribution: one, or those of a unit, which no micro-batch parts.
    order : tuple of int
        Place of each contribution in the order in which it was drawn.
    indices : tuple of int
        Numbers of the records, as they were drawn.
    """

    rows: tuple[list[Any], ...]
    order: tuple[int, ...]
    indices: tuple[int, ...]

    @classmethod
    def of(cls, records: Sequence[Any], contributions: Sequence[Sequence[int]]) -> Draw:
        """The records of contributions, given by their numbers."""
        rows = [[records[i] for i in members] for members in contributions]
        lengths = [max((length_of(record) for record in members), default=0) for members in rows]
        order = sorted(range(len(rows)), key=lambda place: -lengths[place])
        return cls(
            tuple(rows[place] for place in order), tuple(order), tuple(i for members in contributions for i in members)
        )

    def parts(self, size: int) -> Iterator[list[list[Any]]]:
        """Successive contributions of together at most ``size`` records, or a single larger one."""
        part: list[list[Any]] = []
        held = 0
        for members in self.rows:
            if part and held + len(members) > size:
                yield part
                part, held = [], 0
            part.append(members)
            held += len(members)
        if part:
            yield part

    def passes(self, size: int) -> int:
        """Micro-batches of at most ``size`` records."""
        return sum(1 for _ in self.parts(size))


@dataclasses.dataclass(frozen=True, slots=True)
class SharedPasses:
    """Micro-batches that every process of a sharded model makes in a step.

    Parameters
    ----------
    count : int
        The largest number that any process needs.
    stand_in : callable
        Gives the record that the passes left over run; it adds nothing.
    """

    count: int
    stand_in: Callable[[], Any]


def clipped_sum(
    objective: Objective,
    draw: Draw,
    *,
    micro: PhysicalBatch,
    clipper: Summing,
    sums: RunningSum,
    bound: float,
    shared: SharedPasses | None = None,
) -> tuple[PrivateStep, ClippedSum]:
    """The clipped sum of one draw, in micro-batches that halve on out-of-memory; nothing is released in between.

    Parameters
    ----------
    objective : Objective
        Its state is refreshed first, since what was written between steps came of releases, and then put back after
        every micro-batch.
    micro : PhysicalBatch
    clipper : Summing
    sums : RunningSum
        Cleared first.
    bound : float
        Sensitivity of an empty draw's sum.
    shared : SharedPasses, optional
        With several processes that hold shards of the model.

    Raises
    ------
    InvalidValue
        If memory runs out while passes are shared: the other processes cannot repeat a pass that one has lost.
    """
    if objective.state is not None:
        objective.state.refresh()
    device = next(objective.model.parameters()).device
    while True:
        sums.clear()
        try:
            with micro.measured(device, len(draw.indices)):
                taken = _collated(draw, micro.size, objective.collate, shared)
                losses = accumulate(objective, taken, clipper=clipper, into=sums)
        except torch.OutOfMemoryError as error:
            if shared is not None:
                raise InvalidValue(
                    f"physical_batch_size={micro.size} does not fit the memory of one of several processes, which"
                    f" cannot repeat a pass alone; resume with {max(1, micro.size // 2)}."
                ) from error
            if micro.size == 1:
                raise
        else:
            total, found = sums.total(bound), torch.cat(losses) if losses else torch.zeros(0)
            back = torch.tensor(draw.order, dtype=torch.long).argsort()
            total = dataclasses.replace(total, norms=total.norms[back.to(total.norms.device)])
            return PrivateStep(losses=found[back.to(found.device)], norms=total.norms, indices=draw.indices), total
        # Outside the handler, so that the failed pass's frames and tensors are gone before the next try.
        micro.halve()


def _collated(
    draw: Draw, size: int, collate: Collate, shared: SharedPasses | None
) -> Iterator[tuple[Batch, list[int], bool]]:
    """Micro-batches with the sizes of their contributions, and whether they count."""
    made = 0
    for part in draw.parts(size):
        yield collate([record for members in part for record in members]), [len(members) for members in part], True
        made += 1
    while shared is not None and made < shared.count:
        yield collate([shared.stand_in()]), [1], False
        made += 1
