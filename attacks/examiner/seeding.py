"""Find noise that follows seeds which the step sets itself: the seeds are noted and set again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, found

FEW = 2**40
"""Seeds below this number can be tried, all of them."""

TRIES = 3
"""Steps that are run again with the seeds that they had set."""


def own_seeds(probe: Probe, base: Footing) -> list[ExamFinding]:
    """Whether a step that sets seeds releases the same again, noise included, once they are set again.

    Equal vectors of continuous noise are no chance, so nothing is asked of the examination's false alarms.
    """
    longest = 0
    for _ in range(TRIES):
        if probe.left() < 3 * probe.expected(len(base.usual)):
            return []
        seeds: list[int] = []
        with _noted(seeds):
            first = probe.release(base.usual)
        if not seeds or max(seeds) >= FEW or not (first != probe.release(base.usual)).any():
            return []  # none set, too many to try, or nothing that changes from step to step
        with _forced(seeds):
            again = probe.release(base.usual)
        if not np.allclose(first, again, rtol=1e-6, atol=1e-9):
            return []
        longest = max(longest, max(seeds).bit_length())
    text = f"the step sets seeds of {longest} bits, and with these set again it releases the same, noise included"
    return [found("noise_public_seed", text, measured=longest, bound=0.0, records=base.usual, without=())]


def _noted(seeds: list[int]) -> Any:
    """Add every seed that is set in Python's, NumPy's or torch's global generator to a list."""

    def note(seed: Any) -> Any:
        if isinstance(seed, (int, np.integer)):
            seeds.append(int(seed))
        return seed

    return _through(note)


def _forced(seeds: list[int]) -> Any:
    """Set these seeds, one after the other, in place of those that the step sets."""
    left = iter(seeds)
    return _through(lambda seed: next(left, seed))


@contextmanager
def _through(change: Callable[[Any], Any]) -> Iterator[None]:
    """Let every seed that is set pass through a function."""
    held = torch.manual_seed, np.random.seed, random.seed

    def wrapped(own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda seed=None, *rest, **more: own(change(seed), *rest, **more)

    torch.manual_seed, np.random.seed, random.seed = (wrapped(each) for each in held)
    try:
        yield
    finally:
        torch.manual_seed, np.random.seed, random.seed = held
