"""Ask a step for an empty minibatch once; the tests that follow do without where it fails."""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised
from dpaudit.attacks.examiner.values import ExamFinding, found

STILL = 1e-3
"""Movement without noise, in C, that is put down to rounding."""


def ask_empty(probe: Probe, plan: ExamPlan, base: Footing, movement: Vector | None = None) -> list[ExamFinding]:
    """Ask for an empty minibatch where the plan can draw one, and see whether the step runs on afterwards.

    What was found is kept in ``base.empty``; a step that does not run any more is made anew where there is a factory.

    Parameters
    ----------
    movement : array of shape (d,), optional
        What the weights move by whatever the records, in units of the sensitivity.
    """
    if base.empty:
        return []
    if not base.asks_empty:
        base.empty = "unusable"
        words = f"sampling is {plan.stage.sampling}"
        return [found("sampling_never_empty", words, status="note")]
    words = _answer(probe, plan, base, movement)
    base.empty = "unusable" if words else "usable"
    dead = _dead(probe, base)
    if dead:
        base.empty = "unusable" if probe.remake() else "dead"
        words = f"{words or 'it is taken'}, and after it the step raises on ordinary records: {dead}"
    return [found("empty_batch", words, records=(), without=())] if words else []


def _answer(probe: Probe, plan: ExamPlan, base: Footing, movement: Vector | None) -> str:
    """What is wrong with the answer to an empty minibatch, in words; empty where nothing is."""
    noisy = _noisy(probe, base)  # before, since the step may not run afterwards
    try:
        first = probe.release(())
        quiet = probe.clean(()) if probe.has("clean") else None
    except StepRaised as error:
        return f"it raised {error}"
    if first.size == 0 or not np.isfinite(first).all():
        return "its release is empty or not finite"
    if not first.any() and noisy:
        return "the weights stand still, without noise, where no record was drawn"
    if quiet is None:
        return ""
    taken = 0.0 if movement is None else movement * (plan.sensitivity / plan.normaliser)
    moved = float(np.linalg.norm(quiet - taken)) * plan.normaliser / plan.sensitivity
    if not moved <= STILL + 2 * base.rounding:
        return f"without noise it moves the sum by {moved:.3g} C"
    return ""


def _noisy(probe: Probe, base: Footing) -> bool:
    """Whether the noise shows on an ordinary minibatch."""
    if probe.has("clean") and base.exact:
        return bool((probe.release(base.usual) != probe.clean(base.usual)).any())
    return bool((probe.release(base.usual) != probe.release(base.usual)).any())


def _dead(probe: Probe, base: Footing) -> str:
    """Why an ordinary minibatch does not run any more; empty where it does."""
    try:
        after = probe.release(base.usual)
    except StepRaised as error:
        return str(error)
    if not np.isfinite(after).all():
        return "its release is not finite"
    if probe.has("clean") and base.exact and base.reference is not None and base.reference.any():
        try:
            if not probe.clean(base.usual).any():
                return "the weights stand still"
        except StepRaised as error:
            return str(error)
    return ""
