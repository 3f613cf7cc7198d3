"""Verification steps on the audit: plan, coins, guesses and the lower bound, each from the evidence alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dpaudit.certificates.faults import open_commitment, plan_commitment
from dpaudit.certificates.plain import plain_json, to_float
from dpaudit.certificates.statement import Audit, Predicate
from dpaudit.certificates.verify.audit_result import RecomputedAudit
from dpaudit.certificates.verify.compare import TOLERANCE, first_difference, judge_differences, written_here
from dpaudit.certificates.verify.guard import guarded
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED, Step, judge
from dpaudit.certificates.verify.result_steps import group_step, result_steps
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.rounding import exact_text, lower_text
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from dpaudit.storage.readers import beside, parse_json, read_bytes

_FORECAST = (
    "guesses_in",
    "guesses_out",
    "k_rule",
    "guesses_mechanism",
    "expected_epsilon_lower",
    "power_if_attack_were_optimal",
    "m_needed",
    "control_canaries",
)
"""What a plan says about itself and another version may compute better; ceilings and decidability are facts."""


def audit_steps(folder: Path, body: Predicate, again: RecomputedAudit | None) -> list[Step]:
    """Every step on the audit section; each is made, whatever the others find.

    Parameters
    ----------
    folder : Path
        Where the evidence lies.
    body : Predicate
    again : RecomputedAudit or None
        The audit made again; None where the certificate has none.
    """
    audit = body.audit
    if audit is None or again is None:
        return [Step("audit", ABSENT, "the certificate holds no audit")]
    steps = guarded("audit.plan", lambda: _plan_steps(folder, body, audit))
    steps += guarded("audit.plan.forecast", lambda: _forecast_steps(body, audit))
    steps += guarded("audit.coins", lambda: [_coins_step(audit)])
    steps += [_order_step(audit), again.scores.step]
    steps += guarded("audit.guesses", lambda: [_guesses_step(again.scores.values, audit)])
    if audit.plan is None or audit.result is None or not audit.canaries:
        return [*steps, Step("audit.bound", ABSENT, "plan, guesses or result are not in the certificate")]
    steps += result_steps(body, audit, again)
    steps += guarded("audit.bound", lambda: _bound_steps(audit))
    return steps + guarded("audit.group_claim", lambda: group_step(body, audit, again))


def _plan_steps(folder: Path, body: Predicate, audit: Audit) -> list[Step]:
    plan, digest = audit.plan, audit.plan_digest
    if plan is None or digest is None:
        return [Step("audit.plan", ABSENT, "the certificate holds no audit plan")]
    path = beside(folder, "audit_plan.json")
    steps = []
    if path is not None:
        data = read_bytes(path)
        same = sha256_bytes(data) == digest and plain_json(parse_json(data, name=path.name)) == plan
        where = "audit_plan.json"
    else:
        same = digest in {sha256_bytes(canonical_json(plan)), sha256_bytes(canonical_json(plan) + b"\n")}
        where = "the embedded plan"
    text = f"{where} has the digest {digest[:12]}…"
    steps.append(judge("audit.plan", same, text, f"{where} is not the certified plan"))
    steps.append(_plan_claim_step(plan, body.claim, audit.copies))
    return steps


def _plan_claim_step(plan: dict[str, Any], claim: Claim | None, copies: int) -> Step:
    if claim is None:
        return Step("audit.plan.claim", ABSENT, "the certificate holds no claim")
    pairs = [
        ("claimed_epsilon", plan.get("claimed_epsilon"), claim.epsilon),
        *((name, plan.get(name), getattr(claim, name)) for name in ("delta", "relation", "unit")),
        ("copies", plan.get("copies"), copies),
    ]
    found = [
        f"the plan has {n}={planned} and the certificate {stated}" for n, planned, stated in pairs if planned != stated
    ]
    return judge_differences("audit.plan.claim", found, (), "plan and certificate name the same claim")


def _forecast_steps(body: Predicate, audit: Audit) -> list[Step]:
    """What the plan says it could show, from its own m, claim, α and δ."""
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.design import planned_again

    stated = audit.plan
    if stated is None:
        return []
    fresh = plain_json(planned_again(AuditPlan.from_dict(stated)).to_dict())

    def differing(names: tuple[str, ...]) -> list[str]:
        shared = [name for name in names if name in stated or name != "control_canaries"]
        return [d for name in shared if (d := first_difference(stated.get(name), fresh.get(name), name))]

    hard, soft = differing(("ceiling", "ceiling_at_verdict", "decidable")), differing(_FORECAST)
    if written_here(body):
        hard, soft = [*hard, *soft], []
    return [judge_differences("audit.plan.forecast", hard, soft, "follows from m, claim, α and δ")]


def _order_step(audit: Audit) -> Step:
    """Who says that the coins were fixed before training; nothing in a certificate can prove it yet."""
    if audit.commitment_order == "asserted":
        return Step("audit.order", RECORDED, "the owner asserts that plan and coins were fixed before training")
    return Step("audit.order", DIFFERENT, "the order of commitment is called proven and no proof of it is here")


def _coins_step(audit: Audit) -> Step:
    stated, planned = audit.commitment, None if audit.plan is None else plan_commitment(audit.plan)
    if stated is None or audit.nonce is None:
        return Step("audit.coins", ABSENT, "there is no commitment or no nonce to open it")
    if planned != stated:
        return Step("audit.coins", DIFFERENT, "the commitment is not the one inside the audit plan")
    if open_commitment(audit) != stated:
        return Step("audit.coins", DIFFERENT, "nonce, ids and coins do not open the commitment: coins were changed")
    return Step("audit.coins", EQUAL, f"SHA-256(nonce ‖ ids and coins) is {stated[:12]}…")


def _guesses_step(scores: list[float] | None, audit: Audit) -> Step:
    from dpaudit.auditing import AuditPlan, guess

    if scores is None or audit.plan is None:
        return Step("audit.guesses", ABSENT, "the scores they follow from are not here")
    plan = AuditPlan.from_dict(audit.plan)
    made = guess(audit.ids, scores, plan)
    differing = sum(int(a) != row[2] for a, row in zip(made, audit.canaries, strict=True))
    if differing:
        return Step("audit.guesses", DIFFERENT, f"{differing} guesses are not those that the scores and the plan give")
    return Step("audit.guesses", EQUAL, f"{plan.guesses_in} in and {plan.guesses_out} out, by the plan's rule")


def _bound_steps(audit: Audit) -> list[Step]:
    from dpaudit.auditing import AuditPlan, snj_epsilon_lower
    from dpaudit.auditing.one_run import snj_ceiling

    plan, result = AuditPlan.from_dict(audit.plan or {}), audit.result or {}
    rows, made, right = audit.canaries, audit.made, audit.right
    counts = (sum(g == 1 for _, g in made), sum(g == -1 for _, g in made))
    if len(rows) != plan.m or counts != (plan.guesses_in, plan.guesses_out):
        return [
            Step(
                "audit.bound",
                DIFFERENT,
                f"{len(rows)} canaries with {counts[0]}+{counts[1]} guesses; the plan has {plan.m} with"
                f" {plan.guesses_in}+{plan.guesses_out}",
            )
        ]
    if plan.kind != "one_run":
        return [Step("audit.bound", ABSENT, f"an audit of kind {plan.kind} is re-derived from its score file only")]
    primary = result.get("primary") or {}
    level, strict = plan.alpha, plan.alpha_split.primary
    arguments = (len(rows), len(made), right, plan.delta)
    steps = [_counts_step(primary, len(made), right, len(rows))]
    for name, alpha in (("confidence", level), ("confidence_at_verdict", strict)):
        if primary.get(name) is not None and not math.isclose(to_float(primary[name]), 1 - alpha, rel_tol=1e-12):
            steps.append(Step("audit.bound", DIFFERENT, f"{name} is not the plan's {exact_text(1 - alpha)}"))
    for name, stated, found in (
        ("audit.bound", primary.get("epsilon_lower"), snj_epsilon_lower(*arguments, level)),
        ("audit.bound.verdict", primary.get("epsilon_lower_at_verdict"), snj_epsilon_lower(*arguments, strict)),
        ("audit.ceiling", result.get("ceiling"), snj_ceiling(len(rows), len(made), plan.delta, level)),
    ):
        steps.append(_number_step(name, stated, found))
    return steps


def _counts_step(primary: dict[str, Any], made: int, right: int, canaries: int) -> Step:
    stated = (primary.get("guesses"), primary.get("correct"))
    told = f"{right} of {made} guesses right, {canaries} canaries"
    same = stated in ((made, right), (None, None))
    return judge("audit.counts", same, told, f"{told}; the certificate states {stated[1]} of {stated[0]}")


def _number_step(name: str, stated: Any, found: float) -> Step:
    if stated is None:
        return Step(name, ABSENT, f"the certificate states no value; the evidence gives {lower_text(found, 6)}")
    if abs(to_float(stated) - found) > TOLERANCE * max(1.0, abs(found)):
        shown = exact_text(to_float(stated))
        return Step(name, DIFFERENT, f"the evidence gives {exact_text(found)} and the certificate states {shown}")
    return Step(name, EQUAL, lower_text(found, 6))
