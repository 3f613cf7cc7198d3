"""The result in one paragraph of plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpaudit.auditing.liveness import REVERSED
from dpaudit.privacy.rounding import exact_text, lower_text, nearest_text, percent_text, upper_text
from dpaudit.privacy.verdict import Verdict, enough_power

if TYPE_CHECKING:
    from dpaudit.auditing.result import AuditResult

_CLOSING = {
    Verdict.VIOLATED: "A correct implementation shows such evidence with probability at most alpha.",
    Verdict.ACCOUNTING_MISMATCH: "This is a fault of the bookkeeping, whatever the attack showed.",
    Verdict.INVALID_AUDIT: "Nothing about privacy follows from it, in either direction; mend the design and repeat it.",
    Verdict.INCONCLUSIVE: "This is no evidence of privacy: a weak attack, or too few canaries, looks exactly the same.",
    Verdict.CONSISTENT: (
        "It proves nothing, and says nothing of stronger attacks, other data or other units of privacy."
    ),
}


def explain(verdict: str) -> str:
    """What a verdict does not mean, in one sentence."""
    return _CLOSING[Verdict(verdict)]


def summarise(result: AuditResult) -> str:
    """What the verdict means and does not mean, with the numbers that carry it."""
    head = {
        Verdict.VIOLATED: _violated(result),
        Verdict.ACCOUNTING_MISMATCH: "Accounting mismatch: the recorded steps do not support the claim.",
        Verdict.INVALID_AUDIT: "Invalid audit: its conditions were broken, and its own bound is discarded.",
        Verdict.INCONCLUSIVE: _inconclusive(result),
        Verdict.CONSISTENT: _consistent(result),
    }[result.verdict]
    return " ".join(part for part in (head, _numbers(result), explain(result.verdict)) if part)


def _inconclusive(result: AuditResult) -> str:
    if any(f.name == REVERSED for f in result.findings):
        return "Inconclusive: the scores look reversed, or were joined to the wrong ids, so that nothing can be found."
    return f"Inconclusive: no violation was found, and {' and '.join(_lacking(result))}."


_LACKS = {
    "null_scores": "the scores were not seen to tell inserted from left-out canaries",
    "dead_beacons": "the beacons do not show that the attack is alive",
    "ceiling": "not even a perfect attack could have decided the claim with this design",
    "no_coins": "no fair coins decided who was a member",
    "group_claim_unknown": "the claim for groups is not known",
}


def _lacking(result: AuditResult) -> list[str]:
    """What keeps silence from counting, each in a few words."""
    asking = [f.name for f in result.findings if f.status == Verdict.INCONCLUSIVE]
    found = [_LACKS.get(name, f"{name.replace('_', ' ')} asks for no conclusion") for name in asking]
    if result.power is None:
        found.append("the power of the attack was not measured")
    elif not enough_power(result.power_lower):
        found.append(f"a power of {lower_text(result.power_lower or 0.0, 2)} at least is too little")
    return found or ["nothing supports more"]


def _violated(result: AuditResult) -> str:
    claims = sorted({f.claim for f in result.findings if f.status == Verdict.VIOLATED})
    return f"Violated: the evidence contradicts the claim on {' and '.join(claims)}."


def _consistent(result: AuditResult) -> str:
    return (
        f"Consistent: no violation was found, by an attack that would have caught the control's fault with probability"
        f" {lower_text(result.power_lower, 2)} or more."
        if result.power_lower is not None
        else "Consistent: no violation was found."
    )


def _numbers(result: AuditResult) -> str:
    if result.epsilon_lower is None or result.tested_epsilon is None:
        return ""
    text = (
        f"At {percent_text(result.confidence)} confidence the attack shows epsilon >="
        f" {lower_text(result.epsilon_lower, beyond=result.tested_epsilon)} against"
        f" {upper_text(result.tested_epsilon, within=result.epsilon_lower)} at delta={exact_text(result.delta)}."
    )
    if result.ceiling is not None and result.expected_epsilon_lower is not None:
        text += (
            f" A perfect attack could have shown {lower_text(result.ceiling)}, and the optimal one"
            f" {nearest_text(result.expected_epsilon_lower, 3)} on average if the mechanism were exactly as claimed."
        )
    if result.power is None:
        text += " The power of this attack is unknown: no positive control was given."
    else:
        text += f" The power of this attack is {lower_text(result.power, 2)}"
        if result.power_lower is not None:
            text += f", and at least {lower_text(result.power_lower, 2)} with 95% confidence"
        text += "."
    return text
