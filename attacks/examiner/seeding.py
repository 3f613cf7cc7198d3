"""Seeds that a step sets by itself: noted, and set again, to see whether the noise follows them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

FEW = 2**40
"""Seeds below this number can be tried, all of them."""


@contextmanager
def noted(seeds: list[int]) -> Iterator[None]:
    """Add every seed that is set in Python's, NumPy's or torch's global generator to a list."""

    def note(seed: Any) -> Any:
        if isinstance(seed, (int, np.integer)):
            seeds.append(int(seed))
        return seed

    with _through(note):
        yield


@contextmanager
def forced(seeds: list[int]) -> Iterator[None]:
    """Set these seeds, one after the other, in place of those that the step sets."""
    left = iter(seeds)
    with _through(lambda seed: next(left, seed)):
        yield


@contextmanager
def _through(change: Callable[[Any], Any]) -> Iterator[None]:
    """Every seed that is set passes through a function."""
    held = torch.manual_seed, np.random.seed, random.seed

    def wrapped(own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda seed=None, *rest, **more: own(change(seed), *rest, **more)

    torch.manual_seed, np.random.seed, random.seed = (wrapped(each) for each in held)
    try:
        yield
    finally:
        torch.manual_seed, np.random.seed, random.seed = held
