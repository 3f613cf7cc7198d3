"""Step-level audit: one canary, one fair coin per step, and a lower bound on the step's μ.

The canary (an adversarial record) joins a fixed minibatch when the coin says so; the released vector is projected on
the canary's own direction and compared with the middle, a rule fixed before the coins. The two error rates bound μ
from below (Nasr et al. 2302.07956), for any mechanism that is μ-Gaussian-DP at this step; the accountant composes it.
Where there is no clean step, sensitivity is measured here too, from pairs of noisy steps.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator

import numpy as np
from scipy.special import betaincinv, ndtri, stdtr

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.causes import CAUSES
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest
from dpaudit.privacy.rounding import exact_text, lower_text, nearest_text, upper_text

STEPS = 1_000
"""Coins, at most."""

FEWEST = 40
"""Coins without which no bound above zero is worth its name."""

ROUNDING = 1e-3
"""Relative slack of a contribution for rounding of weights and sums."""

CONFIDENCE = 0.95
"""Of the lower bound on μ that is reported; the finding is decided at the examination's own α."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepAudit:
    """Result of a step audit: right guesses of the coins and the lower bound on μ.

    Parameters
    ----------
    mu_lower : float
        Lower bound on μ of one step at 95% confidence, for a record that takes part; at least 0. Half of it where one
        record was swapped for another, which moves the sum by up to twice the sensitivity.
    """

    findings: list[ExamFinding]
    tests: list[ExamTest]
    mu_lower: float


def step_audit(probe: Probe, plan: ExamPlan, base: Footing, alpha: float) -> StepAudit | str:
    """Audit the step with one canary and a coin per step; a sentence where budget or canary do not suffice."""
    canary = probe.adversaries.get("large loss", (probe.size or 1) - 1)
    rest = tuple(i for i in range(min(4, probe.size or 4)) if i != canary)
    whole, planned = (*rest, canary), plan.mu
    if base.fixed or not base.single:
        # Where the size is fixed, one record of the usual minibatch is the canary or another record. That is a swap, so
        # it is compared with twice the sensitivity.
        rest = tuple(i for i in base.usual if i != canary)
        whole, planned = (*rest[:-1], canary), 2 * plan.mu
    begun = probe.used()
    out, joined = probe.clean(rest), probe.clean(whole)
    each = max((probe.used() - begun) / 2, 1e-6)
    shift = joined - out
    length = float(np.linalg.norm(shift))
    if not math.isfinite(length) or length < 0.1 * plan.sensitivity / plan.normaliser:
        return "no record shows in the release without noise"
    direction, middle = shift / length, float(out @ shift / length) + length / 2
    # The number of steps must be fixed before the first coin. Later steps may take longer than the two that were
    # measured, so a tenth is kept for that.
    steps = min(STEPS, probe.affordable(1.0, 1.1 * each))
    if steps < FEWEST:
        return f"{FEWEST} steps of {probe.words(each)} do not fit what is left of the budget"
    wrong, total = [0, 0], [0, 0]
    for _ in range(steps):
        coin = secrets.randbits(1)
        seen = float(probe.release(whole if coin else rest) @ direction)
        total[coin] += 1
        wrong[coin] += (seen > middle) != bool(coin)
    mu = _mu_lower(wrong, total, 1 - CONFIDENCE)
    strict = _mu_lower(wrong, total, alpha)
    findings = []
    if strict > planned:
        shown = lower_text(strict, 3, beyond=planned)
        text = f"{sum(wrong)} of {steps} coins guessed wrong, so μ ≥ {shown}; the plan's is {exact_text(planned)}"
        findings.append(
            ExamFinding(
                name="step_audit", status="violated", claim="declared mechanism", p_value=alpha,
                text=f"{CAUSES['step_audit']} Measured: {text} (p ≤ {upper_text(alpha, 2)} for a correct step).",
                detail={"records": whole, "without": rest, "measured": strict, "bound": planned},
            )
        )  # fmt: skip
    factor = _convicted(steps, planned, alpha)
    test = ExamTest(
        name="step_audit", group="step_audit", evidence=f"{steps} steps with a fair coin each", alpha=alpha,
        excludes=f"a step with μ above {upper_text(factor, 3)} (plan {nearest_text(planned, 3)})", power=0.99,
    )  # fmt: skip
    return StepAudit(findings, [test], max(mu, 0.0) * plan.mu / planned)


