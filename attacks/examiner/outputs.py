"""Numbers published beside the release."""

from __future__ import annotations

import math

from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found


def published_outputs(
    probe: Probe, plan: ExamPlan, base: Footing
) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Numbers published beside the release: one that follows the records and never varies carries no noise."""
    if not (probe.has("published") and probe.called("published")):
        return [], [], []  # the steps so far published nothing beside the release, so there is nothing to compare
    batches: list[tuple[int, ...]] = [(0, 1, 2, 3, 4), (0, 1, 2, 3), (5,), *([()] if base.empty == "usable" else [])]
    after: tuple[int, ...] = () if base.empty == "usable" else (5,)
    seen: list[dict[str, list[float]]] = []
    for batch in batches:
        if probe.left() < 7 * probe.cost:
            if len(seen) < 2:
                return [], [], [f"published outputs: {probe.words(6 * probe.cost)} a minibatch do not fit the budget"]
            batches = batches[: len(seen)]
            break
        values: dict[str, list[float]] = {}
        for _ in range(2):
            probe.release(batch)
            for name, value in probe.called("published").items():
                values.setdefault(name, []).append(float(value))
            probe.run([batch, after])
            for name, value in probe.called("published").items():
                values.setdefault(f"{name} a step later", []).append(float(value))
        seen.append(values)
    findings = []
    for name in seen[0]:
        columns = [values.get(name, [math.nan]) for values in seen]
        steady = all(len(set(map(repr, column))) == 1 for column in columns)
        if steady and len({repr(column[0]) for column in columns}) > 1:
            first = next(i for i in range(1, len(columns)) if repr(columns[i][0]) != repr(columns[0][0]))
            text = f"{name} is {columns[0][0]:.6g} for one minibatch and {columns[first][0]:.6g} for another"
            findings.append(
                found(
                    "private_output", f"{text}, the same at every repetition", records=batches[0],
                    without=batches[first], measured=columns[0][0], bound=columns[first][0], output=name,
                )
            )  # fmt: skip
    test = ExamTest(
        name="published_outputs", group="replay", evidence=f"{6 * len(batches)} noisy steps on {len(batches)} batches",
        excludes="a published number that is a function of the records alone", power=1.0,
    )  # fmt: skip
    return findings, [test], []
