"""Refuse a release in other units than the plan's: noise and contributions are then off by one common factor.

μ of a step is the ratio of both. Where the bound that contributions reach and the noise are κ times what the plan says,
the rate or the normaliser that the adapter reads by is not the step's own, and nothing is said about the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpaudit.attacks.examiner.footing import Footing, NotExamined
from dpaudit.attacks.examiner.values import CONVICTING, ExamFinding

ALIKE = 0.05
"""Relative difference of the two factors, at most, besides the noise's own uncertainty."""

FOLLOWS = ("norm_underestimated", "sensitivity", "noise_scale", "noise_not_gaussian", "step_audit")
"""Convicting names that a wrong unit brings with it."""


def refuse_other_units(findings: Sequence[ExamFinding], base: Footing) -> None:
    """Refuse where everything found follows from one factor on the whole release.

    Raises
    ------
    NotExamined
        With the factor, and what to compare.
    """
    noise = next((f for f in findings if f.name in ("noise_scale", "noise_scale_high")), None)
    if noise is None or base.bound is None:
        return
    if any(f.name not in FOLLOWS for f in findings if f.status in CONVICTING):
        return
    factor, ratio = base.bound, float(noise.detail["measured"])
    uncertain = 4 / math.sqrt(2 * max(int(noise.detail.get("values", 1)), 1))
    if abs(factor - 1) <= ALIKE or abs(factor / ratio - 1) > ALIKE + uncertain:
        return
    raise NotExamined(
        f"noise and contributions are both {factor:.3g} times what the plan says: the release is read in other units,"
        " which is no fault of the step; compare learning_rate and the plan's normaliser with the step's own."
    )
