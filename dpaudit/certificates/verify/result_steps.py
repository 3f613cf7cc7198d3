"""Verification steps on an audit's result: every section against the audit made again, whatever the others say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import Audit, Predicate
from dpaudit.certificates.verify.audit_result import RecomputedAudit
from dpaudit.certificates.verify.compare import TOLERANCE, first_difference, judge_differences, written_here
from dpaudit.certificates.verify.guard import guarded
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, RECORDED, Step, judge
from dpaudit.certificates.verify.words import same_text
from dpaudit.privacy.finding import finding_status
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.verdict import Verdict

DECIDING = ("primary", "ceiling", "ceiling_at_verdict")
DESCRIBING = ("expected_epsilon_lower", "power_if_attack_were_optimal", "secondary")
_P_VALUE = 1e-3  # p-values of the declared curve rest on a certified interval that may move by as much
_NO_SCORES = "the scores do not lie beside the certificate, so it cannot be made again and supports nothing"


def result_steps(body: Predicate, audit: Audit, again: RecomputedAudit) -> list[Step]:
    """One step for each section of the result; none is skipped because another differs."""
    stated, own = audit.result or {}, written_here(body)
    steps = [*guarded("audit.power", lambda: [power_step(stated, again)])]
    if again.result.failed is not None:
        return [again.result.failed, *steps]
    fresh = again.result.value
    if fresh is None:
        names = ("audit.result", "audit.claim", "audit.design", "audit.findings", "audit.summary")
        return [*(Step(name, ABSENT, _NO_SCORES) for name in names), *steps]
    steps += guarded("audit.result", lambda: [_numbers_step(stated, fresh, own)])
    for name in ("claim", "design"):
        steps += guarded(f"audit.{name}", lambda name=name: [_section_step(name, stated, fresh)])  # type: ignore[misc]  # bound at once
    steps += guarded("audit.findings", lambda: [_findings_step(stated, fresh, own, again.control.bound)])
    steps += guarded("audit.summary", lambda: [_words_step(stated, fresh, own and again.complete)])
    return [*steps, *guarded("audit.verdict", lambda: [_verdict_step(stated, fresh)])]


def _numbers_step(stated: dict[str, Any], fresh: dict[str, Any], own: bool) -> Step:
    hard = [d for name in DECIDING if (d := first_difference(stated.get(name), fresh.get(name), name))]
    soft = [d for name in DESCRIBING if (d := first_difference(stated.get(name), fresh.get(name), name))]
    for where, a, b in _auc_facts(stated.get("auc"), fresh.get("auc")):
        if difference := first_difference(a, b, where):
            hard.append(difference)
    if difference := first_difference(stated.get("auc"), fresh.get("auc"), "auc"):
        soft.append(difference)
    if stated.get("schema") != fresh["schema"]:
        hard.append(f"schema is {stated.get('schema')!r:.60}")
    if own:
        hard, soft = [*hard, *soft], []
    hard += _lost_findings(stated, fresh, own)
    return judge_differences("audit.result", hard, soft, "every number follows from scores and coins")


def _auc_facts(stated: Any, fresh: Any) -> Iterator[tuple[str, Any, Any]]:
    """What of the AUC section is a count and no estimate: no version can find another one."""
    if not isinstance(stated, dict) or not isinstance(fresh, dict):
        yield "auc", stated, fresh
        return
    yield "auc.value", stated.get("value"), fresh.get("value")
    points = [[(p["fpr"], p["tpr"]) for p in auc.get("tpr_at_fpr") or ()] for auc in (stated, fresh)]
    yield "auc.tpr_at_fpr", [list(p) for p in points[0]], [list(p) for p in points[1]]


def _section_step(name: str, stated: dict[str, Any], fresh: dict[str, Any]) -> Step:
    difference = first_difference(stated.get(name), fresh.get(name), name)
    return judge(f"audit.{name}", not difference, "as plan, coins, scores and accounting give it", difference)


def _findings_step(stated: dict[str, Any], fresh: dict[str, Any], own: bool, control: bool) -> Step:
    rows = [dict(row) for row in stated.get("findings") or ()]
    for row in rows:
        finding_status(row)
    hard: list[str] = []
    soft: list[str] = []
    hard += _lost_findings(stated, fresh, own)
    for finding in fresh["findings"]:
        matching = [row for row in rows if row.get("name") == finding["name"]]
        if not matching:
            continue
        if len(matching) > 1:
            hard.append(f"finding {finding['name']} stands {len(matching)} times")
        weighty, words = _finding_differences(matching[0], finding)
        hard += weighty
        (hard if own else soft).extend(words)
    known = {finding["name"] for finding in fresh["findings"]}
    more = [row["name"] for row in rows if row["name"] not in known]
    if "positive_control" in more and not control:
        hard.append("finding positive_control is stated and no control is bound")
    told = f"{len(fresh['findings'])} follow from the evidence" + (
        f"; recorded only: {', '.join(more)}" if more else ""
    )
    return judge_differences("audit.findings", hard, soft, told)


def _lost_findings(stated: dict[str, Any], fresh: dict[str, Any], own: bool) -> list[str]:
    """Findings that follow from the evidence and that the certificate leaves out.

    The test of the declared curve may be left out where it found nothing, since not every audit is given a curve.
    """
    names = {row.get("name") for row in stated.get("findings") or ()}
    return [
        f"finding {finding['name']} ({finding['status']}) follows from the evidence and is not stated"
        for finding in fresh["findings"]
        if finding["name"] not in names
        and (finding["status"] != "note" or (own and finding["name"] != "declared_mechanism"))
    ]


def _finding_differences(stated: dict[str, Any], fresh: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Differences that weigh (status, p-value), and those of words and details."""
    name = fresh["name"]
    weighty = []
    if finding_status(stated) != fresh["status"]:
        weighty.append(f"finding {name} is {fresh['status']} by the evidence and {finding_status(stated)} is stated")
    a, b = stated.get("p_value"), fresh["p_value"]
    if (a is None) != (b is None) or (
        a is not None and not math.isclose(to_float(a), to_float(b), rel_tol=_P_VALUE, abs_tol=1e-12)
    ):
        weighty.append(f"finding {name} has p={_show(b)} by the evidence and {_show(a)} is stated")
    words = [
        difference
        for key in ("claim", "deterministic", "power", "excludes", "detail")
        if (difference := first_difference(stated.get(key), fresh[key], f"finding {name}.{key}"))
    ]
    if not same_text(stated.get("text"), fresh["text"]):
        words.append(f"the text of finding {name} is not the one that follows")
    return weighty, words


