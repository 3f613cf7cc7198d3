"""Find noise with few different values: rounded to a short float format, or drawn from seeds that can be guessed."""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.evidence import Evidence
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.statistics import binomial_upper
from dpaudit.attacks.examiner.values import ExamFinding, found

FORMATS = {"bfloat16": 7, "float16": 10}
"""Bits behind the leading one of a significand."""

NEAR = 0.02
"""Distance from a value of the format, over its spacing, that counts as being one."""

COLLISIONS = 12
"""Equal vectors among those released, from which seeds are few; honest float32 numbers give less than one."""

LIMIT = 1e-12
"""Chance of such evidence for honest noise, at most; it is not taken from the examination's budget of false alarms."""


def few_values(evidence: Evidence, plan: ExamPlan) -> list[ExamFinding]:
    """Findings on the number of different values of the noise."""
    if plan.laplace:
        return []
    return _rounded(evidence, plan) or _seeds(evidence)


def _rounded(evidence: Evidence, plan: ExamPlan) -> list[ExamFinding]:
    """Whether nearly all values of the noise, as drawn or times σC, lie on the lattice of a short format."""
    standard = evidence.rows.ravel()[:20_000]
    standard = standard[np.abs(standard) > 1e-3]
    if standard.size < 200:
        return []
    scale = plan.stage.noise_multiplier * plan.clipping_norm
    for name, bits in FORMATS.items():
        if evidence.lattice > 2.0 ** -(bits + 4):
            # The weights that the values are read from have no finer spacing, so they show nothing of this format.
            continue
        for values in (standard, standard * scale, standard * plan.noise_std):
            hits = int((_off(values, bits) < NEAR).sum())
            p = binomial_upper(hits, values.size, 4 * NEAR)
            if hits > 0.7 * values.size and p <= LIMIT:
                text = f"{hits} of {values.size} values are numbers of {name}"
                return [found("noise_not_gaussian", text, p, measured=hits, bound=values.size, values=values.size)]
    return []


def _off(values: Vector, bits: int) -> Vector:
    """Distance of values from those with so many bits, over the spacing of the latter."""
    significand = np.frexp(np.abs(values))[0] * 2.0 ** (bits + 1)
    return np.abs(significand - np.rint(significand))


def _seeds(evidence: Evidence) -> list[ExamFinding]:
    """Whether whole vectors of noise come back by chance, as they do where seeds are few."""
    # A step without noise is another finding, so its rows are left out.
    rows = np.ascontiguousarray(evidence.rows[evidence.rows.any(axis=1)])
    steps = len(rows)
    different = len(np.unique(rows.round(12), axis=0))
    repeated = steps - different
    if repeated < COLLISIONS or not 0.5 * steps < different:
        return []
    seeds = steps * (steps - 1) / 2 / repeated
    if seeds < 4 * steps and rows.shape[1] == 1:
        return []  # one number that takes few values may be rounded
    text = f"{repeated} of {steps} vectors of noise came twice, as from about {seeds:.2g} seeds, which anybody can try"
    return [found("noise_public_seed", text, LIMIT, status="violated", measured=seeds, bound=float("inf"), steps=steps)]
