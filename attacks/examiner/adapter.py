"""What the examiner asks of a training step: four calls that every adapter has, and further ones that it may offer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dpaudit.privacy.ledger import Ledger

Vector = NDArray[np.float64]
Batch = Sequence[int]


class Role(StrEnum):
    """What an adversarial record stands for."""

    LARGE = "large loss"
    HUGE = "huge loss"
    INFINITE = "infinite loss"
    UNDEFINED = "undefined loss"


FACTORS: dict[str, float] = {
    Role.LARGE: 1e3,
    Role.HUGE: 1e6,
    Role.INFINITE: math.inf,
    Role.UNDEFINED: math.nan,
}
"""Roles of adversarial records that every task has: one of the task's records, its loss multiplied by a factor."""

UNDEFINED = (Role.INFINITE, Role.UNDEFINED)
"""Roles whose contribution must be zero."""

SCALED = (Role.LARGE, Role.HUGE)
"""Roles whose contribution must be clipped, in the order of their loss."""


@dataclasses.dataclass(frozen=True, slots=True)
class Movement:
    """One step's movement of the weights, and its two parts as the plan predicts them from public values.

    Parameters
    ----------
    moved, along, pull : array of shape (weights,)
        Weights after minus before; minus the rate times the mean of released numbers times directions; and minus the
        rate times the proximal pull.
    """

    moved: Vector
    along: Vector
    pull: Vector


class StepAdapter:
    """One training step of any library. Derive from it and write the first four methods.

    A method that is left as it is here counts as not offered: the tests that need it are reported as not run. An object
    with the same methods serves as well as a subclass.

    Attributes
    ----------
    size : int or None
        Number of ordinary records, numbered from 0.
    adversaries : mapping of str to int
        Numbers of extra, adversarial records. Those named by a :class:`Role` are used in that role; any other
        name serves for a record that is to be clipped like the rest.
    blocks : sequence of (str, int), or None
        Names and numbers of coordinates of the released vector's parts, in order; one part where None.
    ledger_path : path or None
        Where the run keeps its ledger on disk, if it does.
    rounding : float
        Largest L2 error of a released vector by rounding, such as that of the weights it is read from; 0 where the
        vector is handed over as it is.

    Raises
    ------
    NotImplementedError
        From every method that is left as it is here.
    """

    size: int | None = None
    adversaries: Mapping[str, int] = {}
    blocks: Sequence[tuple[str, int]] | None = None
    ledger_path: Path | None = None
    rounding: float = 0.0

    def snapshot(self) -> Any:
        """Everything that a checkpoint holds: weights and optimizer state, and never noise or sampler state."""
        raise NotImplementedError(f"{type(self).__name__} needs snapshot().")

    def restore(self, state: Any, /) -> None:
        """Put a snapshot back, as a resumed process does; what must be drawn afresh is drawn afresh.

        Parameters
        ----------
        state : object
            As :meth:`snapshot` returned it.
        """
        raise NotImplementedError(f"{type(self).__name__} needs restore(state).")

    def draw(self) -> Batch:
        """Record numbers of one minibatch, by the run's own sampler."""
        raise NotImplementedError(f"{type(self).__name__} needs draw().")

    def release(self, indices: Batch, /) -> Vector:
        """Run one step on a given minibatch and return what leaves it, (d,), in the units of the noisy mean.

        Parameters
        ----------
        indices : tuple of int
            Record numbers of the minibatch, ordinary or adversarial; may be empty.

        Returns
        -------
        array of shape (d,)
            The noisy mean, fp64: the noisy sum over the normaliser L.
        """
        raise NotImplementedError(f"{type(self).__name__} needs release(indices).")

    def clean(self, indices: Batch, /) -> Vector:
        """The release with the noise off and all else the same.

        Parameters
        ----------
        indices : tuple of int
            Record numbers of the minibatch, ordinary or adversarial; may be empty.

        Returns
        -------
        array of shape (d,)
            As :meth:`release`, without noise.
        """
        raise NotImplementedError

    def load(self, state: Any, /) -> None:
        """Put a snapshot back within one run: the weights alone, while noise and sampler go on.

        Parameters
        ----------
        state : object
            As :meth:`snapshot` returned it.
        """
        raise NotImplementedError

    def fix(self, key: int, /) -> None:
        """Make the next step's public randomness, as dropout masks or directions, a function of key and record.

        Parameters
        ----------
        key : int
            The same key gives the same public randomness.
        """
        raise NotImplementedError

    def weights(self) -> Vector:
        """The weights as they are now, (d,), in the order of the released vector."""
        raise NotImplementedError

    def state(self) -> Mapping[str, Vector]:
        """Tensors beside the weights that are released with them, such as running statistics, by name."""
        raise NotImplementedError

    def bounds(self) -> Sequence[float]:
        """Clipping bounds in force at the steps of the last run, where the plan states that they adapt."""
        raise NotImplementedError

    def run(self, batches: Sequence[Batch], /) -> Vector:
        """Vectors of consecutive steps of ONE run on given minibatches, as an array (steps, coordinates).

        Parameters
        ----------
        batches : sequence of tuple of int
            Minibatches of the steps, in order.

        Returns
        -------
        array of shape (steps, d)
            The releases, in the units of :meth:`release`.
        """
        raise NotImplementedError

    def draws(self, count: int, /) -> Sequence[Batch]:
        """Minibatches of consecutive steps of ONE run.

        Parameters
        ----------
        count : int
            Number of steps.

        Returns
        -------
        sequence of tuple of int
            Record numbers of each minibatch; may be empty.
        """
        raise NotImplementedError

    def resized(self, n: int, /) -> StepAdapter:
        """The same step function on the first n records.

        Parameters
        ----------
        n : int
            Records of the smaller data set, at most ``size``.

        Returns
        -------
        StepAdapter
            With the same weights, plan and loss.
        """
        raise NotImplementedError

    def published(self) -> Mapping[str, float]:
        """Numbers that the last step publishes beside its vector, by name."""
        raise NotImplementedError

    def ledger(self) -> Ledger:
        """What was counted for all releases so far."""
        raise NotImplementedError

    def resume(self, before: int, after: int, /) -> Ledger:
        """What is counted when ``before`` steps run, the process stops, and ``after`` more run.

        Parameters
        ----------
        before, after : int
            Steps before and after the stop.

        Returns
        -------
        Ledger
            What the ledger says of both together.
        """
        raise NotImplementedError

    def movements(self, steps: int, /) -> Sequence[Movement]:
        """Steps on empty minibatches of a zeroth-order run: what moved, and what the released numbers call for."""
        raise NotImplementedError

    def executed_scale(self, direction: int = 0, /) -> float:
        """Distance of the two evaluations of a zeroth-order step over the planned one."""
        raise NotImplementedError
