"""The verdict of a certificate, derived from its numbers by one rule that ``certify`` and ``verify`` share.

Precedence: a deterministic witness or ``violated`` > ``accounting_mismatch`` > ``invalid_audit`` > ``inconclusive`` >
``consistent``. Every reason that applies is listed, whichever verdict wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.privacy.finding import finding_status
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import ENOUGH_POWER, VERDICTS, decide_statuses, enough_power, worse

MEANING = {
    "violated": (
        "Either more leaked from the model than the claim allows, or a test of the training mechanism found a fault."
        " Do not release the model under this claim."
    ),
    "accounting_mismatch": (
        "The training that was recorded does not add up to the claim, or a value needed to recompute it is missing."
        " Nothing is said here about what leaked; the claim itself is not supported."
    ),
    "invalid_audit": (
        "The attack part of this certificate cannot be used: its coins, guesses or canaries break the rules that make"
        " its statistics valid. The accounting may still hold, but leakage was not tested."
    ),
    "inconclusive": (
        "The accounting supports the claim and no violation was found. What stands among the reasons keeps that from"
        " counting as a passed test: absence of evidence is weak evidence here."
    ),
    "consistent": (
        "The accounting supports the claim, and an attack that was measured to catch a planted fault found no"
        " violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested."
    ),
}


EARLIER_MEANINGS = {
    "inconclusive": (
        "The accounting supports the claim and no violation was found, but the attack was not shown to be strong enough"
        " to notice one. Absence of evidence here is weak evidence.",
    ),
    "consistent": (
        "The accounting supports the claim, and an attack that was shown to catch a broken run found no violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested.",
    ),
}
"""Words of certificates that earlier versions wrote, by verdict."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerdictReasons:
    """A verdict's name and every reason found, those of the winning verdict first."""

    name: str
    reasons: tuple[str, ...]


def derive_verdict(
    *,
    claim_epsilon: float | None,
    epsilon_upper: float | None,
    tested_epsilon: float | None = None,
    missing: Sequence[str],
    mismatches: Sequence[str],
    audit: Mapping[str, Any] | None,
    audit_faults: Sequence[str],
    findings: Sequence[Mapping[str, Any]],
    run_status: str,
) -> VerdictReasons:
    """Combine accounting, audit and findings into one verdict.

    Parameters
    ----------
    claim_epsilon, epsilon_upper : float or None
        Claimed ε and the smallest certified upper bound at the claim's δ; None when absent.
    tested_epsilon : float or None
        For canaries that stand k > 1 times in the data: the group-k ε they test. None for k = 1, where the lower
        bound is compared with the claim and with the accounted bound.
    missing : names of required fields that the evidence lacks.
    mismatches : sentences on claim and accounting that disagree (δ, relation, unit).
    audit : mapping or None
        ``dpaudit.audit/1`` result: ``verdict``, ``power_lower``, ``findings`` and ``primary.epsilon_lower_at_verdict``
        are read. "consistent" needs the lower limit of a measured power, whatever the audit says of itself.
    audit_faults : sentences on a broken commitment or guesses.
    findings : sequence of mappings with ``name``, ``status`` (a verdict, or "note") and ``text``.
    run_status : "complete" or "unfinished".

    Raises
    ------
    InvalidEvidence
        When a finding has no known status.
    """
    found: dict[str, list[str]] = {name: [] for name in VERDICTS}
    for finding in findings:
        status = finding_status(finding)
        if status not in ("note", "consistent"):
            found[status].append(f"{finding.get('name')}: {finding.get('text')}")
    found["accounting_mismatch"] += [f"{name} is missing, so the claim cannot be recomputed" for name in missing]
    found["accounting_mismatch"] += list(mismatches)
    if claim_epsilon is not None and epsilon_upper is not None and exceeds(epsilon_upper, claim_epsilon):
        found["accounting_mismatch"].append(
            f"the recorded steps cost up to ε={upper_text(epsilon_upper, 6)}, more than the claimed"
            f" {exact_text(claim_epsilon)}"
        )
    found["invalid_audit"] += list(audit_faults)
    limits = (claim_epsilon, epsilon_upper) if tested_epsilon is None else (tested_epsilon, None)
    _judge_audit(found, audit, *limits, bool(audit_faults))
    if run_status != "complete":
        found["inconclusive"].append("the run did not finish; only the steps recorded so far are accounted")
    name = next((v for v in VERDICTS if found[v]), "consistent")
    ordered = [*found[name], *(r for v in VERDICTS if v != name for r in found[v])]
    return VerdictReasons(name, tuple(ordered) or ("no violation was found by an attack with measured power",))


