"""What an audit's numbers mean for the claim: findings on accounting, coins, primary bound and declared mechanism."""

from __future__ import annotations

import dataclasses

from dpaudit.auditing.at_level import AtLevel
from dpaudit.auditing.coins import COIN_TAIL, member_count_is_plausible
from dpaudit.auditing.decidable import remedy
from dpaudit.auditing.f_dp import TradeOff, check_curve, f_dp_p_value
from dpaudit.auditing.many_runs import rates_curve_p_value
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.primary import Primary
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.tolerance import exceeds


@dataclasses.dataclass(frozen=True, slots=True)
class Tested:
    """The ε that the bound is compared with, the name of that claim, and the accountant's certified ε, if given.

    ``epsilon`` is None where canaries stand more than once in the data and the claim for groups is not known.
    """

    epsilon: float | None
    claim: str
    accounted_upper: float | None

    @classmethod
    def of(cls, plan: AuditPlan, accounted_upper: float | None, group_claim: float | None) -> Tested:
        """The smaller of claimed and accounted ε; with several copies of a canary, the claim for groups."""
        if plan.copies > 1:
            group = plan.group_epsilon if group_claim is None else group_claim
            return cls(group, "group (epsilon, delta)", accounted_upper)
        if accounted_upper is not None and accounted_upper < plan.claimed_epsilon:
            return cls(accounted_upper, "ledger", accounted_upper)
        return cls(plan.claimed_epsilon, "(epsilon, delta)", accounted_upper)


def refuse_one_sided(scores: Scores) -> None:
    """Refuse scores that can show nothing: one kind of canary only, or one and the same score.

    Raises
    ------
    InvalidEvidence
    """
    m, members = len(scores), scores.member_count
    if scores.one_class:
        raise InvalidEvidence(f"column member holds one class only ({members} of {m} are members); score both kinds.")
    if scores.constant:
        raise InvalidEvidence(
            f"all {m} scores equal {scores.values[0]:g}; a constant score can show nothing, mend the attack."
        )


def accounting_findings(plan: AuditPlan, accounted_upper: float | None) -> list[Finding]:
    """What an accounted ε above the claim means; nothing where it is not above."""
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


def validity_findings(plan: AuditPlan, scores: Scores, coins: str) -> list[Finding]:
    """What breaks the conditions of an audit: canaries lost, coins that were not fair, or no coins at all."""
    m, members = len(scores), scores.member_count
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


def bound_findings(primary: Primary, plan: AuditPlan, claimed: Tested) -> list[Finding]:
    """What the primary bound says of the tested claim: a violation, a design that cannot decide it, or nothing."""
    bound, tested, claim_name = primary.at_verdict, claimed.epsilon, claimed.claim
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


def mechanism_finding(plan: AuditPlan, primary: Primary, curve: TradeOff) -> Finding:
    """What the guesses say of the declared mechanism's trade-off curve."""
    check_curve(curve)
    if primary.counts is None:
        p = f_dp_p_value(plan.m, primary.mechanism_guesses, primary.mechanism_correct, curve)
    else:
        p = rates_curve_p_value(primary.counts, curve)
    test = AtLevel(p, plan.alpha_split.declared_mechanism)
    return Finding(
        name="declared_mechanism",
        status=test.status,
        claim="declared mechanism",
        p_value=p,
        text=(
            f"The guesses {test.verb} the declared mechanism's trade-off curve ({test.numbers})."
            + (
                " The run did not behave as the declared sampling, noise and steps; the (epsilon, delta) claim itself"
                " is not thereby refuted."
                if test.rejected
                else " This is a test of the declared mechanism only."
            )
        ),
    )
