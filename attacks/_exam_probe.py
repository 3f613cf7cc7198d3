"""The examiner's hand on an adapter: every question starts from the same state, and costs are measured."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.attacks._adapters import Batch, StepAdapter, Vector


class Clock:
    """Seconds of work since it was made: the smaller of wall-clock and processor time, so that a busy machine takes
    longer and does not observe less."""

    def __init__(self) -> None:
        self._wall, self._work = time.monotonic(), time.process_time()

    def __call__(self) -> float:
        """Seconds so far."""
        return min(time.monotonic() - self._wall, time.process_time() - self._work)


class StepRaised(Exception):
    """The adapter raised; a mistake of the examiner's own is never turned into a finding."""


@contextmanager
def _of_the_step() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StepRaised(f"{type(error).__name__}: {str(error)[:300]}") from error


class Probe:
    """Questions to one adapter, each from the state in which the examination began.

    Parameters
    ----------
    adapter : StepAdapter
    seconds : float
        Time budget of the whole examination.
    """

    def __init__(self, adapter: StepAdapter, seconds: float) -> None:
        self.adapter: Any = adapter
        self.seconds = seconds
        self.clock = Clock()
        self.start = adapter.snapshot()
        self.releases = 0
        self.cost = 1e-3
        """Seconds of one step on a small batch, measured."""

    def has(self, name: str) -> bool:
        """Whether the adapter offers an optional method."""
        return getattr(self.adapter, name, None) is not None

    @property
    def size(self) -> int | None:
        """Number of ordinary records."""
        return getattr(self.adapter, "size", None)

    @property
    def adversaries(self) -> Mapping[str, int]:
        """Adversarial records by name."""
        found: Mapping[str, int] = getattr(self.adapter, "adversaries", None) or {}
        return found

    def blocks(self, coordinates: int) -> list[tuple[str, slice]]:
        """Named parts of the released vector; one part called "release" where the adapter names none."""
        parts = getattr(self.adapter, "blocks", None) or (("release", coordinates),)
        slices, at = [], 0
        for name, count in parts:
            slices.append((name, slice(at, at + count)))
            at += count
        return slices if at == coordinates else [("release", slice(0, coordinates))]

    def rewind(self) -> None:
        """Back to the state in which the examination began."""
        self.adapter.restore(self.start)

    def release(self, indices: Batch) -> Vector:
        """One noisy step from the start."""
        self.rewind()
        self.releases += 1
        with _of_the_step():
            return np.asarray(self.adapter.release(indices), dtype=np.float64)

    def clean(self, indices: Batch) -> Vector:
        """One step without noise from the start."""
        self.rewind()
        self.releases += 1
        with _of_the_step():
            return np.asarray(self.adapter.clean(indices), dtype=np.float64)

    def run(self, batches: Sequence[Batch]) -> Vector:
        """Consecutive noisy steps of one run from the start, (steps, d)."""
        self.rewind()
        self.releases += len(batches)
        with _of_the_step():
            if self.has("run"):
                return np.asarray(self.adapter.run(batches), dtype=np.float64)
            return np.stack([np.asarray(self.adapter.release(batch), dtype=np.float64) for batch in batches])

    def draws(self, count: int) -> list[NDArray[np.int64]]:
        """Minibatches of consecutive steps of one run."""
        self.rewind()
        with _of_the_step():
            found = self.adapter.draws(count) if self.has("draws") else [self.adapter.draw() for _ in range(count)]
        return [np.asarray(batch, dtype=np.int64).reshape(-1) for batch in found]

    def spent(self) -> float:
        """Share of the time budget used so far."""
        return self.clock() / self.seconds

    def affordable(self, share: float, each: float) -> int:
        """How many operations of ``each`` seconds fit into a share of the whole budget (and of what is left)."""
        left = max(self.seconds * (1 - self.spent()), 0.0)
        return int(min(share * self.seconds, left) / max(each, 1e-6))


def set_public_seeds(seed: int) -> None:
    """Set every generator that a public seed reaches: Python's, NumPy's and torch's global ones."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