def _judge_audit(
    found: dict[str, list[str]],
    audit: Mapping[str, Any] | None,
    claim: float | None,
    upper: float | None,
    faulty: bool,
) -> None:
    if audit is None:
        found["inconclusive"].append("no audit was made, so nothing is known about what leaked")
        return
    verdict = _own_verdict(audit)
    if faulty or verdict == "invalid_audit":
        if verdict == "invalid_audit":
            found["invalid_audit"].extend(_own_reasons(audit, "the audit itself reports that it is invalid"))
        return
    lower = lower_at_verdict(audit)
    if lower is not None and claim is not None and exceeds(lower, claim):
        found["violated"].append(
            f"the attack shows ε ≥ {lower_text(lower, beyond=claim)}, above the claimed {exact_text(claim)}"
        )
    elif lower is not None and upper is not None and exceeds(lower, upper):
        found["violated"].append(
            f"the attack shows ε ≥ {lower_text(lower, beyond=upper)}, above the"
            f" {upper_text(upper, within=lower)} of the"
            " ledger: the steps were not run as recorded"
        )
    elif verdict == "violated":
        found["violated"].extend(_own_reasons(audit, "the audit refutes the declared mechanism"))
    if verdict in {"accounting_mismatch", "inconclusive"}:
        found[str(verdict)].extend(_own_reasons(audit, "the audit could not decide the claim"))
    elif verdict not in {"consistent", "violated"}:
        found["invalid_audit"].append(f"the audit's verdict {str(verdict)[:40]!r} is unknown")


def _own_verdict(audit: Mapping[str, Any]) -> str:
    """What the audit's findings and its measured power give; its own word counts only where it is graver."""
    stated = str(audit.get("verdict"))
    if stated not in VERDICTS:
        return stated
    statuses = [finding_status(f) for f in audit.get("findings") or ()]
    derived = decide_statuses(statuses, power=_number(audit.get("power_lower")))
    return worse(stated, derived)


def lower_at_verdict(audit: Mapping[str, Any]) -> float | None:
    """Empirical lower bound that the verdict is decided on; None when the audit has none."""
    primary = audit.get("primary")
    value = primary.get("epsilon_lower_at_verdict") if isinstance(primary, Mapping) else None
    if isinstance(value, str):
        value = {"inf": math.inf}.get(value)
    return None if value is None or isinstance(value, bool) else float(value)


def _own_reasons(audit: Mapping[str, Any], fallback: str) -> list[str]:
    """The audit's findings that ask for its verdict, in words."""
    verdict = _own_verdict(audit)
    findings = [f for f in audit.get("findings") or () if isinstance(f, Mapping) and f.get("status") == verdict]
    texts = [str(finding.get("text")) for finding in findings]
    power, lower = _number(audit.get("power")), _number(audit.get("power_lower"))
    if verdict == "inconclusive" and power is None:
        texts.append("the power of this attack is unknown, since no positive control was made")
    elif verdict == "inconclusive" and not enough_power(lower):
        shown = lower_text(0.0 if lower is None else lower, 2)
        texts.append(
            f"this attack was shown to notice a broken run with probability {shown} at least, below the"
            f" {ENOUGH_POWER:g} that a verdict needs"
        )
    return texts or [fallback]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
