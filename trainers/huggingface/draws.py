"""Poisson draws as a DataLoader's batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from dpaudit.trainers.sampling import Sampler
from dpaudit.trainers.units import RecordDraws, UnitDraws


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """The records of one draw, collated later, so that the micro-batch can shrink."""

    records: list[Any]


class Draws:
    """A batch sampler of ``steps`` draws, for a DataLoader that nobody re-wraps."""

    def __init__(self, sampler: Sampler, steps: int, drawn: RecordDraws | UnitDraws) -> None:
        self._sampler, self._steps, self._drawn = sampler, steps, drawn

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Any]]:
        for _ in range(self._steps):
            drawn = self._sampler.draw().tolist()
            rows = self._drawn.rows(drawn)
            if isinstance(self._drawn, UnitDraws):
                yield [(unit, i) for unit, members in zip(drawn, rows, strict=True) for i in members]
            else:
                yield [i for members in rows for i in members]
