"""The audit: scores and coins in, bounds, ceiling, power and verdict out. Pure; touches no model and no disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.auditing.control import Control, ControlPower, control_power
from dpaudit.auditing.f_dp import TradeOff
from dpaudit.auditing.gaussian import dp_attack_limits
from dpaudit.auditing.judge import (
    Tested,
    accounting_findings,
    bound_findings,
    mechanism_finding,
    refuse_one_sided,
    validity_findings,
)
from dpaudit.auditing.liveness import signs_of_life
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.primary import Primary, many_runs_primary, one_run_primary
from dpaudit.auditing.result import AuditResult, Bound
from dpaudit.auditing.roc import auc_summary
from dpaudit.auditing.secondary import many_runs_secondary, one_run_secondary
from dpaudit.auditing.words import summarise
from dpaudit.privacy import validate
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import lower_text, upper_text
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.verdict import ENOUGH_POWER, decide, enough_power

COINS = ("verified", "asserted", "none")
CONTROL = "positive_control"


def audit(
    scores: Scores,
    plan: AuditPlan,
    *,
    coins: str = "asserted",
    accounted_upper: float | None = None,
    group_claim: float | None = None,
    control: Control | None = None,
    curve: TradeOff | None = None,
    beacons: Scores | None = None,
    findings: Sequence[Finding] = (),
    secondary: bool = True,
) -> AuditResult:
    """Audit a claim with the scores of canaries whose membership fair coins decided.

    The same function audits membership of REAL records that fair coins held out before training: their ids, scores and
    coins take the canaries' place.

    Parameters
    ----------
    scores : Scores
        Ids, scores (higher = member) and coins of the m canaries; of their pairs under replace_one (see
        :func:`pair_scores`). Constant scores, and coins of one kind only, are refused.
    plan : AuditPlan
        Frozen before the coins were opened.
    coins : str
        ``verified`` (they open a commitment), ``asserted`` (the caller's word; an implausible member count is
        ``invalid_audit``) or ``none`` (any split: AUC only, no bound on ε).
    accounted_upper : float, optional
        The accountant's certified ε; above the claim it is ``accounting_mismatch``, below it tightens the test.
    group_claim : float, optional
        ε for ``plan.copies`` records; without it copies > 1 get no verdict on (ε, δ).
    control : Control, optional
        Positive control that measures the power of this attack.
    curve : callable, optional
        The declared mechanism's symmetric trade-off curve, for a test at the plan's declared-mechanism level.
    beacons : Scores, optional
        Of the plan's beacons by the same attack: whether it is alive on this run. They enter no bound.
    findings : sequence of Finding
        From elsewhere: white-box tests, replay witnesses, checks of the commitment.
    secondary : bool
        Whether to compute the estimators that carry no verdict.

    Returns
    -------
    AuditResult
    """
    validate.one_of(COINS, coins=coins)
    refuse_one_sided(scores)
    for name, value in (("accounted_upper", accounted_upper), ("group_claim", group_claim)):
        if value is not None:
            validate.non_negative(**{name: value})
    tested = Tested.of(plan, accounted_upper, group_claim)
    found = [*findings, *accounting_findings(plan, accounted_upper), *validity_findings(plan, scores, coins)]

    primary: Primary | None = None
    bounds: tuple[Bound, ...] = ()
    if coins != "none" and not any(f.status == "invalid_audit" for f in found):
        one_run = plan.kind == "one_run"
        primary = (one_run_primary if one_run else many_runs_primary)(scores, plan, tested.epsilon)
        found += bound_findings(primary, plan, tested)
        if curve is not None:
            found.append(mechanism_finding(plan, primary, curve))
        if secondary:
            bounds = (one_run_secondary if one_run else many_runs_secondary)(scores, plan)
    found += signs_of_life(scores, plan.beacons, beacons)
    if control is not None and tested.epsilon is not None and primary is not None:
        found.append(_control_finding(control_power(plan, tested.epsilon, control), plan))
    auc = auc_summary(scores.values, scores.members, plan.alpha)
    if tested.epsilon:
        auc["limits_of_claim"] = dp_attack_limits(tested.epsilon, plan.delta)
    return _result(plan, scores, tested, primary, found, coins=coins, secondary=bounds, auc=auc)


def _result(
    plan: AuditPlan,
    scores: Scores,
    tested: Tested,
    primary: Primary | None,
    found: Sequence[Finding],
    *,
    coins: str,
    secondary: tuple[Bound, ...],
    auc: Mapping[str, Any],
) -> AuditResult:
    """The verdict of all findings, with everything that was found and how it was planned."""
    power, power_lower, source = _power_of(found)
    result = AuditResult(
        verdict=decide(found, power=power_lower),
        summary="",
        claim_tested=tested.claim,
        claimed_epsilon=plan.claimed_epsilon,
        delta=plan.delta,
        accounted_upper=tested.accounted_upper,
        tested_epsilon=tested.epsilon,
        estimator=plan.primary,
        epsilon_lower=primary.epsilon_lower if primary else None,
        epsilon_lower_at_verdict=primary.at_verdict if primary else None,
        confidence=1.0 - plan.alpha,
        confidence_at_verdict=1.0 - plan.alpha_split.primary,
        p_value=primary.p_value if primary else None,
        guesses=primary.guesses if primary else None,
        correct=primary.correct if primary else None,
        ceiling=primary.ceiling if primary else None,
        ceiling_at_verdict=primary.ceiling_at_verdict if primary else None,
        expected_epsilon_lower=primary.expected if primary else None,
        power=power,
        power_lower=power_lower,
        power_source=source,
        power_if_attack_were_optimal=primary.optimal if primary else None,
        design=design_section(plan, coins=coins, members=scores.member_count, ties=scores.ties),
        secondary=secondary,
        auc=auc,
        findings=tuple(found),
    )
    return dataclasses.replace(result, summary=summarise(result))


def design_section(plan: AuditPlan, *, coins: str, members: int, ties: int | None) -> dict[str, Any]:
    """The part of a result that says what was planned and what the coins and scores were, as a plain JSON value."""
    return {
        "kind": plan.kind,
        "coins": coins,
        "relation": plan.relation.value,
        "unit": plan.unit,
        "m": plan.m,
        "members": members,
        "copies": plan.copies,
        "guesses_in": plan.guesses_in,
        "guesses_out": plan.guesses_out,
        "k_rule": plan.k_rule,
        "guesses_mechanism": plan.guesses_mechanism,
        "ties": ties,
        "attack": plan.attack,
        "alpha": plan.alpha,
        "alpha_split": dataclasses.asdict(plan.alpha_split),
        "decidable": plan.decidable,
        "m_needed": plan.m_needed,
    }


def _power_of(found: Sequence[Finding]) -> tuple[float | None, float | None, str | None]:
    """Power, its lower limit, and what supplied it; None where nothing measured it."""
    measured = [f for f in found if f.power is not None]
    if not measured:
        return None, None, None
    # Only a positive control measures the power of this very attack, so it goes before every other finding that has
    # power.
    best = max(measured, key=lambda f: (f.name == CONTROL, f.power or 0.0))
    lower = best.detail["interval"][0] if best.name == CONTROL else best.power
    return best.power, lower, f"{best.name}: {best.excludes}"


def _control_finding(measured: ControlPower, plan: AuditPlan) -> Finding:
    low, high = measured.interval
    remedy = ""
    if not enough_power(low):
        needed = f"; this plan takes at least {plan.control_canaries}" if plan.control_canaries else ""
        remedy = (
            f" A verdict rests on the lower end, which must be at least {ENOUGH_POWER:g}: these {measured.canaries}"
            f" control canaries do not show that{needed}."
        )
    return Finding(
        name=CONTROL,
        status="note",
        claim="audit",
        power=measured.power,
        excludes=measured.fault,
        text=(
            f"On a control with a planted fault ({measured.fault}) the attack was right in {measured.correct} of"
            f" {measured.guesses} guesses: it would convict such a run with probability {lower_text(measured.power, 3)}"
            f" (between {lower_text(low, 2)} and {upper_text(high, 2)} with 95 % confidence)." + remedy
        ),
        detail={"guesses": measured.guesses, "correct": measured.correct, "interval": list(measured.interval)},
    )
