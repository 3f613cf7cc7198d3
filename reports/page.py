"""The report of a certificate: finished values in, one self-contained HTML text out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.lines import power_sentence
from dpaudit.certificates.lower_bound import audit_is_valid, usable_lower
from dpaudit.certificates.observers import observer_rows
from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import Audit, Beacons, Predicate, Statement
from dpaudit.privacy.canaries import substituted
from dpaudit.privacy.guarantee import tightest
from dpaudit.privacy.meaning import largest_accuracy
from dpaudit.privacy.rounding import upper_text
from dpaudit.privacy.verdict import Verdict
from dpaudit.reports import figures
from dpaudit.reports.attack_rows import attack_rows
from dpaudit.reports.glossary import GLOSSARY
from dpaudit.reports.in_run_rows import in_run_rows
from dpaudit.reports.render import render
from dpaudit.reports.stated import KEY, stated_rows
from dpaudit.reports.svg import Drawing
from dpaudit.reports.text import counted, plain_value, relation_text
from dpaudit.reports.words import WORDS, attack_sentence, evidence_lines, headline_of, level_of, not_proved

STAGE_DEFAULTS: dict[str, Any] = {
    "mechanism": "gaussian",
    "clipping_norm": None,
    "releases_per_step": 1,
    "clip": None,
    "stop_reason": None,
}
IN_THE_CARD = 4
"""Of what is not proved, how many items the first screen names; the others stand further down, with the limits."""


def render_report(certificate: Statement, series: Mapping[str, Any] | None = None) -> str:
    """Render the report of a certificate.

    Parameters
    ----------
    certificate : Statement
        As made by ``dpaudit.certificates.build``.
    series : mapping, optional
        Arrays for figures, each optional: ``epsilon_over_steps`` (see ``budget``), ``roc``
        (``roc``), ``scores`` or ``exposure`` (``histogram``) and ``tradeoff``
        (``tradeoff``).

    Returns
    -------
    str
        One HTML page without scripts or outside resources; every value from the certificate is escaped.
    """
    body = certificate.predicate
    audit, claim, verdict = body.audit, body.claim, body.verdict.name
    result = _result(audit)
    best, lower = tightest(body.accounting.guarantees), usable_lower(body)
    shown = None if lower is None else lower.epsilon_lower
    drawings = report_drawings(certificate, series)
    open_points = not_proved(body)
    in_run_findings = () if body.in_run is None else body.in_run.result.get("findings") or ()
    return render(
        "report.html",
        title=f"{WORDS[verdict]} – privacy certificate",
        b=body,
        subject=_subject(certificate),
        subjects=certificate.subject,
        verdict=verdict,
        word=WORDS[verdict],
        headline=headline_of(body),
        level=level_of(body),
        lines=evidence_lines(body),
        relation=relation_text(claim.relation, claim.unit) if claim else "",
        accuracy=largest_accuracy(claim.epsilon, claim.delta) if claim else None,
        limit=claim.epsilon if claim else None,
        upper=None if best is None else best.epsilon_upper,
        lower=shown,
        inside=_inside(body),
        sure=None if lower is None else lower.confidence,
        copies=_copies(audit),
        ceiling=result.get("ceiling"),
        result=result,
        attack=attack_sentence(result, shown),
        power=power_sentence(result) if result else "",
        observers=observer_rows(body) if body.in_run is not None else (),
        in_run_rows=[] if body.in_run is None else in_run_rows(body.in_run.result),
        attack_made=_attack_made(audit, result, audit_is_valid(body)),
        audit_rows=attack_rows(result, lower),
        not_proved=open_points[:IN_THE_CARD],
        limits=[*open_points[IN_THE_CARD:], *body.limits],
        stages=[] if body.ledger is None else [STAGE_DEFAULTS | stage for stage in body.ledger.stages],
        records=_records(body),
        evaluation=_evaluation(body.provenance.get("public_evaluation")),
        mechanism=[(_label(k), plain_value(v)) for k, v in body.mechanism.items()],
        findings=[_finding(f) for f in (*body.findings, *in_run_findings, *result.get("findings", ()))],
        tests=[_test(t) for t in (body.examination or {}).get("tests") or ()],
        untested=[str(t) for t in (body.examination or {}).get("untested") or ()],
        provenance=[(_label(k), plain_value(v)) for k, v in body.provenance.items() if k != KEY],
        stated=stated_rows(body.provenance),
        glossary=GLOSSARY,
        axis=drawings.get("epsilon-axis"),
        budget=drawings.get("budget"),
        pair=[drawings[n] for n in ("roc", "scores") if n in drawings],
        single=[drawings[n] for n in ("exposure", "tradeoff") if n in drawings],
    )


def report_drawings(certificate: Statement, series: Mapping[str, Any] | None = None) -> dict[str, Drawing]:
    """The figures of a report by name; each shows itself in a notebook."""
    series = series or {}
    body = certificate.predicate
    claim, result = body.claim, _result(body.audit)
    lower = usable_lower(body)
    made: list[Drawing] = []
    copies = _copies(body.audit)
    tested = None if claim is None else claim.epsilon
    if body.audit is not None and copies > 1:
        tested = _float((body.audit.plan or {}).get("group_epsilon"))
    if tested is not None and math.isfinite(tested):
        made.append(
            figures.epsilon_axis(
                claim=tested,
                guarantees=body.accounting.guarantees if copies == 1 else (),
                copies=copies,
                lower=None if lower is None else lower.epsilon_lower,
                inside=_inside(body) if copies == 1 else None,
                ceiling=_float(result.get("ceiling")),
                confidence=None if lower is None else lower.confidence,
            )
        )
    if series.get("epsilon_over_steps"):
        made.append(figures.budget(series["epsilon_over_steps"], claim=None if claim is None else claim.epsilon))
    if series.get("roc"):
        made.append(figures.roc({"tpr_at": (result.get("auc") or {}).get("tpr_at_fpr") or (), **series["roc"]}))
    for name in ("scores", "exposure"):
        if series.get(name):
            made.append(figures.histogram(series[name]))
    if series.get("tradeoff"):
        made.append(figures.tradeoff(series["tradeoff"], delta=None if claim is None else claim.delta))
    return {d.name: d for d in made}


def _result(audit: Audit | None) -> Mapping[str, Any]:
    return {} if audit is None else audit.result or {}


def _inside(body: Predicate) -> float | None:
    """The lower bound that the observer of every update shows; None where its conditions were broken."""
    primary = None if body.in_run is None else body.in_run.result.get("primary")
    if not primary or primary.get("epsilon_lower") is None or body.verdict.name == Verdict.INVALID_AUDIT:
        return None
    return to_float(primary["epsilon_lower"])


def _copies(audit: Audit | None) -> int:
    return 1 if audit is None else audit.copies


def _subject(certificate: Statement) -> str:
    names = [s.name for s in certificate.subject]
    weights = [n for n in names if n.endswith((".safetensors", ".bin", ".gguf"))] or names
    if not weights:
        return "no released file is named"
    more = len(names) - 1
    digest = next(s.digest.sha256 for s in certificate.subject if s.name == weights[0])
    return f"{weights[0]} (SHA-256 {digest[:12]}…)" + (f" and {counted(more, 'more file')}" if more else "")


def _attack_made(audit: Audit | None, result: Mapping[str, Any], valid: bool) -> str:
    plan: Mapping[str, Any] = {} if audit is None else audit.plan or {}
    primary = result.get("primary") or {}
    m = plan.get("m")
    text = ""
    if m:
        text = (
            f"{m:,} invented records (canaries) were made, and a fair secret coin decided for each whether it entered"
            " the training data. "
        )
    guesses, correct = primary.get("guesses"), primary.get("correct")
    if guesses is not None and correct is not None:
        text += f"From the finished model the attack guessed {guesses} of the coins and was right {correct} times. "
    if plan.get("copies", 1) and plan.get("copies", 1) > 1:
        text += f"Each inserted canary stands {plan['copies']} times in the data, so a group claim is tested. "
    if not valid:
        text += "The audit is invalid, so no bound is drawn from these guesses."
    return text.strip()


def _records(body: Predicate) -> list[tuple[str, str]]:
    """Records trained on, as declared, and how many of them are canaries."""
    stages = () if body.ledger is None else body.ledger.stages
    replaced = body.audit is not None and substituted(body.audit.plan)
    sizes = sorted({s["public_size"] for s in stages if s.get("public_size")})
    declared = (body.provenance.get("records") or {}).get("declared")
    rows = []
    if declared is not None:
        rows.append(("Real records", f"{int(declared):,}, as declared; not counted from the private data"))
    if sizes:
        what = "the declared size that the sampling probability derives from"
        what += "" if declared is None else f", with {'' if replaced else 'half of '}the canaries"
        what += "" if body.beacons is None else " and of the beacons' copies"
        rows.append(("Public size", f"{', '.join(f'{n:,}' for n in sizes)}, {what}"))
    designed = _result(body.audit).get("design") or {}
    inserted = designed.get("m" if replaced else "members")
    if inserted is not None:
        copies = _copies(body.audit)
        each = "" if copies == 1 else f", {copies} copies each"
        each += ", whose label a coin chose between two" if replaced else ""
        rows.append(("Canaries in the data", f"{int(inserted):,} invented records{each}, trained on like all others"))
    if body.beacons is not None:
        rows.append(("Beacons in the data", _beacons(body.beacons, body.audit)))
    if body.claim and len(sizes) == 1:
        rows.append(("δ × public size", upper_text(body.claim.delta * sizes[0], 3)))
    return rows


def _evaluation(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or value.get("before") is None or value.get("after") is None:
        return None
    return {"what": str(value.get("what") or "score"), "before": value["before"], "after": value["after"]}


def _test(test: Mapping[str, Any]) -> str:
    name = str(test.get("name", "")).replace("_", " ")
    return f"{name} (excludes {test['excludes']})" if test.get("excludes") else name


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    status = str(finding.get("status", "note"))
    witness = finding.get("witness") or finding.get("detail") or None
    return {
        "name": str(finding.get("name", "")).replace("_", " "),
        "status": status.replace("_", " "),
        "tone": status if status in WORDS else "note",
        "text": finding.get("text", ""),
        "witness": json.dumps(witness, indent=1, ensure_ascii=False) if witness else "",
    }


def _label(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _float(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _beacons(beacons: Beacons, audit: Audit | None) -> str:
    """How many beacons were inserted, with how many copies, and what is promised to their groups."""
    planned = ((audit.plan if audit is not None else None) or {}).get("beacons") or {}
    inserted = sum(coin for _, coin, _ in beacons.canaries)
    size, epsilon = planned.get("group_size"), planned.get("group_epsilon")
    promised = "no bound is known" if epsilon is None else f"ε ≤ {upper_text(to_float(epsilon))} is accounted"
    return (
        f"{inserted:,} invented records, {beacons.copies} copies each, which show whether the attack is alive and enter"
        f" no bound; for a group of {size}, {promised}"
    )
