"""Pages: finished values in, one self-contained HTML text out. Nothing is computed and nothing is written here."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpaudit.certificates.lower_bound import audit_is_valid, usable_lower
from dpaudit.privacy.guarantee import tightest
from dpaudit.reports import figures
from dpaudit.reports.svg import Drawing
from dpaudit.reports.text import delta_text, eps, factor, p_value, percent, plain_value, relation_text

HEADLINES = {
    "violated": ("Violated", "The claimed privacy does not hold."),
    "accounting_mismatch": ("Accounting mismatch", "The recorded training does not support the claim."),
    "invalid_audit": ("Invalid audit", "Leakage was not validly tested."),
    "inconclusive": ("Inconclusive", "Nothing speaks against the claim, but it was not put to a strong enough test."),
    "consistent": ("Consistent", "An attack that would have noticed a broken run found no violation."),
}

STAGE_DEFAULTS: dict[str, Any] = {
    "mechanism": "gaussian",
    "clipping_norm": None,
    "releases_per_step": 1,
    "clip": None,
    "stop_reason": None,
}


def render_report(certificate: Mapping[str, Any], series: Mapping[str, Any] | None = None) -> str:
    """Render the report of a certificate.

    Parameters
    ----------
    certificate : mapping
        The statement made by :func:`dpaudit.build_certificate`.
    series : mapping, optional
        Arrays for figures, each optional: ``epsilon_over_steps`` (see :func:`dpaudit.reports.budget`), ``roc``
        (:func:`~dpaudit.reports.roc`), ``scores`` or ``exposure`` (:func:`~dpaudit.reports.histogram`) and ``tradeoff``
        (:func:`~dpaudit.reports.tradeoff`).

    Returns
    -------
    str
        One HTML page without scripts or outside resources; every value from the certificate is escaped.
    """
    series = series or {}
    body = certificate["predicate"]
    audit = body["audit"] or {}
    result = audit.get("result") or {}
    best = tightest(body["accounting"]["guarantees"])
    claim = body["claim"]
    usable = usable_lower(body)
    valid = audit_is_valid(body)
    lower = None if usable is None else usable.epsilon_lower
    verdict = body["verdict"]["name"]
    word, headline = HEADLINES[verdict]
    relation = relation_text(claim["relation"], claim["unit"]) if claim else ""
    drawings = report_drawings(certificate, series)
    return render(
        "report.html",
        title=f"{word} – privacy certificate",
        b=body,
        subject=_subject(certificate),
        subjects=certificate["subject"],
        verdict=verdict,
        word=word,
        headline=headline,
        relation=relation,
        upper=None if best is None else best["epsilon_upper"],
        lower=lower,
        copies=audit.get("copies", 1),
        ceiling=result.get("ceiling"),
        power=result.get("power"),
        result=result,
        attack_sentence=_attack_sentence(audit, result, valid),
        audit_rows=_audit_rows(result, valid),
        not_proved=_not_proved(body, relation),
        stages=[] if body["ledger"] is None else [STAGE_DEFAULTS | stage for stage in body["ledger"]["stages"]],
        mechanism=[(_label(k), plain_value(v)) for k, v in body["mechanism"].items()],
        findings=[_finding(f) for f in (*body["findings"], *result.get("findings", ()))],
        tests=[_test(t) for t in (body.get("examination") or {}).get("tests") or ()],
        untested=[str(t) for t in (body.get("examination") or {}).get("untested") or ()],
        provenance=[(_label(k), plain_value(v)) for k, v in body["provenance"].items()],
        axis=drawings.get("epsilon-axis"),
        budget=drawings.get("budget"),
        pair=[drawings[n] for n in ("roc", "scores") if n in drawings],
        single=[drawings[n] for n in ("exposure", "tradeoff") if n in drawings],
    )


def render(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped."""
    page: str = _environment().get_template(template).render(css=_css(), **values)
    return page


