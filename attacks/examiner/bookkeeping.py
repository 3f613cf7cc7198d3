"""Compare the steps that a ledger counts with those that ran, and the claim with the certified ε."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpaudit import Ledger, Stage
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found
from dpaudit.privacy.errors import DpauditError, InvalidEvidence
from dpaudit.privacy.parts import read_ledger
from dpaudit.privacy.rounding import exact_text, upper_text

Accountant = Callable[[Ledger, float], float]
"""``accountant(ledger, delta)``: a certified upper bound on ε."""

RECORDED = (
    "sampling_probability", "noise_multiplier", "sampling", "mechanism", "releases_per_step", "clip", "clipping_norm",
    "quantile_sigma",
)  # fmt: skip
"""Fields of a stage that change ε, or that σ is relative to."""

SLACK = 1e-3
"""Relative excess of the accounted ε over the claim that is put down to rounding of the calibration."""


def ledger(
    probe: Probe, plan: ExamPlan, base: Footing, accountant: Accountant | None
) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Deterministic tests of the bookkeeping; also returns what could not be tested."""
    begun = probe.used()
    findings, tests, untested = list(_claim(plan, accountant)), [], []
    # The step audit composes its bound at the end, so time is kept for it.
    probe.reserve = 0.0 if probe.counted else 1.2 * (probe.used() - begun)
    if plan.epsilon is not None and accountant is not None:
        tests.append(_test("claim", f"ε of the plan recomputed at δ={plan.delta:g}", "a claim below the accounted ε"))
    elif plan.epsilon is not None:
        untested.append("claimed ε: no accountant was handed in")
    if probe.limit - probe.used() < 16 * probe.cost:
        return findings, tests, [*untested, "ledger and resume: 16 steps do not fit what is left of the budget"]
    if probe.has("ledger"):
        findings += _counted(probe, plan, base)
        tests.append(_test("ledger", "released steps against those counted, in one run", "an uncounted step"))
    else:
        untested.append("ledger: the adapter has no ledger()")
    if probe.has("resume"):
        probe.rewind()
        counted = probe.called("resume", 3, 4).steps
        probe.releases += 7
        if counted < 7:
            text = f"3 steps and 4 after a resume were counted as {counted}"
            findings.append(_book("ledger_resume", text, measured=counted, bound=7))
        tests.append(_test("resume", "3 steps, a stop, 4 more", "a resume that forgets what was counted"))
    else:
        untested.append("resume: the adapter has no resume()")
    if (path := probe.ledger_path) is not None:
        findings += _chain(path)
        tests.append(_test("chain", "the ledger file read back", "a line changed, dropped or reordered"))
    return findings, tests, untested


def _test(name: str, evidence: str, excludes: str) -> ExamTest:
    return ExamTest(name=name, group="ledger", evidence=evidence, excludes=excludes, power=1.0)


def _book(name: str, words: str, **witness: Any) -> ExamFinding:
    return found(name, words, status="accounting_mismatch", claim="ledger", **witness)


def _claim(plan: ExamPlan, accountant: Accountant | None) -> Iterator[ExamFinding]:
    if plan.delta is not None and plan.size is not None and plan.delta >= 1 / plan.size:
        text = f"delta={exact_text(plan.delta)} with {plan.size} records, bound 1/N={1 / plan.size:g}"
        yield _book("claimed_delta", text, measured=plan.delta, bound=1 / plan.size)
    if plan.epsilon is None or plan.delta is None or accountant is None:
        return
    accounted = accountant(plan.ledger(), plan.delta)
    if not accounted <= plan.epsilon * (1 + SLACK):
        text = f"ε ≤ {upper_text(accounted)} at δ={plan.delta:g} ({plan.relation}), claimed {exact_text(plan.epsilon)}"
        yield _book("claimed_epsilon", text, measured=accounted, bound=plan.epsilon)


def _counted(probe: Probe, plan: ExamPlan, base: Footing) -> Iterator[ExamFinding]:
    before = probe.called("ledger").steps
    # A count may stop after the first epoch, so a little more than one epoch is run where the budget allows.
    longer = min(math.ceil(1.2 / max(plan.stage.sampling_probability, 1e-9)), 200, probe.affordable(0.5, probe.cost))
    plain = () if base.empty in ("", "usable") and base.asks_empty else base.usual
    batches: list[tuple[int, ...]] = [plain, (0,), (0, 1), plain, (1,), (2, 3), plain]
    if base.fixed or not base.single:
        batches = [base.usual] * len(batches)
    batches += [plain] * (longer - len(batches))
    ran = len(batches)
    probe.run(batches)
    book = probe.called("ledger")
    if book.steps - before < ran:
        if before and book.steps <= max(before, ran) and book.stages and book.stages[-1].steps >= ran:
            text = f"{before} steps were counted before a run of {ran}, and {book.steps} after it"
            yield _book("ledger_resume", text, measured=book.steps, bound=before + ran)
            return
        text = f"{ran} steps were released and {book.steps - before} counted"
        yield _book("ledger_steps", text, measured=book.steps - before, bound=ran)
    if not book.stages:
        return
    for name in RECORDED:
        counted, planned = (getattr(stage, name) for stage in (book.stages[-1], plan.stage))
        if counted is not None and planned is not None and not _same(counted, planned):
            yield _book("ledger_stage", f"{name} is {counted!s} where the plan says {planned!s}", field=name)
            return
    if book.relation != plan.relation:
        yield _book("ledger_stage", f"relation is {book.relation} where the plan says {plan.relation}")


def _same(counted: object, planned: object) -> bool:
    if isinstance(counted, float) and isinstance(planned, (int, float)):
        return abs(counted - planned) <= 1e-9 * max(abs(counted), abs(planned))
    return counted == planned


def _chain(path: Path) -> Iterator[ExamFinding]:
    try:
        read_ledger(path)
    except InvalidEvidence as error:
        yield _book("ledger_chain", str(error))


def composed(plan: ExamPlan, mu: float, accountant: Accountant | None) -> float | None:
    """ε of the plan's run if each step had this μ; None without an accountant or a claim's δ, or for μ = 0."""
    if accountant is None or plan.delta is None or mu <= 0:
        return None
    stage: Stage = dataclasses.replace(plan.stage, noise_multiplier=plan.stage.noise_multiplier * plan.mu / mu)
    try:
        return accountant(Ledger(stages=(stage,), relation=plan.relation), plan.delta)
    except DpauditError:
        return None
