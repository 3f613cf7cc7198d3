"""What a certificate says and does not say, in sentences that hold whatever its numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.lower_bound import usable_lower
from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.guarantee import tightest
from dpaudit.privacy.rounding import lower_text, nearest_text, percent_lower, percent_upper, upper_text
from dpaudit.privacy.verdict import Verdict
from dpaudit.reports.text import counted

WORDS: dict[str, str] = {
    Verdict.VIOLATED: "Violated",
    Verdict.ACCOUNTING_MISMATCH: "Accounting mismatch",
    Verdict.INVALID_AUDIT: "Invalid audit",
    Verdict.INCONCLUSIVE: "Inconclusive",
    Verdict.CONSISTENT: "Consistent",
}

# Each is true of every certificate with that verdict, whatever its reasons; the reasons say the rest.
HEADLINES = {
    Verdict.VIOLATED: "There is evidence against the claim.",
    Verdict.ACCOUNTING_MISMATCH: "What was recorded does not support the claim.",
    Verdict.INVALID_AUDIT: "Leakage was not validly tested.",
    Verdict.INCONCLUSIVE: "Nothing was found against the claim, and the evidence does not suffice to decide it.",
    Verdict.CONSISTENT: "Nothing was found against the claim, by a test whose power was measured.",
}


UNSIGNED = "unsigned, unless certificate.dsse.json beside the certificate signs it"
"""A page is bound by the certificate that a signature is over, so that no page can know of one."""


def evidence_lines(body: Predicate) -> list[tuple[str, str]]:
    """The four lines that evidence stands in, each in its own words: name and sentence."""
    return [
        ("Accounting", _accounting(body)),
        ("Implementation", _implementation(body)),
        ("Released model", _released_model(body)),
        ("Origin", _origin(body)),
    ]


def not_proved(body: Predicate) -> list[str]:
    """What no number of a certificate shows, the largest gaps first."""
    items = [
        "That the recorded steps are the steps that ran: the record is the trainer's own.",
        "Who recorded it, unless somebody whom you trust signed it.",
        "That no other run on the same data was made, released or thrown away.",
        "That nothing leaks. An attack gives a least amount, never a most.",
    ]
    if body.claim:
        unit = body.claim.unit
        items.append(f"Anything about more than one {unit}: whoever contributed several has a weaker guarantee.")
    items.append("That a stronger attack, or other canaries, would find no more.")
    if body.audit is not None and body.audit.commitment_order == "asserted":
        items.append("That the coins were fixed before training: the owner says so.")
    return items


def power_sentence(result: Mapping[str, Any]) -> str:
    """How often this attack would raise the alarm, with the fault that this is about and its interval."""
    power = result.get("power")
    if power is None:
        return "How often this attack would notice a fault was not measured."
    fault, low, high = power_of(result)
    between = f" (95% interval {percent_lower(low)} to {percent_upper(high)})" if low is not None else ""
    return f"A faulty run would raise the alarm in {percent_lower(power)} of cases{between}; the fault: {fault}."


def power_of(result: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """The fault that the measured power is about, and the ends of its interval where they are known."""
    source, _, fault = str(result.get("power_source") or "").partition(": ")
    finding: Mapping[str, Any] = next((f for f in result.get("findings") or () if f.get("name") == source), {})
    interval = (finding.get("detail") or {}).get("interval")
    low, high = interval if isinstance(interval, (list, tuple)) and len(interval) == 2 else (None, None)
    return fault or "unspecified", low, high


def attack_sentence(result: Mapping[str, Any], lower: float | None) -> str:
    """What the attack achieved, also where that is not enough for a bound above 0."""
    if lower is None or lower > 0:
        return ""
    auc = result.get("auc") or {}
    low, high = (*(auc.get("interval") or ()), None, None)[:2]
    if auc.get("value") is None or low is None:
        return "No lower bound above 0 follows from the attack."
    shown = f"AUC {nearest_text(auc['value'], 3)}, 95% interval {lower_text(low, 3)} to {upper_text(high, 3)}"
    if low > 0.5:
        return f"The attack did better than guessing ({shown}; 0.5 is guessing), not enough for a bound above 0."
    return f"The attack was not told apart from guessing ({shown}; 0.5 is guessing)."


def _accounting(body: Predicate) -> str:
    best, claim, ledger = tightest(body.accounting.guarantees), body.claim, body.ledger
    if best is None:
        return "no certified bound"
    steps = "" if ledger is None else f" from {counted(sum(s['steps'] for s in ledger.stages), 'recorded step')}"
    within = claim.epsilon if claim else None
    return f"ε ≤ {upper_text(best.epsilon_upper, within=within)} follows{steps} (certified by {best.accountant})"


def _implementation(body: Predicate) -> str:
    examination = body.examination
    if not examination:
        return "not examined"
    tests, untested = len(examination.get("tests") or ()), len(examination.get("untested") or ())
    against = sum(f.get("status") not in ("note", None) for f in body.findings)
    text = f"{counted(tests, 'white-box test')} of the training step, {counted(against, 'finding')} against it"
    return text + (f", {untested} not made" if untested else "") + "; as the owner recorded it"


def _released_model(body: Predicate) -> str:
    audit = body.audit
    if audit is None or not audit.result:
        return "not attacked"
    lower = usable_lower(body)
    if lower is None:
        return "attacked, without a valid bound"
    group = f" for groups of {audit.copies}" if audit.copies > 1 else ""
    sure = "" if lower.confidence is None else f" ({percent_lower(lower.confidence)} sure)"
    return f"ε ≥ {lower_text(lower.epsilon_lower)}{group} by attack{sure}. {power_sentence(audit.result)}"


def _origin(body: Predicate) -> str:
    if body.audit is None:
        return UNSIGNED
    if body.audit.commitment_order == "proven":
        return f"{UNSIGNED}; the audit plan is proven to come before training"
    return f"{UNSIGNED}; that the audit plan came before training is the owner's word"
