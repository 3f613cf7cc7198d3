"""What a row offers to the command: settings, seeds, and a function that runs one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

SEEDS = (0, 1, 2)
FIRST_ORDER, ZEROTH_ORDER = (3.0, 8.0), (2.0, 4.0, 8.0)
"""The ε of Li et al. and of Liu et al."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How all settings of a call are run.

    Parameters
    ----------
    device : str
        "cpu" runs the small models, "cuda" a real one (``backbone``).
    steps : int or None
        A trial: so many steps instead of the setting's own. Nothing of a trial is recorded.
    backbone : str
        "small", pretrained here; "afresh", the same on verses that no earlier search or test saw (row 7);
        "smollm2", SmolLM2-135M from its package; "stand-in", random and tiny, for tests.
    minutes : float or None
        Begin no further run after so many minutes.
    """

    device: str = "cpu"
    steps: int | None = None
    backbone: str = "small"
    minutes: float | None = dataclasses.field(default=None, repr=False, compare=False)

    def at_most(self, steps: int) -> int:
        """The steps of a run: the setting's own, or the trial's."""
        return steps if self.steps is None else min(steps, self.steps)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its key, and what runs it. The result is a flat dictionary of numbers and short texts."""

    row: int
    setting: str
    seed: int
    run: Callable[[], dict[str, Any]]


def named(**parts: Any) -> str:
    """A setting's name, such as ``method=dpzero epsilon=4``; parts that are None are left out."""
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in parts.items() if v is not None)


def seeded(jobs: Iterable[Callable[[int], Job]], seeds: Iterable[int] = SEEDS) -> Iterable[Job]:
    """Every setting with every seed, one setting after the other."""
    taken = tuple(seeds)
    for job in jobs:
        for seed in taken:
            yield job(seed)
