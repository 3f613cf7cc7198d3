"""What a certificate says and does not say, in sentences that hold whatever its numbers are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.lines import assess
from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.level import headline
from dpaudit.privacy.rounding import lower_text, nearest_text, upper_text
from dpaudit.privacy.verdict import Verdict

WORDS: dict[str, str] = {
    Verdict.VIOLATED: "Violated",
    Verdict.ACCOUNTING_MISMATCH: "Accounting mismatch",
    Verdict.INVALID_AUDIT: "Invalid audit",
    Verdict.INCONCLUSIVE: "Inconclusive",
    Verdict.CONSISTENT: "Consistent",
}
_TONES = {"shown": "consistent", "not shown": "inconclusive", "against the claim": "violated"}


@dataclasses.dataclass(frozen=True, slots=True)
class EvidenceLine:
    """One of the four lines, as a page shows it: title, standing, words, reasons, and the tone of its mark."""

    title: str
    standing: str
    text: str
    reasons: tuple[str, ...]
    tone: str


def evidence_lines(body: Predicate) -> list[EvidenceLine]:
    """The four lines that evidence stands in, as they follow from the certificate's fields."""
    return [
        EvidenceLine(line.name.title, str(line.standing), line.text, line.reasons, _TONES[line.standing])
        for line in assess(body).lines
    ]


def level_of(body: Predicate) -> int:
    """The level that a certificate's fields reach."""
    return int(assess(body).level)


def headline_of(body: Predicate) -> str:
    """One sentence for the top: the level and what is missing for the next, or what speaks against the claim."""
    return headline(body.verdict.name, level_of(body), body.verdict.reasons)


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
