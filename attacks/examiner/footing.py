"""What the examiner establishes of a step before it tests anything: that it runs, repeats, and returns to its start.

A mistake of the adapter shows here and is refused as bad input. What is not a fault of the step, such as dropout or
weight decay, is established here too, so that no test takes it for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised, set_public_seeds
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Sampling

FIXED = (Sampling.WITHOUT_REPLACEMENT, Sampling.SHUFFLE)
"""Sampling whose minibatches have one size, so that neighbours swap a record for another."""

NEVER_EMPTY = (*FIXED, Sampling.NONE)
"""Sampling that never draws an empty minibatch."""

REPEATS = 2e-3
"""Relative difference of a minibatch replayed twice that is put down to the order of floating-point sums."""

LEAST = 8
"""Released numbers from which parallel releases tell of a rate."""

SEED = 11
"""Public seed of clean steps that are compared with each other."""

SPREAD = 0.5
"""Error of one released sum by rounding, in C, above which nothing can be read from it."""


class NotExamined(InvalidValue):
    """The step could not be examined: its adapter, library or set-up must be mended first. Never a finding."""


@dataclasses.dataclass(slots=True)
class Footing:
    """What holds of a step.

    Attributes
    ----------
    usual : tuple of int
        An ordinary minibatch of the planned size.
    fixed : bool
        Whether minibatches must have that size: a record is then swapped for another and never left out.
    single : bool
        Whether minibatches of one record run.
    repeats : str
        "exact": the clean step gives the same again; "seeded": only under the same public seeds, as dropout does;
        "random": not at all; "unknown": there is no clean step.
    aligned : bool
        Of a seeded step: whether the order of the records makes no difference under one seed, as with directions that
        all records share. Sums of records can then be compared under that seed.
    rounding : float
        Largest error of one released sum by the rounding of weights, in C.
    asks_empty : bool
        Whether the plan's sampling can draw an empty minibatch.
    empty : str
        "" until it was asked for; then "usable", "unusable", or "dead" where the step does not run any more after it.
    bound : float or None
        Norm, in C, at which the contributions of records with large losses stand together; None where they do not.
    reference : array of shape (d,), or None
        What the usual minibatch releases without noise, to tell at the end whether the step still returns to its start.
    """

    usual: tuple[int, ...]
    fixed: bool
    single: bool = True
    repeats: str = "unknown"
    aligned: bool = False
    rounding: float = 0.0
    asks_empty: bool = True
    empty: str = ""
    bound: float | None = None
    reference: Vector | None = None

    @property
    def exact(self) -> bool:
        """Whether what a minibatch releases without noise can be compared with another's."""
        return self.repeats == "exact"


def footing(probe: Probe, plan: ExamPlan) -> tuple[Footing, str | None]:
    """Run a few ordinary steps; also returns why a minibatch of one record raised, where it did.

    Raises
    ------
    NotExamined
        Where an ordinary minibatch raises, is not finite, changes its length, or where the rate of the step changes.
    """
    base = _base(probe, plan)
    released = _ordinary(probe, probe.release, base.usual, "release")
    base.rounding = probe.rounding * plan.normaliser / plan.sensitivity
    if not base.rounding <= SPREAD:
        raise NotExamined(
            f"rounding of the weights hides the release: it moves the sum by up to {base.rounding:.3g} C, bound"
            f" {SPREAD:g} C; raise the learning rate of the examined step, hold its weights in float32 or float64, or"
            " return the gradient that the optimizer is handed."
        )
    if probe.has("clean"):
        first = _ordinary(probe, probe.clean, base.usual, "clean")
        if first.shape != released.shape:
            raise NotExamined(
                f"clean() returned {first.size} values and release() {released.size} for one minibatch; both must"
                " return what leaves the step."
            )
        base.repeats = _repeats(probe, base.usual, first, base.rounding * plan.sensitivity / plan.normaliser)
        base.aligned = base.repeats == "seeded" and _aligned(probe, base)
        base.reference = _rate(probe, base, first)
    return base, _single(probe, base)


