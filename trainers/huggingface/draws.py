"""Poisson draws as a DataLoader's batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from dpaudit.trainers.sampling import Sampler
from dpaudit.trainers.units import RecordDraws, UnitDraws


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """The records of one draw, collated later, so that the micro-batch can shrink."""

    records: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A drawn in-run canary in place of a record."""

    number: int


class WithMembers(Dataset[Any]):
    """A data set that gives back a drawn canary as it is.

    Parameters
    ----------
    dataset : sequence
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Any) -> Any:
        return key if isinstance(key, Member) else self._dataset[key]


class Draws:
    """A batch sampler of ``steps`` draws, for a DataLoader that nobody re-wraps."""

    def __init__(self, sampler: Sampler, steps: int, drawn: RecordDraws | UnitDraws) -> None:
        self._sampler, self._steps, self._drawn = sampler, steps, drawn

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Any]]:
        for _ in range(self._steps):
            indices, count = self._sampler.draw().tolist(), self._drawn.count
            canaries = [Member(i - count) for i in indices if i >= count]  # in-run canaries stand behind the rest
            drawn = [i for i in indices if i < count]
            rows = self._drawn.rows(drawn)
            if isinstance(self._drawn, UnitDraws):
                yield [*((unit, i) for unit, members in zip(drawn, rows, strict=True) for i in members), *canaries]
            else:
                yield [*(i for members in rows for i in members), *canaries]
