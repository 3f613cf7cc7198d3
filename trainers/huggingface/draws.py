"""Poisson draws as a DataLoader's batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from dpaudit.trainers.sampling import Sampler


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """The records of one draw, collated later, so that the micro-batch can shrink."""

    records: list[Any]


class Draws:
    """A batch sampler of ``steps`` draws, for a DataLoader that nobody re-wraps."""

    def __init__(self, sampler: Sampler, steps: int) -> None:
        self._sampler, self._steps = sampler, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._steps):
            yield self._sampler.draw().tolist()
