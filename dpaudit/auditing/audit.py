"""The audit: scores and coins in, bounds, ceiling, power and verdict out. Pure; touches no model and no disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dpaudit.auditing.coins import COIN_TAIL, member_count_is_plausible
from dpaudit.auditing.control import Control, ControlPower, control_power
from dpaudit.auditing.decidable import remedy
from dpaudit.auditing.f_dp import TradeOff, check_curve, f_dp_p_value
from dpaudit.auditing.gaussian import dp_attack_limits
from dpaudit.auditing.guess import check_ids, check_member, check_scores, count_ties
from dpaudit.auditing.liveness import liveness
from dpaudit.auditing.many_runs import rates_curve_p_value
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.primary import Primary, many_runs_primary, one_run_primary
from dpaudit.auditing.result import AuditResult, Bound
from dpaudit.auditing.roc import auc_summary
from dpaudit.auditing.secondary import many_runs_secondary, one_run_secondary
from dpaudit.auditing.words import summarise
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import ENOUGH_POWER, decide, enough_power

COINS = ("verified", "asserted", "none")
CONTROL = "positive_control"


def audit(
    ids: Sequence[str],
    scores: ArrayLike,
    member: ArrayLike,
    plan: AuditPlan,
    *,
    coins: str = "asserted",
    accounted_upper: float | None = None,
    group_claim: float | None = None,
    control: Control | None = None,
    curve: TradeOff | None = None,
    findings: Sequence[Finding] = (),
    secondary: bool = True,
) -> AuditResult:
    """Audit a claim with the scores of canaries whose membership fair coins decided.

    The same function audits membership of REAL records that fair coins held out before training: their ids, scores and
    coins take the canaries' place.

    Parameters
    ----------
    ids : sequence of str, length m
        Unique ids. Under replace_one: pair names (see :func:`pair_scores`).
    scores : array of shape (m,)
        Higher = member. NaN and constant scores are refused.
    member : array of shape (m,)
        The coins, 0 or 1.
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
    findings : sequence of Finding
        From elsewhere: white-box tests, replay witnesses, checks of the commitment.
    secondary : bool
        Whether to compute the estimators that carry no verdict.

    Returns
    -------
    AuditResult
    """
    validate.one_of(COINS, coins=coins)
    names, values = check_ids(ids), check_scores(scores)
    if len(names) != values.size:
        raise InvalidValue(f"{len(names)} ids stand beside {values.size} scores; give one score for each id.")
    inserted = check_member(member, values.size)
    members = int(inserted.sum())
    if members in (0, values.size):
        raise InvalidEvidence(
            f"column member holds one class only ({members} of {values.size} are members); score both kinds."
        )
    if np.all(values == values[0]):
        raise InvalidEvidence(
            f"all {values.size} scores equal {values[0]:g}; a constant score can show nothing, mend the attack."
        )
    for name, value in (("accounted_upper", accounted_upper), ("group_claim", group_claim)):
        if value is not None:
            validate.non_negative(**{name: value})

    group = plan.group_epsilon if group_claim is None else group_claim
    tested, claim_name = what_is_tested(plan, accounted_upper, group)
    found = list(findings)
    found += _accounting(plan, accounted_upper)
    found += _validity(plan, values.size, members, coins)
    invalid = any(f.status == "invalid_audit" for f in found)

    primary: Primary | None = None
    bounds: tuple[Bound, ...] = ()
    if coins != "none" and not invalid:
        judge = one_run_primary if plan.kind == "one_run" else many_runs_primary
        primary = judge(names, values, inserted, plan, tested)
        found += _judge(primary, plan, tested, claim_name, group)
        if curve is not None:
            found += _declared_mechanism(plan, primary, curve)
        if secondary:
            bounds = (one_run_secondary if plan.kind == "one_run" else many_runs_secondary)(
                names, values, inserted, plan
            )
    auc = auc_summary(values, inserted, plan.alpha)
    if tested:
        auc["limits_of_claim"] = dp_attack_limits(tested, plan.delta)
    if (dead := liveness(values, inserted)) is not None:
        found.append(dead)

    if control is not None and tested is not None and primary is not None:
        found.append(_control_finding(control_power(plan, tested, control), plan))
    power, power_lower, source = _power_of(found)
    verdict = decide(found, power=power_lower)
    result = AuditResult(
        verdict=verdict,
        summary="",
        claim_tested=claim_name,
        claimed_epsilon=plan.claimed_epsilon,
        delta=plan.delta,
        accounted_upper=accounted_upper,
        tested_epsilon=tested,
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
        design=design_section(plan, coins=coins, members=members, ties=count_ties(values)),
        secondary=bounds,
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


def what_is_tested(plan: AuditPlan, accounted_upper: float | None, group: float | None) -> tuple[float | None, str]:
    """The ε that the bound is compared with, and the name of that claim."""
    if plan.copies > 1:
        return group, "group (epsilon, delta)"
    if accounted_upper is not None and accounted_upper < plan.claimed_epsilon:
        return accounted_upper, "ledger"
    return plan.claimed_epsilon, "(epsilon, delta)"


def _accounting(plan: AuditPlan, accounted_upper: float | None) -> list[Finding]:
    if accounted_upper is None or not exceeds(accounted_upper, plan.claimed_epsilon):
        return []
    return [
        Finding(
            name="accounted_upper",
            status="accounting_mismatch",
            claim="ledger",
            deterministic=True,
            text=(
                f"The ledger accounts for epsilon <= {upper_text(accounted_upper)} at"
                f" delta={exact_text(plan.delta)}, above"
                f" the claimed {exact_text(plan.claimed_epsilon)}: the claim does not follow from what was"
                " recorded, whatever leaked."
            ),
        )
    ]


def _validity(plan: AuditPlan, m: int, members: int, coins: str) -> list[Finding]:
    found: list[Finding] = []
    if m != plan.m:
        found.append(
            Finding(
                name="canary_count",
                status="invalid_audit",
                claim="audit",
                deterministic=True,
                text=f"The plan froze {plan.m} canaries and {m} were scored: canaries were lost or added on the way.",
            )
        )
    if coins != "none" and not member_count_is_plausible(members, m):
        found.append(
            Finding(
                name="coin_count",
                status="invalid_audit",
                claim="audit",
                text=(
                    f"{members} of {m} canaries are members, outside the central 1 - {COIN_TAIL:g} range of fair"
                    " coins: the coins were not fair and independent, so no bound on epsilon holds."
                ),
            )
        )
    if coins == "none":
        found.append(
            Finding(
                name="no_coins",
                status="inconclusive",
                claim="audit",
                text="Membership was not decided by fair coins: AUC and TPR describe the attack, and bound no epsilon.",
            )
        )
    return found


def _judge(
    primary: Primary, plan: AuditPlan, tested: float | None, claim_name: str, group: float | None
) -> list[Finding]:
    bound = primary.at_verdict
    if tested is None:
        return [
            Finding(
                name="group_claim_unknown",
                status="inconclusive",
                claim=claim_name,
                text=(
                    f"Each canary stands {plan.copies} times in the data, so the audit tests the claim for groups of"
                    f" {plan.copies} records; give the accountant's group epsilon to compare with."
                ),
            )
        ]
    if exceeds(bound, tested):
        only_ledger = plan.copies == 1 and not exceeds(bound, plan.claimed_epsilon)
        claim = "ledger" if only_ledger else "(epsilon, delta)" if plan.copies == 1 else claim_name
        what = (
            f"the epsilon <= {upper_text(tested, within=bound)} that the ledger accounts for (though not the claimed"
            f" {exact_text(plan.claimed_epsilon)})"
            if only_ledger
            else f"epsilon={upper_text(tested, within=bound)} at delta={exact_text(plan.delta)}"
            + (f" for groups of {plan.copies} records" if plan.copies > 1 else "")
        )
        return [
            Finding(
                name="primary_bound",
                status="violated",
                claim=claim,
                p_value=primary.p_value,
                text=(
                    f"{primary.evidence}, which shows epsilon >= {lower_text(bound, beyond=tested)}"
                    f" with confidence {lower_text(1 - plan.alpha_split.primary, 3)} and contradicts {what}."
                    " It does not say what"
                    " the fault is, nor how large the true epsilon is."
                ),
            )
        ]
    if not exceeds(primary.ceiling_at_verdict, tested):
        return [
            Finding(
                name="ceiling",
                status="inconclusive",
                claim=claim_name,
                text=(
                    "Even a perfect attack could have shown only epsilon >="
                    f" {lower_text(primary.ceiling_at_verdict)} with this"
                    f" design (m={plan.m}), not above {upper_text(tested)}: it cannot decide the claim" + remedy(plan)
                ),
            )
        ]
    return []


def _declared_mechanism(plan: AuditPlan, primary: Primary, curve: TradeOff) -> list[Finding]:
    check_curve(curve)
    if primary.counts is None:
        p = f_dp_p_value(plan.m, primary.mechanism_guesses, primary.mechanism_correct, curve)
    else:
        p = rates_curve_p_value(primary.counts, curve)
    level = plan.alpha_split.declared_mechanism
    rejected = p <= level
    return [
        Finding(
            name="declared_mechanism",
            status="violated" if rejected else "note",
            claim="declared mechanism",
            p_value=p,
            text=(
                f"The guesses {'contradict' if rejected else 'do not contradict'} the declared mechanism's trade-off"
                f" curve (p={upper_text(p, 3)}, level {level:g})."
                + (
                    " The run did not behave as the declared sampling, noise and steps; the (epsilon, delta) claim"
                    " itself is not thereby refuted."
                    if rejected
                    else " This is a test of the declared mechanism only."
                )
            ),
        )
    ]


def _power_of(found: Sequence[Finding]) -> tuple[float | None, float | None, str | None]:
    """Power, its lower limit, and what supplied it; None where nothing measured it."""
    measured = [f for f in found if f.power is not None]
    if not measured:
        return None, None, None
    # A control measures this very attack and goes before white-box tests, whose power is known exactly.
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
