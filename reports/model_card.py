"""The Markdown block for a model card: claim, evidence and limits in a screenful, between two markers."""

from __future__ import annotations

import re
from typing import Any

from dpaudit.certificates.observers import observer_rows
from dpaudit.certificates.statement import Statement
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.reports.text import plain_value, relation_text
from dpaudit.reports.words import WORDS, evidence_lines, headline_of, not_proved

BEGIN, END = "<!-- dpaudit:begin -->", "<!-- dpaudit:end -->"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def model_card(certificate: Statement) -> str:
    """Markdown section on privacy for a model card, from a certificate; every value from it is escaped.

    Parameters
    ----------
    certificate : Statement
        As :func:`dpaudit.certificates.read_certificate` gives it.

    Returns
    -------
    str
        Markdown between two comments, by which :func:`insert_model_card` finds it again.
    """
    body = certificate.predicate
    claim, verdict = body.claim, body.verdict.name
    rows = [("Verdict", f"**{WORDS[verdict]}.** {escape(headline_of(body))}")]
    if claim:
        relation = relation_text(claim.relation, claim.unit)
        rows.append(("Claim", f"ε ≤ {exact_text(claim.epsilon)} at δ = {exact_text(claim.delta)}, {escape(relation)}"))
    if other := body.provenance.get("other_relation"):
        rows.append(("Other relation", escape(other)))
    rows += [(line.title, f"**{line.standing}:** {escape(line.text)}") for line in evidence_lines(body)]
    if body.in_run is not None:
        rows += [
            (
                f"Seen by {row.observer}",
                escape(f"ε ≥ {row.lower}; power: {row.power}; smallest shortfall: {row.visible}"),
            )
            for row in observer_rows(body)
        ]
    mechanism = body.mechanism
    for key in ("algorithm", "clipping_norm", "normaliser", "sampler", "units", "noise_source"):
        if mechanism.get(key) is not None:
            rows.append((key.replace("_", " ").capitalize(), escape(plain_value(mechanism[key]))))
    if body.ledger:
        for stage in body.ledger.stages:
            text = (
                f"{stage['steps']} steps, σ = {lower_text(stage['noise_multiplier'], 6)},"
                f" q = {upper_text(stage['sampling_probability'], 6)}"
            )
            rows.append(("Stage", f"{text}, {escape(stage['sampling'])}"))
    rows.append(("Trust model", escape(body.scope.trust_model or "not stated")))
    rows.append(("Released", escape(body.scope.release_scope or "not stated")))
    lines = [BEGIN, "## Differential privacy", "", escape(body.verdict.meaning), "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "What this does not prove:", ""]
    lines += [f"- {escape(item)}" for item in (*not_proved(body), *body.limits)]
    lines += ["", f"Re-derive with `dpaudit verify certificate.json` (statement {body.digest}).", END, ""]
    return "\n".join(lines)


def insert_model_card(readme: str, section: str) -> str:
    """Put the section into a model card's text: in place of an earlier one, or at the end.

    Parameters
    ----------
    readme : str
        Text of the whole model card; may be empty.
    section : str
        As :func:`model_card` returns it.

    Returns
    -------
    str
        The whole text with the section in it.
    """
    if BEGIN in readme and END in readme[readme.index(BEGIN) :]:
        start = readme.index(BEGIN)
        end = readme.index(END, start) + len(END)
        return readme[:start] + section.rstrip("\n") + readme[end:]
    return readme.rstrip("\n") + ("\n\n" if readme.strip() else "") + section


def escape(text: Any) -> str:
    """One line of Markdown that shows the text as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
