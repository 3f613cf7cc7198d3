"""Verification steps on what a certificate tells twice, on what it derives from scores, and on what it only records."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpaudit.certificates.consistency import contradictions
from dpaudit.certificates.limits import derived_limits
from dpaudit.certificates.statement import Predicate
from dpaudit.certificates.verify.compare import first_difference, judge_differences, written_here
from dpaudit.certificates.verify.report import ABSENT, RECORDED, Step, judge
from dpaudit.privacy.scores import Scores

EXPOSURE_SCHEMA = "dpaudit.exposure/1"
"""A report against references of its own, which no certificate carries."""

ASYMPTOTIC_MEAN = 1 / math.log(2)
"""Mean exposure without leakage as earlier versions gave it, whatever the number of references."""


def consistency_step(body: Predicate) -> Step:
    """Fields that state one fact twice: claim, plan, ledger, mechanism, canaries, examination and findings."""
    return judge_differences("consistency", contradictions(body), (), "claim, plan, ledger and mechanism agree")


def exposure_steps(body: Predicate, scores: Sequence[float] | None) -> list[Step]:
    """Exposure made again from scores and coins."""
    stated, name = body.exposure, "exposure"
    if stated is None:
        return []
    if body.audit is None or scores is None:
        return [Step(name, ABSENT, "it follows from scores and coins, which are not here; it supports nothing")]
    from dpaudit.auditing.exposure_summary import exposure_summary

    audit = body.audit
    fresh = exposure_summary(Scores(audit.ids, scores, audit.coins), copies=audit.copies)
    if stated.get("schema") == EXPOSURE_SCHEMA:
        return [Step(name, ABSENT, "it was made against references that are not here; it supports nothing")]
    if not written_here(body) and stated.get("mean_without_leakage") == ASYMPTOTIC_MEAN:
        fresh = {**fresh, "mean_without_leakage": ASYMPTOTIC_MEAN}
    difference = first_difference(stated, fresh, name)
    return [
        judge_differences(name, [difference] if difference else [], (), "every value follows from scores and coins")
    ]


def limits_step(body: Predicate) -> Step:
    """Limits that follow from mechanism, δ and public size; an earlier version did not state them all."""
    derived = derived_limits(body)
    lost = [text for text in derived if text not in body.limits]
    if lost and not written_here(body):
        return Step("limits", RECORDED, f"as recorded; this version would add: {lost[0][:200]}")
    told = f"{len(derived)} follow from mechanism, δ and public size and are stated; the others are recorded"
    return judge("limits", not lost, told, f"a limit that follows is left out: {''.join(lost[:1])[:200]}")


def recorded_steps(body: Predicate) -> list[Step]:
    """What the owner states and nobody can recompute from the evidence."""
    evaluated = " and the public evaluation" if body.provenance.get("public_evaluation") else ""
    more = f"; {len(body.findings)} finding(s) of white-box tests" if body.findings else ""
    return [
        Step("mechanism", RECORDED, "algorithm, normaliser, noise source and sampler are the owner's words"),
        Step("provenance", RECORDED, f"versions, commit, digests of configuration and data{evaluated}, as recorded"),
        Step("statements", RECORDED, f"scope, deviations and reproduction, as recorded{more}"),
    ]
