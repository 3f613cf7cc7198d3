"""Verification steps on the audit: plan, coins, guesses and the lower bound, each from the evidence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpaudit.certificates.build import open_commitment, plain_json, plan_commitment, to_float
from dpaudit.certificates.verify.audit_result import group_step, result_steps, verdict_step
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step, judge
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.rounding import exact_text, lower_text
from dpaudit.storage.commitment import canonical_json, sha256_bytes, sha256_file
from dpaudit.storage.readers import beside, parse_json, read_bytes
from dpaudit.storage.tables import MAX_TABLE_BYTES, number, read_table

TOLERANCE = 1e-6


def audit_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    """Every step on the audit section; none where the certificate has no audit."""
    audit = body["audit"]
    if audit is None:
        return [Step("audit", ABSENT, "the certificate holds no audit")]
    steps = [*_plan_steps(folder, body), _coins_step(audit), *_scores_steps(folder, body)]
    if audit["plan"] is None or audit["result"] is None or not audit["canaries"]:
        steps.append(Step("audit.bound", ABSENT, "plan, guesses or result are not in the certificate"))
        return steps
    return [*steps, *_bound_steps(body), *group_step(body), verdict_step(audit["result"])]


def _plan_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    audit = body["audit"]
    plan, digest = audit["plan"], audit["plan_digest"]
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
    steps.append(_plan_claim_step(plan, body))
    return steps


def _plan_claim_step(plan: dict[str, Any], body: dict[str, Any]) -> Step:
    claim, copies = body["claim"], body["audit"]["copies"]
    if claim is None:
        return Step("audit.plan.claim", ABSENT, "the certificate holds no claim")
    pairs = [
        ("claimed_epsilon", plan.get("claimed_epsilon"), claim["epsilon"]),
        ("delta", plan.get("delta"), claim["delta"]),
        ("relation", plan.get("relation"), claim["relation"]),
        ("copies", plan.get("copies"), copies),
    ]
    for name, planned, stated in pairs:
        if planned != stated:
            return Step("audit.plan.claim", DIFFERENT, f"the plan has {name}={planned} and the certificate {stated}")
    return Step("audit.plan.claim", EQUAL, "plan and certificate name the same claim")


def _coins_step(audit: dict[str, Any]) -> Step:
    stated, planned = audit["commitment"], None if audit["plan"] is None else plan_commitment(audit["plan"])
    if stated is None or audit["nonce"] is None:
        return Step("audit.coins", ABSENT, "there is no commitment or no nonce to open it")
    if planned != stated:
        return Step("audit.coins", DIFFERENT, "the commitment is not the one inside the audit plan")
    if open_commitment(audit) != stated:
        return Step("audit.coins", DIFFERENT, "nonce, ids and coins do not open the commitment: coins were changed")
    return Step(
        "audit.coins", EQUAL, f"SHA-256(nonce ‖ ids and coins) is {stated[:12]}…, order {audit['commitment_order']}"
    )


def _scores_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    audit = body["audit"]
    if audit["scores_digest"] is None:
        return [Step("audit.scores", ABSENT, "the certificate does not bind a score file")]
    path = beside(folder, "scores.parquet")
    if path is None:
        return [Step("audit.scores", ABSENT, "scores.parquet does not stand beside the certificate")]
    if path.stat().st_size > MAX_TABLE_BYTES or sha256_file(path) != audit["scores_digest"]:
        return [Step("audit.scores", DIFFERENT, "scores.parquet is not the certified score file")]
    steps = [Step("audit.scores", EQUAL, f"SHA-256 {audit['scores_digest'][:12]}…")]
    if audit["plan"] is None or not audit["canaries"]:
        return [*steps, Step("audit.guesses", ABSENT, "the plan's guess rule is not in the certificate")]
    scores = _read_scores(path, audit)
    return [*steps, _guesses_step(scores, audit), *result_steps(folder, body, scores)]


def _read_scores(path: Path, audit: dict[str, Any]) -> list[float]:
    """Scores in the order of the certified canaries; exactly one for each."""
    table = read_table(path, columns=("id", "score"), optional=("attack",))
    rows = list(range(len(table["id"])))
    if "attack" in table and len(set(table["attack"])) > 1:
        rows = [i for i in rows if table["attack"][i] == audit["plan"].get("attack")]
    scores = {str(table["id"][i]): number(table["score"][i], name=f"score of {table['id'][i]}") for i in rows}
    ids = [row[0] for row in audit["canaries"]]
    if len(scores) != len(rows) or set(scores) != set(ids):
        raise InvalidEvidence(f"{path.name} does not hold exactly one score for each certified canary")
    return [scores[i] for i in ids]


def _guesses_step(scores: list[float], audit: dict[str, Any]) -> Step:
    from dpaudit.auditing import AuditPlan, guess

    plan = AuditPlan.from_dict(audit["plan"])
    made = guess([row[0] for row in audit["canaries"]], scores, plan)
    differing = sum(int(a) != row[2] for a, row in zip(made, audit["canaries"], strict=True))
    if differing:
        return Step("audit.guesses", DIFFERENT, f"{differing} guesses are not those that the scores and the plan give")
    return Step("audit.guesses", EQUAL, f"{plan.guesses_in} in and {plan.guesses_out} out, by the plan's rule")


def _bound_steps(body: dict[str, Any]) -> list[Step]:
    from dpaudit.auditing import AuditPlan, snj_ceiling, snj_epsilon_lower

    audit = body["audit"]
    plan, result = AuditPlan.from_dict(audit["plan"]), audit["result"]
    rows = audit["canaries"]
    made = [(coin, guess) for _, coin, guess in rows if guess]
    right = sum((guess == 1) == (coin == 1) for coin, guess in made)
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
    level = 1.0 - to_float(primary.get("confidence", 1 - plan.alpha))
    arguments = (len(rows), len(made), right, plan.delta)
    steps = [Step("audit.counts", EQUAL, f"{right} of {len(made)} guesses right, {len(rows)} canaries")]
    strict = plan.alpha_split.primary
    for name, stated, found in (
        ("audit.bound", primary.get("epsilon_lower"), snj_epsilon_lower(*arguments, level)),
        ("audit.bound.verdict", primary.get("epsilon_lower_at_verdict"), snj_epsilon_lower(*arguments, strict)),
        ("audit.ceiling", result.get("ceiling"), snj_ceiling(len(rows), len(made), plan.delta, level)),
    ):
        steps.append(_number_step(name, stated, found))
    return steps


def _number_step(name: str, stated: Any, found: float) -> Step:
    if stated is None:
        return Step(name, ABSENT, f"the certificate states no value; the evidence gives {lower_text(found, 6)}")
    if abs(to_float(stated) - found) > TOLERANCE * max(1.0, abs(found)):
        shown = exact_text(to_float(stated))
        return Step(name, DIFFERENT, f"the evidence gives {exact_text(found)} and the certificate states {shown}")
    return Step(name, EQUAL, lower_text(found, 6))
