"""Two ledgers that enclose a given one, for lower and for upper bounds; both can be cut into lattice cells.

Leaving a run out is post-processing, so a lower bound of what is left holds for the whole. An upper bound pays for it:
with the run's total variation in δ where it hardly ever takes part, or, where its noise is so wide that rounding hides
its losses, by charging it as if every record took part in every step.
"""

from __future__ import annotations

import dataclasses
import math

from dpaudit.accounting.prv import participation
from dpaudit.accounting.prv.participation import Run
from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.stage import Mechanism

NARROW = 0.02
"""Noise narrower than this share of a shift: bounds by participation are as good as a lattice's, and cheaper."""
WIDE = 1e12
"""Noise wider than this many shifts: a step's loss is below what rounding resolves."""
LARGEST_MU = 1e10
"""Exact Gaussian part above which bounds by participation are as good as a lattice's: the sampled runs hardly count."""
_GIVEN_UP = 1e-3  # share of δ for which runs that hardly ever take part are left out of the upper bound


@dataclasses.dataclass(frozen=True, slots=True)
class Sides:
    """Charges for lower and for upper bounds; ``spent`` of δ and ``pure`` of ε are to be added to upper bounds."""

    below: Charges
    above: Charges
    spent: float = 0.0
    pure: float = 0.0

    @property
    def on_lattice(self) -> bool:
        """Whether every run that is left can be cut into cells."""
        return self.above.mu <= LARGEST_MU and not any(_narrow(step) for step, _ in self.above.runs)


def sides(cost: Charges, delta: float | None = None) -> Sides:
    """Charges for lower bounds and for upper bounds of a ledger's cost.

    Parameters
    ----------
    delta : float, optional
        δ of the question; without it nothing is spent.
    """
    kept, spent = [], 0.0
    for step, times in sorted(cost.runs, key=lambda run: run[1] * participation.step_variation(run[0])):
        price = times * participation.step_variation(step)
        # Noise too narrow for a lattice keeps the whole ledger off it, so up to half of δ is given for leaving it out.
        if delta is not None and spent + price <= (0.5 if _narrow(step) else _GIVEN_UP) * delta:
            spent += price
        else:
            kept.append((step, times))
    squares, pure, fine = [cost.mu], 0.0, []
    for step, times in kept:
        if min(part.scale for _, part in step.components) <= WIDE:
            fine.append((step, times))
        elif any(part.mechanism is Mechanism.LAPLACE for _, part in step.components):
            pure += times * largest_shift(step)
        else:
            squares.append(math.sqrt(times) * largest_shift(step))
    if len(fine) == len(cost.runs):
        return Sides(cost, cost)
    below = dataclasses.replace(cost, runs=tuple(fine))
    return Sides(below, dataclasses.replace(below, mu=math.hypot(*squares) * (1 + 1e-12)), spent, pure * (1 + 1e-12))


def _narrow(step: Step) -> bool:
    return any(part.scale < NARROW for _, part in step.components)


def largest_shift(step: Step) -> float:
    """Largest distance of a step's means, in units of its noise."""
    return max(participation.shift(part) / part.scale for _, part in step.components)


def with_gaussian(cost: Charges) -> tuple[Run, ...]:
    """The sampled runs and, fused into one step, everything Gaussian."""
    if cost.mu == 0:
        return cost.runs
    # Beside sampled runs a μ this small is below what their losses are rounded to.
    fused = Component(Mechanism.GAUSSIAN, 1 / max(cost.mu, 1e-100), (0.0, 1.0), (1.0,))
    return (*cost.runs, (Step(((1.0, fused),)), 1))


def directions(cost: Charges) -> tuple[int, ...]:
    """Directions (P against Q, Q against P) to compose: one where every pair is its own mirror image, else both."""
    symmetric = all(
        part.up == part.down or (part.up == (0.0, 1.0) and part.down == (1.0,))
        for step, _ in cost.runs
        for _, part in step.components
    )
    return (1,) if symmetric else (1, -1)