def report_drawings(certificate: Mapping[str, Any], series: Mapping[str, Any] | None = None) -> dict[str, Drawing]:
    """The figures of a report by name; each shows itself in a notebook."""
    series = series or {}
    body = certificate["predicate"]
    claim = body["claim"]
    result = (body["audit"] or {}).get("result") or {}
    primary = result.get("primary") or {}
    usable = usable_lower(body)
    made: list[Drawing] = []
    copies = (body["audit"] or {}).get("copies", 1)
    tested = None if claim is None else claim["epsilon"]
    if copies > 1:
        tested = _float(((body["audit"] or {}).get("plan") or {}).get("group_epsilon"))
    if tested is not None and math.isfinite(tested):
        made.append(
            figures.epsilon_axis(
                claim=tested,
                guarantees=body["accounting"]["guarantees"] if copies == 1 else (),
                copies=copies,
                lower=None if usable is None else usable.epsilon_lower,
                ceiling=_float(result.get("ceiling")),
                confidence=primary.get("confidence"),
            )
        )
    if series.get("epsilon_over_steps"):
        made.append(figures.budget(series["epsilon_over_steps"], claim=None if claim is None else claim["epsilon"]))
    if series.get("roc"):
        made.append(figures.roc({"tpr_at": (result.get("auc") or {}).get("tpr_at_fpr") or (), **series["roc"]}))
    for name in ("scores", "exposure"):
        if series.get(name):
            made.append(figures.histogram(series[name]))
    if series.get("tradeoff"):
        made.append(figures.tradeoff(series["tradeoff"], delta=None if claim is None else claim["delta"]))
    return {d.name: d for d in made}


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_templates()), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        eps=eps,
        p=p_value,
        delta=delta_text,
        factor=factor,
        percent=percent,
        capitalize_first=lambda t: t[:1].upper() + t[1:],
    )
    environment.globals["Markup"] = Markup
    return environment


def _templates() -> Path:
    return Path(__file__).resolve().parent / "templates"


@functools.cache
def _css() -> Any:
    from markupsafe import Markup

    return Markup((_templates() / "base.css").read_text(encoding="utf-8"))


def _subject(certificate: Mapping[str, Any]) -> str:
    names = [s["name"] for s in certificate["subject"]]
    weights = [n for n in names if n.endswith((".safetensors", ".bin", ".gguf"))] or names
    if not weights:
        return "no released file is named"
    more = len(names) - 1
    digest = next(s["digest"]["sha256"] for s in certificate["subject"] if s["name"] == weights[0])
    return f"{weights[0]} (SHA-256 {digest[:12]}…)" + (f" and {more} more file{'s' * (more > 1)}" if more else "")


def _attack_sentence(audit: Mapping[str, Any], result: Mapping[str, Any], valid: bool) -> str:
    plan = audit.get("plan") or {}
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


def _audit_rows(result: Mapping[str, Any], valid: bool) -> list[tuple[str, str, str]]:
    primary = result.get("primary") or {}
    rows = []
    if valid and primary.get("epsilon_lower") is not None:
        sure = percent(primary.get("confidence"))
        rows.append(("Lower bound on ε", eps(primary["epsilon_lower"]), f"Leaked at least this much, {sure} sure"))
        if primary.get("epsilon_lower_at_verdict") is not None:
            rows.append(
                (
                    "The verdict's bound",
                    eps(primary["epsilon_lower_at_verdict"]),
                    "At the stricter level that decides the verdict",
                )
            )
    rows.append(
        (
            "Ceiling",
            eps(result.get("ceiling")),
            "What a perfect attack could have shown with these canaries and guesses",
        )
    )
    if result.get("expected_epsilon_lower") is not None:
        rows.append(
            (
                "Expected bound",
                eps(result["expected_epsilon_lower"]),
                "Of the best attack on a mechanism exactly as claimed",
            )
        )
    rows.append(
        (
            "Power of this attack",
            percent(result.get("power")),
            "Chance to notice a broken run, measured on one; — means not measured",
        )
    )
    rows.append(
        (
            "Power if the attack were optimal",
            percent(result.get("power_if_attack_were_optimal")),
            "For comparison only; it decides nothing",
        )
    )
    auc = result.get("auc") or {}
    value = auc.get("value")
    if value is not None:
        low, high = (*(auc.get("interval") or ()), None, None)[:2]
        between = f" ({eps(low)} to {eps(high)})" if low is not None and high is not None else ""
        rows.append(("AUC", f"{float(value):.3f}", f"0.5 is guessing, 1 is perfect{between}"))
    for point in auc.get("tpr_at_fpr") or ():
        said = f"Inserted canaries found when {percent(point['fpr'])} of the others are accused wrongly"
        rows.append((f"Found at {percent(point['fpr'])} false alarms", percent(point["tpr"]), said))
    return rows


def _not_proved(body: Mapping[str, Any], relation: str) -> list[str]:
    items = ["That nothing leaks. The attack gives a least amount, never a most."]
    if body["claim"]:
        items.append(f"Anything about units other than one {body['claim']['unit']}.")
    items.append("That stronger attacks, or attacks on other data, would find no more.")
    if (body["audit"] or {}).get("commitment_order") == "asserted":
        items.append("That the coins were fixed before training: the owner asserts it.")
    return items


def _test(test: Mapping[str, Any]) -> str:
    name = str(test.get("name", "")).replace("_", " ")
    return f"{name} (excludes {test['excludes']})" if test.get("excludes") else name


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    status = str(finding.get("status", "note"))
    witness = finding.get("witness") or finding.get("detail") or None
    return {
        "name": str(finding.get("name", "")).replace("_", " "),
        "status": status.replace("_", " "),
        "tone": status if status in HEADLINES else "note",
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
