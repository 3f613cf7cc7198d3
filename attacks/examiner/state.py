"""Test tensors released with the weights, such as running statistics: they must not follow records without noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dpaudit.attacks.examiner.adapter import Batch, Vector
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found

SAME = 1e-6
"""Relative difference of two states put down to rounding."""


def released_statistics(
    probe: Probe, plan: ExamPlan, base: Footing
) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Whether any tensor beside the weights repeats for one minibatch, noise or not, and differs for another."""
    if not probe.has("state") or len(base.usual) < 2 or (probe.size or 0) < 2 * len(base.usual):
        return [], [], []
    if probe.left() < 4 * probe.expected(len(base.usual)):
        return [], [], [f"released state: {probe.words(4 * probe.cost)} do not fit what is left of the replays' part"]
    first, again = _after(probe, base.usual), _after(probe, base.usual)
    if not first:
        return [], [], []
    shifted = tuple(i + len(base.usual) for i in base.usual)
    other = _after(probe, shifted)
    findings = []
    for name, values in first.items():
        if _differ(values, again[name]) or not _differ(values, other[name]):
            continue
        gap = float(np.linalg.norm(values - other[name]))
        words = f"{name} is the same after each replay of one minibatch, noise or not, and {gap:.3g} away after another"
        findings.append(
            found(
                "statistics_released", words, records=base.usual, without=shifted, measured=gap, bound=0.0, tensor=name
            )
        )
        break
    test = ExamTest(
        name="released_state", group="replay", evidence=f"{len(first)} tensors beside the weights after 3 noisy steps",
        excludes="a released tensor that is a function of the records alone", power=1.0,
    )  # fmt: skip
    return findings, [test], []


def _after(probe: Probe, batch: Batch) -> dict[str, Vector]:
    probe.release(batch)
    state: Mapping[str, Vector] = probe.called("state")
    return {name: np.asarray(values, dtype=np.float64).ravel() for name, values in state.items()}


def _differ(first: Vector, second: Vector) -> bool:
    scale = max(float(np.linalg.norm(first)), 1e-12)
    return first.shape != second.shape or float(np.linalg.norm(first - second)) > SAME * scale
