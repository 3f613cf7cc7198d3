"""Choice of how a pair is composed: by a few Fourier coefficients or, where too many matter, by an FFT in a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dpaudit.accounting.prv import inverse
from dpaudit.accounting.prv.compose import Tails
from dpaudit.accounting.prv.pair import Pair, dominated, dominating, largest_window, on_grid, spacing, wanted_spacing
from dpaudit.accounting.prv.readings import epsilon_above, epsilon_below
from dpaudit.accounting.prv.saddle import Aim, Run

_MANY = 100  # steps from which on a spectrum may have few coefficients
_SMOOTH = 20  # lattice points to one standard deviation of the composed loss, at least, for the same
_SMALL = 6000  # points of a window that is composed as fast
Reading = Callable[[float, bool], float]
"""Bound on ε at a log δ; the flag leaves out round-off, for a diagnosis."""


class Route:
    """Composes pairs by a few Fourier coefficients, and by an FFT in a window once that has failed.

    One route serves both directions of a ledger.
    """

    def __init__(self, runs: Sequence[Run], *, few: bool = True) -> None:
        self._runs = runs
        self._by_few = few and sum(times for _, times in runs) >= _MANY
        self.cut_at: float | None = None
        """Width of the lattice on which cells have been made last."""

    def spacing(self, aim: Aim, tolerance: float) -> float:
        """Width of the lattice for a width of ``tolerance`` in ε."""
        if self._by_few:
            h = on_grid(wanted_spacing(self._runs, aim, tolerance))
            # The number of points costs nothing, so the cells of the other direction may as well be used again.
            if self.cut_at is not None and self.cut_at <= h:
                h = self.cut_at
            if _worth_it(aim, h):
                return h
        return spacing(self._runs, aim, tolerance)

    def smallest(self, aim: Aim) -> float:
        """Smallest lattice width that this route can use."""
        return 0.0 if self._by_few else (aim.high - aim.low) / (largest_window(len(self._runs)) - 4)

    def above(self, runs: Sequence[Run], aim: Aim, h: float, growth: float, tolerance: float) -> tuple[Reading, float]:
        """Upper bounds on ε from the dominating pair, and the lattice width that was used."""
        if self._by_few and _worth_it(aim, h):
            found = inverse.above(runs, aim, h, growth)
            if found is not None:
                self.cut_at = h
                return found.upper, h
            self._by_few = False
            h = spacing(self._runs, aim, tolerance)
        pair = dominating(runs, aim, h, growth)
        return (lambda log_delta, exact: epsilon_above(_exact(pair) if exact else pair, log_delta)), h

    def below(self, runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Reading:
        """Lower bounds on ε from the dominated pair."""
        if self._by_few and _worth_it(aim, h):
            found = inverse.below(runs, aim, h, growth)
            if found is not None:
                return found.lower
            if aim.high - aim.low > h * largest_window(len(self._runs)):
                return lambda log_delta, exact: 0.0
        pair = dominated(runs, aim, h, growth)
        return lambda log_delta, exact: epsilon_below(_exact(pair) if exact else pair, log_delta)


def _worth_it(aim: Aim, h: float) -> bool:
    """Whether a few coefficients are enough, and faster than a window."""
    return aim.spread >= _SMOOTH * h and aim.high - aim.low >= _SMALL * h


def _exact(pair: Pair) -> Pair:
    """The pair as if its tails had no errors: a diagnosis, never a bound."""

    def bare(tails: Tails) -> Tails:
        return dataclasses.replace(tails, error=np.where(np.isinf(tails.error), np.inf, 0.0))

    return dataclasses.replace(pair, first=bare(pair.first), second=bare(pair.second))
