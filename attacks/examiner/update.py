"""Test that the weights move as the release says; a departure costs utility and no privacy, so it is a note.

A step that perturbs along public directions is post-processing once its numbers are released: the movement of the
weights can be predicted from public values alone. The adapter shows two consecutive steps and what they should do.
"""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.examiner.adapter import Movement, Vector
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found

AGREEMENT = 1e-2
"""Relative difference of predicted and observed movement put down to rounding."""


def update(probe: Probe, plan: ExamPlan) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Tests of post-processing, where the adapter has ``movements()`` and ``executed_scale()``."""
    findings: list[ExamFinding] = []
    if not probe.has("movements"):
        return findings, [], []
    if probe.limit - probe.used() < 8 * probe.cost:
        return findings, [], ["update: 8 steps do not fit what is left of the budget"]
    probe.rewind()
    probe.releases += 5
    for number, step in enumerate(probe.called("movements", 3)):
        if cause := _departure(step):
            words = f"at step {number} the weights move by {_norm(step.moved):.3g} where {_norm(step.along):.3g} is due"
            findings.append(found(cause, words, status="note", claim="declared mechanism", step=number))
            break
    probe.rewind()
    ratio = probe.called("executed_scale")
    if abs(ratio - 1) > 0.05:
        words = f"the two evaluations are {ratio:.4g} times as far apart as planned"
        findings.append(
            found("scale_schedule", words, status="note", claim="declared mechanism", measured=ratio, bound=1.0)
        )
    elif (last := plan.stage.releases_per_step - 1) and abs((ratio := probe.called("executed_scale", last)) - 1) > 0.05:
        words = f"along direction {last} the two evaluations are {ratio:.4g} times as far apart as planned"
        findings.append(
            found("update_direction", words, status="note", claim="declared mechanism", measured=ratio, bound=1.0)
        )
    test = ExamTest(
        name="update", group="update", evidence="3 steps predicted from public values, evaluation pairs measured",
        excludes="a movement or scale off by more than 5%", power=1.0,
    )  # fmt: skip
    return findings, [test], []


def _norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


def _departure(step: Movement) -> str | None:
    due = step.along + step.pull
    if _norm(step.moved - due) <= AGREEMENT * max(_norm(due), 1e-300):
        return None
    if _norm(step.moved) <= AGREEMENT * _norm(due):
        return "update_missing"
    if _norm(step.pull) > 0 and _norm(step.moved - step.along) <= AGREEMENT * _norm(step.along):
        return "proximal_missing"
    return "update_direction"
