"""Verification steps that run the whole audit again: result, power by its control, group claim, and verdict."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from dpaudit._version import __version__
from dpaudit.certificates.build import plain_json, to_float
from dpaudit.certificates.curve import declared_curve
from dpaudit.certificates.verify.files import embedded_ledger
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step, judge
from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.readers import beside
from dpaudit.storage.tables import MAX_TABLE_BYTES, number, read_table

TOLERANCE = 1e-6
# These decide; the others describe, and a later dpaudit may compute them better.
DECIDING = ("primary", "ceiling", "ceiling_at_verdict")
SECTIONS = (
    "primary",
    "ceiling",
    "ceiling_at_verdict",
    "expected_epsilon_lower",
    "power_if_attack_were_optimal",
    "auc",
    "secondary",
)


def result_steps(folder: Path, body: dict[str, Any], scores: list[float]) -> list[Step]:
    """Run the audit again from scores and coins and compare every number of its result."""
    from dpaudit.auditing import AuditPlan, audit

    section = body["audit"]
    stated = section["result"]
    if stated is None:
        return [Step("audit.result", ABSENT, "the certificate holds no result")]
    plan = AuditPlan.from_dict(section["plan"])
    declared = next((f for f in stated.get("findings") or () if f.get("name") == "declared_mechanism"), None)
    ledger = embedded_ledger(body)
    curve = None if ledger is None else _curve(ledger, plan.delta, section["copies"])
    result = audit(
        [row[0] for row in section["canaries"]],
        scores,
        [row[1] for row in section["canaries"]],
        plan,
        coins=str((stated.get("design") or {}).get("coins")),
        accounted_upper=(stated.get("claim") or {}).get("accounted_upper"),
        secondary=bool(stated.get("secondary")),
        curve=curve,
    )
    fresh = plain_json(result.to_dict())
    for name in SECTIONS:
        if where := _first_difference(stated.get(name), fresh.get(name), name):
            written_by = body["verifier"].get("version")
            if name in DECIDING or written_by == __version__:
                return [Step("audit.result", DIFFERENT, where), *_power_steps(folder, body)]
            detail = f"{where}; dpaudit {written_by} computed it and {__version__} runs here"
            return [Step("audit.result", ABSENT, detail), *_power_steps(folder, body)]
    if declared is not None and (where := _declared_difference(declared, fresh["findings"])):
        return [Step("audit.result", DIFFERENT, where), *_power_steps(folder, body)]
    # An audit that made no such test may leave it out, unless it would have convicted.
    fresh["findings"] = [f for f in fresh["findings"] if f["name"] != "declared_mechanism" or f["status"] == "violated"]
    lost = {f["name"] for f in fresh["findings"]} - {f.get("name") for f in stated.get("findings") or ()}
    if lost:
        return [Step("audit.result", DIFFERENT, f"finding {min(lost)} follows from the scores and is not stated")]
    return [Step("audit.result", EQUAL, "every number follows from scores and coins"), *_power_steps(folder, body)]


@functools.lru_cache(maxsize=8)
def _curve(ledger: Any, delta: float, copies: int) -> Any:
    try:
        return declared_curve(ledger, delta, copies)
    except DpauditError:  # no certified profile for this ledger, such as a shuffled one
        return None


def _declared_difference(stated: Any, findings: list[dict[str, Any]]) -> str:
    """What differs in the test of the declared mechanism's curve; empty when nothing does."""
    fresh = next((f for f in findings if f["name"] == "declared_mechanism"), None)
    if fresh is None:
        return "the declared mechanism's curve was not tested again"
    close = math.isclose(to_float(stated["p_value"]), to_float(fresh["p_value"]), rel_tol=1e-3, abs_tol=1e-12)
    if stated["status"] == fresh["status"] and close:
        return ""
    return f"declared_mechanism: {fresh['status']}, p={fresh['p_value']} follows and {stated['status']} is stated"


