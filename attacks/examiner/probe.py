"""Runs an adapter for the examiner: restores the initial state before each release and measures costs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.attacks.examiner.adapter import Batch, StepAdapter, Vector


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
    limit : float
        Budget of the whole examination: seconds of work, or steps.
    counted : bool
        Whether ``limit`` counts released steps, so that no machine's speed decides what is observed; a minibatch that
        is drawn alone counts as a twentieth of a step.
    remake : callable or None
        Makes the adapter anew, for a step that an empty minibatch breaks.
    """

    def __init__(
        self,
        adapter: StepAdapter,
        limit: float,
        *,
        counted: bool = False,
        remake: Callable[[], StepAdapter] | None = None,
    ) -> None:
        self.adapter: Any = adapter
        self.limit, self.counted = limit, counted
        self.start = self._snapshot()
        self.releases, self.drawn = 0, 0
        self.known: dict[int, float] = {}
        """Budget of one step by the size of its minibatch, as last seen."""
        self.cost = 1.0 if counted else 1e-3
        """Budget that one step on a small minibatch takes, measured by :meth:`warm`."""
        self.reserve = 0.0
        """Budget reserved for composing the ledger at the end."""
        self.clock = Clock()
        self.part = self.until = limit
        self.factory = remake

    def _snapshot(self) -> Any:
        with _of_the_step():
            return self.adapter.snapshot()

    def warm(self, batch: Batch) -> None:
        """Two steps before the budget begins: the first pays for imports and caches, the second tells the cost."""
        try:
            self.release(batch)
            self.clock, self.releases = Clock(), 0
            self.release(batch)
        except StepRaised:
            return  # the tests that follow meet the same error and report it
        finally:
            self.part = self.until = self.limit
        self.cost = max(self.used(), 1e-6)

    def has(self, name: str) -> bool:
        """Whether the adapter offers an optional method: it has one that is not the base class's refusal."""
        method = getattr(self.adapter, name, None)
        return method is not None and getattr(method, "__func__", method) is not getattr(StepAdapter, name, None)

    @property
    def size(self) -> int | None:
        """Number of ordinary records."""
        found: int | None = self._stated("size")
        return found

    @property
    def adversaries(self) -> Mapping[str, int]:
        """Adversarial records by name."""
        found: Mapping[str, int] = self._stated("adversaries") or {}
        return found

    @property
    def rounding(self) -> float:
        """Largest L2 error of a released vector by rounding."""
        return float(self._stated("rounding"))

    @property
    def ledger_path(self) -> Path | None:
        """Where the run keeps its ledger on disk, if it does."""
        found = self._stated("ledger_path")
        return None if found is None else Path(found)

    @property
    def names_blocks(self) -> bool:
        """Whether the adapter names parts of the released vector."""
        return bool(self._stated("blocks"))

    def _stated(self, name: str) -> Any:
        """An attribute of the adapter, or the base class's default for an object that does not derive from it."""
        return getattr(self.adapter, name, getattr(StepAdapter, name))

    def blocks(self, coordinates: int) -> list[tuple[str, slice]]:
        """Named parts of the released vector; one part called "release" where the adapter names none."""
        parts = self._stated("blocks") or (("release", coordinates),)
        slices, at = [], 0
        for name, count in parts:
            slices.append((name, slice(at, at + count)))
            at += count
        return slices if at == coordinates else [("release", slice(0, coordinates))]

    def rewind(self) -> None:
        """Back to the state in which the examination began."""
        with _of_the_step():
            self.adapter.restore(self.start)

    def remake(self) -> bool:
        """Make the adapter anew, with a new state to begin from; whether that was possible."""
        if self.factory is None:
            return False
        try:
            self.adapter = self.factory()
            self.start = self._snapshot()
        except Exception:  # a factory that fails is as good as none, and the caller says what was not tested
            return False
        return True

    def called(self, name: str, *arguments: Any) -> Any:
        """The value of an optional method; what it raises is the adapter's."""
        with _of_the_step():
            return getattr(self.adapter, name)(*arguments)

    def release(self, indices: Batch) -> Vector:
        """One noisy step from the start."""
        return self._step(self.adapter.release, indices)

    def clean(self, indices: Batch) -> Vector:
        """One step without noise from the start."""
        return self._step(self.adapter.clean, indices)

    def _step(self, step: Callable[[Batch], Vector], indices: Batch) -> Vector:
        begun = self.used()
        self.rewind()
        self.releases += 1
        with _of_the_step():
            self._fix()
            released = np.asarray(step(indices), dtype=np.float64)
        self.known[len(indices)] = self.used() - begun
        return released

    def _fix(self) -> None:
        """Hold public randomness still, where the adapter can."""
        if self.has("fix"):
            self.adapter.fix(0)

    def residuals(self, batch: Batch, count: int, *, seeds: int | None = None) -> Vector:
        """Noise of consecutive steps on one minibatch, (count, d): each release less its clean twin from that state.

        In one run where the adapter has ``load``; else every step is the first of its own run.

        Parameters
        ----------
        seeds : int, optional
            Public seeds are set to this number and the step's place before each twin, for a step whose clean release
            follows them.
        """
        rows: list[Vector] = []
        self.rewind()
        self.releases += 2 * count
        with _of_the_step():
            for place in range(count):
                state = self.adapter.snapshot() if self.has("load") else self.start
                self._twin(seeds, place)
                quiet = np.asarray(self.adapter.clean(batch), dtype=np.float64)
                (self.adapter.load if self.has("load") else self.adapter.restore)(state)
                self._twin(seeds, place)
                rows.append(np.asarray(self.adapter.release(batch), dtype=np.float64) - quiet)
                if not self.has("load"):
                    self.adapter.restore(state)
        return np.stack(rows)

    def _twin(self, seeds: int | None, place: int) -> None:
        if seeds is not None:
            set_public_seeds(1000 * seeds + place)
        self._fix()

    def expected(self, n: int) -> float:
        """Budget of a step on n records, from the next larger minibatch known, or in proportion to the largest."""
        larger = [size for size in self.known if size >= n]
        if larger:
            return self.known[min(larger)]
        largest = max(self.known, default=0)
        return self.cost if largest == 0 else self.known[largest] * n / largest

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
        self.drawn += count
        with _of_the_step():
            found = self.adapter.draws(count) if self.has("draws") else [self.adapter.draw() for _ in range(count)]
        return [np.asarray(batch, dtype=np.int64).reshape(-1) for batch in found]

    def used(self) -> float:
        """Budget used so far."""
        return self.releases + self.drawn / 20 if self.counted else self.clock()

    def allot(self, share: float) -> None:
        """Give the next group of tests a share of what is left of the budget."""
        left = max(self.limit - self.reserve - self.used(), 0.0)
        self.part, self.until = share * left, self.used() + share * left

    def left(self) -> float:
        """What is left of the group's part."""
        return max(self.until - self.used(), 0.0)

    def affordable(self, share: float, each: float) -> int:
        """How many operations of a cost fit into a share of the group's part (and into what is left of it)."""
        return int(min(share * self.part, self.left()) / max(each, 1e-6))

    def words(self, amount: float) -> str:
        """An amount of budget, in its unit.

        A sentence such as "12 steps" or "3.1 s".
        """
        return f"{amount:.0f} steps" if self.counted else f"{amount:.2g} s"


def set_public_seeds(seed: int) -> None:
    """Set every generator that a public seed reaches: Python's, NumPy's and torch's global ones."""
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    # Torch.manual_seed writes the whole stack as text for each kind of accelerator, at every replay; this does not.
    else:
        torch.default_generator.manual_seed(seed)
