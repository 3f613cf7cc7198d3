"""The verdict of a certificate, derived from its numbers by one rule that ``certify`` and ``verify`` share.

Precedence: a deterministic witness or ``violated`` > ``accounting_mismatch`` > ``invalid_audit`` > ``inconclusive`` >
``consistent``. Every reason that applies is listed, whichever verdict wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.privacy.finding import NOTE, finding_status
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import ENOUGH_POWER, Verdict, decide_statuses, enough_power, worse

EARLIER_MEANINGS: dict[str, tuple[str, ...]] = {
    Verdict.INCONCLUSIVE: (
        "The accounting supports the claim and no violation was found, but the attack was not shown to be strong enough"
        " to notice one. Absence of evidence here is weak evidence.",
    ),
    Verdict.CONSISTENT: (
        "The accounting supports the claim, and an attack that was shown to catch a broken run found no violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested.",
    ),
}
"""Words of certificates that earlier versions wrote, by verdict."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerdictReasons:
    """A verdict's name and every reason found, those of the winning verdict first."""

    name: Verdict
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
    found: dict[Verdict, list[str]] = {verdict: [] for verdict in Verdict}
    for finding in findings:
        status = finding_status(finding)
        if status not in (NOTE, Verdict.CONSISTENT):
            found[Verdict(status)].append(f"{finding.get('name')}: {finding.get('text')}")
    found[Verdict.ACCOUNTING_MISMATCH] += [f"{name} is missing, so the claim cannot be recomputed" for name in missing]
    found[Verdict.ACCOUNTING_MISMATCH] += list(mismatches)
    if claim_epsilon is not None and epsilon_upper is not None and exceeds(epsilon_upper, claim_epsilon):
        found[Verdict.ACCOUNTING_MISMATCH].append(
            f"the recorded steps cost up to ε={upper_text(epsilon_upper, 6)}, more than the claimed"
            f" {exact_text(claim_epsilon)}"
        )
    found[Verdict.INVALID_AUDIT] += list(audit_faults)
    limits = (claim_epsilon, epsilon_upper) if tested_epsilon is None else (tested_epsilon, None)
    _judge_audit(found, audit, *limits, bool(audit_faults))
    if run_status != "complete":
        found[Verdict.INCONCLUSIVE].append("the run did not finish; only the steps recorded so far are accounted")
    name = next((v for v in Verdict if found[v]), Verdict.CONSISTENT)
    ordered = [*found[name], *(r for v in Verdict if v != name for r in found[v])]
    return VerdictReasons(name, tuple(ordered) or ("no violation was found by an attack with measured power",))


def _judge_audit(
    found: dict[Verdict, list[str]],
    audit: Mapping[str, Any] | None,
    claim: float | None,
    upper: float | None,
    faulty: bool,
) -> None:
    if audit is None:
        found[Verdict.INCONCLUSIVE].append("no audit was made, so nothing is known about what leaked")
        return
    verdict = _own_verdict(audit)
    if faulty or verdict == Verdict.INVALID_AUDIT:
        if verdict == Verdict.INVALID_AUDIT:
            found[Verdict.INVALID_AUDIT].extend(_own_reasons(audit, "the audit itself reports that it is invalid"))
        return
    lower = lower_at_verdict(audit)
    if lower is not None and claim is not None and exceeds(lower, claim):
        found[Verdict.VIOLATED].append(
            f"the attack shows ε ≥ {lower_text(lower, beyond=claim)}, above the claimed {exact_text(claim)}"
        )
    elif lower is not None and upper is not None and exceeds(lower, upper):
        found[Verdict.VIOLATED].append(
            f"the attack shows ε ≥ {lower_text(lower, beyond=upper)}, above the"
            f" {upper_text(upper, within=lower)} of the"
            " ledger: the steps were not run as recorded"
        )
    elif verdict == Verdict.VIOLATED:
        found[Verdict.VIOLATED].extend(_own_reasons(audit, "the audit refutes the declared mechanism"))
    if verdict in (Verdict.ACCOUNTING_MISMATCH, Verdict.INCONCLUSIVE):
        found[Verdict(verdict)].extend(_own_reasons(audit, "the audit could not decide the claim"))
    elif verdict not in (Verdict.CONSISTENT, Verdict.VIOLATED):
        found[Verdict.INVALID_AUDIT].append(f"the audit's verdict {str(verdict)[:40]!r} is unknown")


def _own_verdict(audit: Mapping[str, Any]) -> str:
    """What the audit's findings and its measured power give; its own word counts only where it is graver."""
    stated = str(audit.get("verdict"))
    if stated not in list(Verdict):
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
    if verdict == Verdict.INCONCLUSIVE and power is None:
        texts.append("the power of this attack is unknown, since no positive control was made")
    elif verdict == Verdict.INCONCLUSIVE and not enough_power(lower):
        shown = lower_text(0.0 if lower is None else lower, 2)
        texts.append(
            f"this attack was shown to notice a broken run with probability {shown} at least, below the"
            f" {ENOUGH_POWER:g} that a verdict needs"
        )
    return texts or [fallback]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
