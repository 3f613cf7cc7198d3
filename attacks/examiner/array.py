"""A step on arrays, of any library: a pure function of parameters and records, such as a jitted JAX update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import Batch, StepAdapter, Vector
from dpaudit.privacy.errors import InvalidValue


class ArrayAdapter(StepAdapter):
    """A function of arrays as a step; JAX arrays, NumPy arrays, or any nest of them that can be copied.

    Parameters
    ----------
    step : callable
        ``step(state, indices, noisy) -> (state, released)``: one step on these records. ``released`` is what leaves it,
        in the units of the noisy mean: an array, or a nest of lists, tuples and mappings of arrays.
    state : object
        Parameters, optimizer state, step number: all that a checkpoint holds, and no key of the noise.
    draw : callable
        Record numbers of the run's next minibatch.
    size : int
        Number of ordinary records.
    restart : callable or None
        Called when a snapshot is put back, to draw afresh what a new process draws afresh, such as the noise's key.
    adversaries : mapping
        Numbers of adversarial records by :class:`Role` or another name.
    """

    def __init__(
        self,
        step: Callable[[Any, Batch, bool], tuple[Any, Any]],
        state: Any,
        draw: Callable[[], Batch],
        *,
        size: int,
        restart: Callable[[], None] | None = None,
        adversaries: Mapping[str, int] | None = None,
    ) -> None:
        self._step, self._state, self._draw, self._restart = step, state, draw, restart
        self.size, self.adversaries = size, dict(adversaries or {})

    def snapshot(self) -> Any:
        """A copy of the state."""
        return copy.deepcopy(self._state)

    def restore(self, state: Any, /) -> None:
        """Put it back, and restart what a new process restarts."""
        self.load(state)
        if self._restart is not None:
            self._restart()

    def load(self, state: Any, /) -> None:
        """Put it back within one run."""
        self._state = copy.deepcopy(state)

    def draw(self) -> Batch:
        """The run's next minibatch."""
        return [int(i) for i in self._draw()]

    def release(self, indices: Batch, /) -> Vector:
        """One step with its noise."""
        return self._moved(indices, True)

    def clean(self, indices: Batch, /) -> Vector:
        """One step without."""
        return self._moved(indices, False)

    def _moved(self, indices: Batch, noisy: bool) -> Vector:
        self._state, released = self._step(self._state, indices, noisy)
        parts = [np.asarray(part, dtype=np.float64).ravel() for _, part in leaves(released)]
        self.blocks = tuple((name or "release", np.asarray(part).size) for name, part in leaves(released))
        if len(self.blocks) == 1:
            self.blocks = None
        return np.concatenate(parts)


def leaves(nest: Any, name: str = "") -> list[tuple[str, Any]]:
    """Arrays of a nest with their paths, mappings in the order of their keys.

    >>> leaves({"b": 2.0, "a": [1.0]})
    [('a.0', 1.0), ('b', 2.0)]
    """
    if isinstance(nest, Mapping):
        items: Sequence[tuple[Any, Any]] = [(key, nest[key]) for key in sorted(nest)]
    elif isinstance(nest, (list, tuple)):
        items = list(enumerate(nest))
    elif hasattr(nest, "__array__") or isinstance(nest, (int, float, np.ndarray)):
        return [(name, nest)]
    else:
        raise InvalidValue(
            f"released value of type {type(nest).__name__} is no array; return arrays, or nests of them."
        )
    return [leaf for key, value in items for leaf in leaves(value, f"{name}.{key}" if name else str(key))]
