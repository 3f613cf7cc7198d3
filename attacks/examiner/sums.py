"""Clipped sums of chosen records, with the noise off, in units of the sensitivity.

Where minibatches may have any size, records are added to nothing. Where they have one size, a record takes the place of
a filler, and what it contributes is known up to that filler's contribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.footing import SEED, Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised, set_public_seeds

TOLERANCE = 1e-3
"""Relative slack for fp32 rounding of weights and sums: a breach is larger than this share of C."""

COUPLING = 5e-3
"""Relative change of the others' contributions that counts as coupling, beyond rounding of another padding."""

ORDINARY = 6
"""Ordinary records that are replayed alone and together."""


class OutOfTime(Exception):
    """Raised when a test group's part of the budget is used up."""


@dataclasses.dataclass(slots=True)
class Sums:
    """The clipped sum of any batch, in units of the sensitivity."""

    probe: Probe
    plan: ExamPlan
    footing: Footing
    cache: dict[tuple[int, ...], Vector] = dataclasses.field(default_factory=dict)
    cost: float = 0.0
    """Of a record in the dearest minibatch so far, and of a step, whichever says more of the next one."""
    movement: Vector | None = None
    """What the weights move by whatever the records, taken off every sum."""
    fillers: tuple[int, ...] = ()
    doubles: bool = True
    """Whether a minibatch may hold one record many times, so that its contribution is known by itself."""

    def __post_init__(self) -> None:
        size = self.probe.size or 8
        if self.swaps:
            room = max(size - len(self.footing.usual), 1)
            start = min(ORDINARY, room)
            self.fillers = tuple((start + k) % size for k in range(len(self.footing.usual)))

    @property
    def swaps(self) -> bool:
        """Whether records replace fillers, since the minibatch has a fixed size."""
        return self.footing.fixed or not self.footing.single

    @property
    def base(self) -> list[int]:
        """Ordinary records that are no fillers."""
        size = self.probe.size or 8
        return [i for i in range(min(size, ORDINARY)) if i not in self.fillers]

    def batch(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The minibatch that holds these records: with fillers behind them where its size is fixed."""
        return (*indices, *self.fillers[len(indices) :])

    def raw(self, batch: tuple[int, ...]) -> Vector:
        """What a minibatch releases, times the normaliser, over the sensitivity."""
        if batch not in self.cache:
            self.cache[batch] = self.fresh(batch)
        return self.cache[batch]

    def fresh(self, batch: Sequence[int]) -> Vector:
        """The release of a minibatch, run again instead of looked up."""
        if self.probe.left() < max(self.probe.cost, self.cost):
            raise OutOfTime
        begun = self.probe.used()
        if self.footing.aligned:
            set_public_seeds(SEED)
        with np.errstate(all="ignore"):
            released = self.probe.clean(batch)
        self.cost = max(self.cost, self.probe.used() - begun)
        return released * (self.plan.normaliser / self.plan.sensitivity)

    def sum(self, *indices: int) -> Vector:
        """Clipped sum of some records; where they replace fillers, less the fillers' contributions."""
        whole = self.raw(self.batch(indices))
        if self.swaps:
            return whole - self.raw(self.fillers)
        return whole if self.movement is None else whole - self.movement

    def share(self, index: int, slot: int = 0) -> Vector:
        """What a record adds at a place of the minibatch, beside fillers alone."""
        if not self.swaps:
            return self.sum(index)
        return self.sum(*self.fillers[:slot], index)

    def shares(self, indices: Sequence[int]) -> Vector:
        """Σ of what every record of a batch contributes alone."""
        return np.asarray(np.sum([self.share(i, slot) for slot, i in enumerate(indices)], axis=0))

    def beside(self, index: int, others: Sequence[int]) -> Vector:
        """What a record adds where others stand beside it."""
        if self.swaps:
            return self.sum(index, *others) - self.sum(self.fillers[0], *others)
        return self.sum(index, *others) - self.sum(*others) if others else self.sum(index)

    def alone(self, index: int) -> tuple[Vector, float]:
        """What one record releases, and the bound on its norm: 1, or 2 where only the change for another is known."""
        if not self.swaps:
            return self.sum(index), 1.0
        many = (index,) * len(self.fillers)
        if self.doubles and len(many) > 1:
            try:
                return self.raw(many) / len(many), 1.0
            except StepRaised:
                self.doubles = False
        return self.sum(index), 2.0

    def slack(self, readings: int = 1) -> float:
        """What rounding of the weights may add to a combination of so many readings."""
        return readings * self.footing.rounding