def _mu_lower(wrong: list[int], total: list[int], alpha: float) -> float:
    rates = [
        float(betaincinv(bad + 1, all_ - bad, 1 - alpha / 2)) if bad < all_ else 1.0 for bad, all_ in zip(wrong, total)
    ]
    if max(rates) >= 1:
        return 0.0
    return float(-ndtri(rates[0]) - ndtri(rates[1]))


def _convicted(steps: int, mu: float, alpha: float) -> float:
    """Smallest μ that this many coins convict with probability 0.99, roughly: error rates at their 99% quantile."""
    for factor in np.geomspace(1, 100, 400):
        each = steps // 2
        rate = 0.5 * math.erfc(float(factor) * mu / 2 / math.sqrt(2))
        count = min(each, math.ceil(each * rate + 2.6 * math.sqrt(each * rate * (1 - rate))))
        if _mu_lower([count, count], [each, each], alpha) > mu:
            return float(factor * mu)
    return math.inf


def paired_sensitivity(
    probe: Probe, plan: ExamPlan, base: Footing, alpha: float
) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Sensitivity from noisy steps alone: half of the pairs find the direction, the other half measure along it."""
    if base.fixed or not base.single:
        return [], [], ["paired sensitivity: minibatches of one size cannot leave a record out; give clean()"]
    rest = tuple(range(min(3, probe.size or 3)))
    ordinary = [i for i in range(probe.size or 4) if i not in rest][:1]
    candidates = [*ordinary, *(i for n, i in probe.adversaries.items() if "loss" in n and n.startswith(("la", "hu")))]
    bound = plan.sensitivity / plan.normaliser
    pairs = min(400, probe.affordable(0.7, 2.4 * probe.cost * max(len(candidates), 1)))
    if pairs < 8:
        return [], [], [f"paired sensitivity: 8 pairs a record do not fit the budget ({probe.words(probe.part)})"]
    findings = list(_moved(probe, rest, candidates, pairs, bound, alpha))
    size = probe.release(rest).size
    spread = math.sqrt(2) * plan.noise_std / math.sqrt(pairs / 2)
    largest = 1 + (6 + math.sqrt(size)) * spread / bound
    test = ExamTest(
        name="paired_sensitivity", group="replay", alpha=alpha, evidence=f"{pairs} pairs of noisy steps a record",
        excludes=f"a contribution above about {upper_text(largest, 3)} C", power=0.99, size=largest, unit="C",
    )  # fmt: skip
    return findings, [test], []


def _moved(
    probe: Probe, rest: tuple[int, ...], candidates: list[int], pairs: int, bound: float, alpha: float
) -> Iterator[ExamFinding]:
    for index in candidates:
        differences = np.stack([probe.release((*rest, index)) - probe.release(rest) for _ in range(pairs)])
        if not np.isfinite(differences).all():
            yield _sensitivity(index, rest, math.inf, 1.0, 0.0)
            return
        half = pairs // 2
        direction = _unit(differences[:half].mean(axis=0))
        along = differences[half:] @ direction
        t = (float(along.mean()) - bound * (1 + ROUNDING)) / (float(along.std(ddof=1)) / math.sqrt(len(along)) + 1e-300)
        p = float(stdtr(len(along) - 1, -t)) * len(candidates)
        if p <= alpha:
            yield _sensitivity(index, rest, float(along.mean()) / bound, 1.0, p)
            return


def _unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-300)


def _sensitivity(index: int, rest: tuple[int, ...], measured: float, bound: float, p: float) -> ExamFinding:
    return ExamFinding(
        name="sensitivity", status="violated", claim="step function", p_value=p,
        text=f"{CAUSES['sensitivity']} Measured: record {index} moves the mean release by {measured:.3g} C"
        f" (p ≤ {upper_text(p, 2)} for a correct step).",
        detail={"records": (*rest, index), "without": rest, "measured": measured, "bound": bound},
    )  # fmt: skip