def group_step(body: dict[str, Any]) -> list[Step]:
    """For canaries with copies: recompute the group claim that they test."""
    section, claim = body["audit"], body["claim"]
    if section["copies"] == 1 or claim is None:
        return []
    stated = section["plan"].get("group_epsilon")
    ledger = embedded_ledger(body)
    if stated is None or ledger is None:
        return [Step("audit.group_claim", ABSENT, "the plan names no ε for groups of copies")]
    best = None
    for guarantee in body["accounting"]["guarantees"]:
        found = _group_upper(ledger, claim["delta"], guarantee["accountant"], section["copies"])
        if found is not None:
            best = found if best is None else min(best, found)
    if best is None:
        return [Step("audit.group_claim", ABSENT, "no accountant here can treat groups of this ledger")]
    # The plan's value comes from the planned steps; a run that stopped early costs less, never more.
    same = best <= to_float(stated) * (1 + TOLERANCE)
    equal = f"ε for {section['copies']} records is at most {upper_text(best, 6)}"
    return [judge("audit.group_claim", same, equal, f"{equal}, above the plan's {exact_text(to_float(stated))}")]


def verdict_step(result: dict[str, Any]) -> Step:
    """Derive the audit's own verdict from its findings and power."""
    from dpaudit.auditing import Finding, decide

    findings = [Finding(**finding) for finding in result.get("findings") or ()]
    derived = decide(findings, power=result.get("power_lower"))
    stated = result.get("verdict")
    return judge("audit.verdict", derived == stated, derived, f"its findings give {derived} and it states {stated}")


def _group_upper(ledger: Any, delta: float, accountant: str, copies: int) -> float | None:
    from dpaudit.accounting import account

    try:
        (found,) = account(ledger, delta=delta, accountants=(accountant,), group_size=copies)
    except (DpauditError, ArithmeticError, ValueError):
        return None
    return found.epsilon_upper


def _power_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    section = body["audit"]
    stated = section["result"].get("power")
    if stated is None:
        lower = section["result"].get("power_lower")
        return [] if lower is None else [Step("audit.power", DIFFERENT, "a lower limit is stated without a power")]
    if section["control_digest"] is None:
        return [Step("audit.power", ABSENT, "the power rests on evidence that the certificate does not bind")]
    path = beside(folder, "control_scores.parquet")
    if path is None:
        return [Step("audit.power", ABSENT, "control_scores.parquet does not stand beside the certificate")]
    if path.stat().st_size > MAX_TABLE_BYTES or sha256_file(path) != section["control_digest"]:
        return [Step("audit.power", DIFFERENT, "control_scores.parquet is not the certified control")]
    from dpaudit.auditing import AuditPlan, Control, control_power

    table = read_table(path, columns=("id", "score", "member"))
    control = Control(
        ids=[str(i) for i in table["id"]],
        scores=[number(s, name="control score") for s in table["score"]],
        member=[int(number(c, name="control member")) for c in table["member"]],
    )
    tested = to_float((section["result"].get("claim") or {})["tested_epsilon"])
    measured = control_power(AuditPlan.from_dict(section["plan"]), tested, control)
    found, lower = measured.power, section["result"].get("power_lower")
    equal = f"{lower_text(found)}, from {len(control.ids)} control scores"
    same = abs(found - to_float(stated)) <= TOLERANCE
    same = same and lower is not None and abs(measured.lower - to_float(lower)) <= TOLERANCE
    different = f"the control gives {exact_text(found)} and {exact_text(to_float(stated))} is stated"
    return [judge("audit.power", same, equal, different)]


def _first_difference(stated: Any, fresh: Any, where: str) -> str:
    """Name of the first place where two plain values differ by more than rounding; "" where they do not."""
    if isinstance(stated, dict) and isinstance(fresh, dict):
        if stated.keys() != fresh.keys():
            return f"{where} has other fields than the evidence gives"
        return next((d for k in stated if (d := _first_difference(stated[k], fresh[k], f"{where}.{k}"))), "")
    if isinstance(stated, list) and isinstance(fresh, list):
        if len(stated) != len(fresh):
            return f"{where} has {len(stated)} entries and the evidence gives {len(fresh)}"
        pairs = enumerate(zip(stated, fresh, strict=True))
        return next((d for i, (a, b) in pairs if (d := _first_difference(a, b, f"{where}.{i}"))), "")
    if isinstance(stated, (int, float)) and isinstance(fresh, (int, float)) and not isinstance(stated, bool):
        near = abs(stated - fresh) <= TOLERANCE * abs(fresh) + 1e-15
        return "" if near else f"{where} is {exact_text(fresh)} by the evidence and {exact_text(stated)} is stated"
    return "" if stated == fresh else f"{where} is {str(fresh)[:60]} by the evidence and {str(stated)[:60]} is stated"
