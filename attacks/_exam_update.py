"""Update: the weights move as the release says. A departure costs utility and no privacy, so it is a note."""

from __future__ import annotations

from dpaudit.attacks._exam_plan import ExamPlan
from dpaudit.attacks._exam_probe import Probe
from dpaudit.attacks._exam_values import ExamFinding, ExamTest


def update(probe: Probe, plan: ExamPlan) -> tuple[list[ExamFinding], list[ExamTest]]:
    """Tests of post-processing; the adapter says what it can show."""
    return [], []
