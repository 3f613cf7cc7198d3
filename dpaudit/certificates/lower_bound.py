"""Whether a certificate's lower bound on ε may be shown, and which: one answer for every page, card and file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dpaudit.certificates.faults import audit_faults
from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.verdict import Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LowerBound:
    """The attack's lower bounds on ε at the claim's δ.

    Attributes
    ----------
    epsilon_lower, confidence : float
        The bound that is printed, and its confidence (0.95 by default).
    epsilon_lower_at_verdict, confidence_at_verdict : float or None
        The bound at the stricter level that decides the verdict.
    """

    epsilon_lower: float
    confidence: float | None
    epsilon_lower_at_verdict: float | None
    confidence_at_verdict: float | None


def audit_is_valid(body: Predicate) -> bool:
    """Whether the audit keeps the conditions of its statistics; True where there is no audit to doubt.

    Parameters
    ----------
    body : Predicate
        Of a certificate.
    """
    audit = body.audit
    if audit is None:
        return True
    result = audit.result or {}
    findings = [f for f in result.get("findings") or () if isinstance(f, Mapping)]
    broken = result.get("verdict") == Verdict.INVALID_AUDIT or any(
        f.get("status") == Verdict.INVALID_AUDIT for f in findings
    )
    # A graver verdict may stand above a fault of the audit, so the fault is also looked for among the reasons.
    faulty = body.verdict.name == Verdict.INVALID_AUDIT or any(
        fault in body.verdict.reasons for fault in audit_faults(audit)
    )
    return not broken and not faulty


def usable_lower(body: Predicate) -> LowerBound | None:
    """The lower bound that may be shown; None without an audit, without a bound, or where the audit is invalid.

    Parameters
    ----------
    body : Predicate
        Of a certificate.
    """
    result = None if body.audit is None else body.audit.result
    primary = (result or {}).get("primary")
    if not isinstance(primary, Mapping) or primary.get("epsilon_lower") is None or not audit_is_valid(body):
        return None
    values = {name: primary.get(name) for name in (f.name for f in dataclasses.fields(LowerBound))}
    return LowerBound(**{name: None if v is None else to_float(v) for name, v in values.items()})  # type: ignore[arg-type]  # epsilon_lower is not None
