"""Movement of the weights that comes of no record, such as weight decay: measured, explained and subtracted."""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.alone import norm
from dpaudit.attacks.examiner.footing import NotExamined
from dpaudit.attacks.examiner.sums import COUPLING, TOLERANCE, Sums
from dpaudit.attacks.examiner.values import ExamFinding, found

ALIKE = 0.05
"""Relative difference of two measurements of one movement, at most."""


def public_movement(seen: Sums) -> list[ExamFinding]:
    """What every minibatch moves besides its records' shares, where it is the same for all: g(a) + g(b) − g(ab).

    A divisor or a clip that couples records gives another value for every pair, and is left to the tests that follow.
    """
    if seen.swaps or len(seen.base) < 4:
        return []
    a, b, c, d = seen.base[:4]
    first, second = _left(seen, a, b), _left(seen, c, d)
    least = TOLERANCE + seen.slack(3)
    if norm(first) <= least or norm(first - second) > ALIKE * norm(first) + seen.slack(6):
        return []
    third = _left(seen, a, d)
    if norm(first - third) > ALIKE * norm(first) + seen.slack(6):
        return []
    movement = np.asarray((first + second + third) / 3, dtype=np.float64)
    if norm(movement) <= COUPLING and not _decay(seen, movement):
        return []  # the difference is of the size of rounding
    if not _decay(seen, movement):
        raise NotExamined(
            f"the step moves the sum by {norm(movement):.3g} C beside what the records of a minibatch make, whatever"
            " they are, and not along the weights as weight decay does; hand in optimizer=, or let the adapter return"
            " the gradient that the optimizer is handed."
        )
    seen.movement = movement
    words = f"every minibatch moves the sum by {norm(movement):.3g} C along the weights"
    return [found("public_movement", words, status="note", measured=norm(movement), bound=0.0)]


def _left(seen: Sums, i: int, j: int) -> Vector:
    raw = seen.raw
    return np.asarray(raw((i,)) + raw((j,)) - raw((i, j)), dtype=np.float64)


def _decay(seen: Sums, movement: Vector) -> bool:
    """Whether the movement is a multiple of the weights, parameter by parameter."""
    if not seen.probe.has("weights"):
        return False
    seen.probe.rewind()
    weights = np.asarray(seen.probe.called("weights"), dtype=np.float64)
    if weights.shape != movement.shape:
        return False
    rest = 0.0
    for _, part in seen.probe.blocks(movement.size):
        own = weights[part]
        length = float(own @ own)
        along = own * (float(own @ movement[part]) / length) if length else np.zeros_like(own)
        rest += float(np.square(movement[part] - along).sum())
    return bool(rest**0.5 <= ALIKE * norm(movement) + seen.slack(3))