def _words_step(stated: dict[str, Any], fresh: dict[str, Any], own: bool) -> Step:
    same = same_text(stated.get("summary"), fresh["summary"])
    same = same and same_text(stated.get("power_source"), fresh["power_source"])
    word = str(stated.get("verdict")).split("_")[0].capitalize()  # the sentence of every version begins with this word
    if not same and not own and str(stated.get("summary")).startswith(word):
        return Step("audit.summary", RECORDED, "the writer's words; not all that they rest on can be derived here")
    return judge("audit.summary", same, "the words follow from the numbers", "the words are not those that follow")


def _verdict_step(stated: dict[str, Any], fresh: dict[str, Any]) -> Step:
    said, derived = stated.get("verdict"), fresh["verdict"]
    if (
        said == Verdict.CONSISTENT
        and derived == Verdict.INCONCLUSIVE
        and fresh["power"] is None
        and stated.get("power") is not None
    ):
        return Step("audit.verdict", ABSENT, f"{derived}: the power that {said} rests on could not be measured again")
    return judge("audit.verdict", said == derived, derived, f"the evidence gives {derived} and {said} is stated")


def power_step(stated: dict[str, Any], again: RecomputedAudit) -> Step:
    """The attack's power from its control; power that is not measured again is null and supports nothing."""
    name, control = "audit.power", again.control
    power, lower = stated.get("power"), stated.get("power_lower")
    if control.outcome == DIFFERENT:
        return Step(name, DIFFERENT, control.detail)
    if not control.bound:
        if power is None and lower is None:
            return Step(name, ABSENT, control.detail)
        measured = [f for f in stated.get("findings") or () if isinstance(f, dict) and f.get("power") is not None]
        if measured and all(f.get("name") != "positive_control" for f in measured):
            return Step(name, ABSENT, "it rests on white-box tests that cannot be repeated here; it counts as null")
        return Step(name, DIFFERENT, f"power={_show(power)} is stated and no control is bound to show it")
    if control.control is None:
        return Step(name, ABSENT, f"{control.detail}; the power counts as null")
    if again.result.value is None:
        return Step(name, ABSENT, "the run's own scores do not re-derive here; the power counts as null")
    fresh = again.result.value
    same = _same(power, fresh["power"]) and (_same(lower, fresh["power_lower"]) or "power_lower" not in stated)
    found = "null" if fresh["power"] is None else lower_text(fresh["power"])
    least = "" if again.power_lower is None else f", at least {lower_text(again.power_lower)} with 95 % confidence"
    told = f"{found}{least}, from {control.detail}"
    return judge(name, same, told, f"the control gives {told}; {_show(power)}, at least {_show(lower)}, is stated")


def group_step(body: Predicate, audit: Audit, again: RecomputedAudit) -> list[Step]:
    """For canaries with copies: the group claim that they test, of the recorded steps."""
    name, copies, stated = "audit.group_claim", audit.copies, (audit.plan or {}).get("group_epsilon")
    if copies == 1:
        return [] if stated is None else [Step(name, DIFFERENT, "the plan names a group claim for single canaries")]
    found = again.group_epsilon
    if found is None:
        return [Step(name, ABSENT, "no accountant here can treat groups of this ledger")]
    equal = f"ε for {copies} records is at most {upper_text(found, 6)}"
    if stated is None:
        return [Step(name, ABSENT, f"{equal}; the plan names no group claim")]
    planned = to_float(stated)
    close = math.isclose(planned, found, rel_tol=TOLERANCE if written_here(body) else 1e-3)
    if body.run_status == "complete":
        return [judge(name, close, equal, f"{equal} and the plan has {exact_text(planned)}")]
    # A run that stopped early costs its groups less than was planned; the bound is tested at what it costs.
    return [judge(name, close or planned > found, equal, f"{equal}, above the plan's {exact_text(planned)}")]


def _same(stated: Any, fresh: Any) -> bool:
    if stated is None or fresh is None:
        return stated is None and fresh is None
    return math.isclose(to_float(stated), to_float(fresh), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _show(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return exact_text(value) if number else "null" if value is None else repr(value)[:40]