def _base(probe: Probe, plan: ExamPlan) -> Footing:
    size = probe.size or 8
    try:
        drawn = probe.draws(2)
    except (StepRaised, TypeError, ValueError) as error:
        raise NotExamined(
            f"draw() could not be used ({error}); it must give the record numbers of one minibatch, as integers from 0."
        ) from error
    fixed = plan.stage.sampling in FIXED
    expected = len(drawn[0]) if fixed else round(min(plan.normaliser, size * plan.stage.sampling_probability) or 1)
    if not fixed and not 1 < expected <= size:
        expected = max(2, size // 4)
    expected = min(max(expected, 1), size)
    return Footing(
        usual=tuple(range(expected)), fixed=fixed, asks_empty=plan.stage.sampling not in NEVER_EMPTY,
    )  # fmt: skip


def _ordinary(probe: Probe, step: object, batch: Sequence[int], name: str) -> Vector:
    assert callable(step)
    try:
        released = np.asarray(step(tuple(batch)), dtype=np.float64)
    except StepRaised as error:
        raise NotExamined(
            f"{name}() raised on an ordinary minibatch of {len(batch)} records ({error}), so the step could not be"
            " examined; mend the adapter or its library."
        ) from error
    if released.ndim != 1 or not released.size or not np.isfinite(released).all():
        raise NotExamined(
            f"{name}() returned an array of shape {released.shape}"
            f"{'' if np.isfinite(released).all() else ' with values that are not finite'} for an ordinary minibatch of"
            f" {len(batch)} records; it must return what leaves the step, as finite numbers (d,)."
        )
    return released


def _repeats(probe: Probe, batch: tuple[int, ...], first: Vector, rounding: float) -> str:
    """Whether a minibatch replayed gives the same: at once, or under the same public seeds."""
    second, third = probe.clean(batch), probe.clean(batch)
    if _alike(second, third, rounding):
        return "exact"
    other = (probe.size or 8) - 1
    probe.clean((*batch[:-1], other))
    # What a step keeps of the minibatch before shows after another minibatch, and a rate that changes does not, so
    # another one is run between.
    refuse_changed(second, probe.clean(batch))
    set_public_seeds(SEED)
    once = probe.clean(batch)
    set_public_seeds(SEED)
    return "seeded" if _alike(once, probe.clean(batch), rounding) else "random"


def _aligned(probe: Probe, base: Footing) -> bool:
    """Whether a minibatch in another order gives the same under the same public seeds."""
    set_public_seeds(SEED)
    once = probe.clean(base.usual)
    set_public_seeds(SEED)
    return len(base.usual) > 2 and _alike(once, probe.clean((*base.usual[2:], *base.usual[1::-1])), 0.0)


def _alike(first: Vector, second: Vector, rounding: float) -> bool:
    scale = max(float(np.linalg.norm(first)), 1e-12)
    return float(np.linalg.norm(first - second)) <= REPEATS * scale + 2 * rounding


def _rate(probe: Probe, base: Footing, first: Vector) -> Vector | None:
    """The reference, after steps enough to see a rate that changes soon: parallel releases of different length."""
    if not base.exact:
        return None
    steps = min(24, probe.affordable(0.02, probe.cost))
    for _ in range(max(steps, 1)):
        reference = probe.clean(base.usual)
        refuse_changed(first, reference)
    return reference


def refuse_changed(first: Vector, later: Vector) -> None:
    """Refuse a step that releases one minibatch from one state at several lengths: its rate follows a hidden count."""
    if first.size < LEAST:
        return  # so few numbers may be parallel by chance, so nothing follows
    length, now = float(np.linalg.norm(first)), float(np.linalg.norm(later))
    if length == 0 or now == 0 or abs(now / length - 1) < 0.01:
        return
    if float(first @ later) / (length * now) > 1 - 1e-4:
        raise NotExamined(
            f"the same minibatch from the same snapshot released {now / length:.4g} times as much at a later call: the"
            " learning rate, or another factor, follows a count that restore() does not put back; hand in"
            " learning_rate as a function, hold the rate constant, or put the count into the snapshot."
        )


def returned(probe: Probe, base: Footing) -> str | None:
    """Why nothing can be relied on, where the usual minibatch does not release what it did; None where it does."""
    if base.reference is None or base.empty == "dead":
        return None
    try:
        probe.clean(base.usual)
        now = probe.clean(base.usual)
    except StepRaised as error:
        return f"at the end the step raised on an ordinary minibatch: {error}"
    refuse_changed(base.reference, now)
    return None


def _single(probe: Probe, base: Footing) -> str | None:
    if base.fixed:
        return None
    try:
        probe.release((0,))
        if probe.has("clean") and base.reference is not None and base.reference.any():
            # A step that drops what fills no micro-batch shows nothing of a single record, so a record is then swapped
            # among others.
            base.single = any(probe.clean((i,)).any() for i in (0, 1))
    except StepRaised as error:
        base.single = False
        _ordinary(probe, probe.release, base.usual, "release")
        return str(error)
    return None
