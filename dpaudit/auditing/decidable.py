"""Can this design decide its claim at all? Known before the first step, from the plan alone."""

from __future__ import annotations

import math

from dpaudit.auditing.one_run import snj_critical_count
from dpaudit.auditing.plan import AuditPlan
from dpaudit.privacy.rounding import lower_text, upper_text


def undecidable(plan: AuditPlan) -> str | None:
    """Why no attack could decide the claim with this plan, and what could; None for a plan that can.

    >>> from dpaudit.auditing import design
    >>> undecidable(design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record")) is None
    True
    """
    if plan.decidable:
        return None
    tested = plan.tested_epsilon
    against = "the claim" if tested is None else f"the tested epsilon={upper_text(tested)}"
    return (
        f"{plan.m} canaries cannot decide the claim: a perfect attack could show epsilon >="
        f" {lower_text(plan.ceiling_at_verdict)}, which is not clearly above {against}{remedy(plan)}"
    )


def errors_allowed(plan: AuditPlan) -> int | None:
    """How many wrong guesses a one-run plan still convicts with; None for other kinds, and where none would do.

    >>> from dpaudit.auditing import design
    >>> errors_allowed(design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record"))
    1
    >>> errors_allowed(design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record", errors=0))
    0
    """
    tested, guesses = plan.tested_epsilon, plan.guesses_in + plan.guesses_out
    if plan.kind != "one_run" or tested is None or not math.isfinite(tested) or not guesses:
        return None
    critical = snj_critical_count(plan.m, guesses, tested, plan.delta, plan.alpha_split.primary)
    return None if critical is None else guesses - critical


def needs_perfection(plan: AuditPlan) -> str | None:
    """Sentence on a plan that convicts only where every guess is right, and so decides nothing in practice."""
    if errors_allowed(plan) != 0:
        return None
    guesses = plan.guesses_in + plan.guesses_out
    return (
        f"the claim is undecidable by attack: {plan.m} canaries convict only where all {guesses} guesses are right; an"
        " in-run audit, more canaries or a smaller claim can decide it."
    )


def remedy(plan: AuditPlan) -> str:
    """What would decide the claim, as the end of a sentence."""
    if plan.m_needed is not None:
        return f"; about {plan.m_needed} canaries could."
    if not plan.decidable:
        return "; no number of canaries in one run can, so use the white-box step tests or many runs."
    return "."
