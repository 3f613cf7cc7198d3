"""The verdict of a certificate, derived from its numbers by one rule that ``certify`` and ``verify`` share.

Precedence: a deterministic witness or ``violated`` > ``accounting_mismatch`` > ``invalid_audit`` > ``inconclusive`` >
``consistent``. Every reason that applies is listed, whichever verdict wins. ``consistent`` says two things: nothing was
found against the claim, and the evidence reaches level 3.
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
        "The accounting supports the claim and no violation was found. What stands among the reasons keeps that from"
        " counting as a passed test: absence of evidence is weak evidence here.",
    ),
    Verdict.CONSISTENT: (
        "The accounting supports the claim, and an attack that was shown to catch a broken run found no violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested.",
        "The accounting supports the claim, and an attack that was measured to catch a planted fault found no"
        " violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested.",
    ),
}
"""Words of certificates that earlier versions wrote, by verdict."""

NO_AUDIT = "no audit was made, so nothing is known about what leaked"


@dataclasses.dataclass(frozen=True, slots=True)
class VerdictReasons:
    """A verdict's name and every reason found, those of the winning verdict first."""

    name: Verdict
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Result of the audit by one observer: what it found, and how surely it would have found a fault.

    Attributes
    ----------
    against, mismatch, invalid : tuple of str
        Sentences that ask for ``violated``, ``accounting_mismatch`` and ``invalid_audit``.
    weak : tuple of str
        What keeps a silent audit from supporting the claim; empty where it was alive and had enough power.
    power : str
        For an audit that supports the claim: the fault that it would have convicted, in words.
    """

    against: tuple[str, ...] = ()
    mismatch: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    power: str = ""

    @property
    def supports(self) -> bool:
        """Whether finding nothing is evidence for the claim: the audit was alive and had the power to find a fault."""
        return not (self.against or self.mismatch or self.invalid or self.weak)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Everything found about a claim, by what it concerns.

    Attributes
    ----------
    accounting : tuple of str
        What keeps the recorded steps from supporting the claim.
    findings : mapping
        Verdict to the sentences of the findings that ask for it.
    model, in_run : Observed or None
        Who sees the released model, and who sees every noisy update; None where nobody looked.
    unfinished : bool
    """

    accounting: tuple[str, ...]
    findings: Mapping[Verdict, tuple[str, ...]]
    model: Observed
    in_run: Observed | None
    unfinished: bool

    def asking(self, verdict: Verdict) -> tuple[str, ...]:
        """Sentences that ask for a verdict graver than ``inconclusive``, or bar ``consistent`` whatever else holds."""
        observers = [o for o in (self.in_run, self.model) if o is not None]
        own = self.findings.get(verdict, ())
        if verdict == Verdict.VIOLATED:
            return (*own, *(text for o in observers for text in o.against))
        if verdict == Verdict.ACCOUNTING_MISMATCH:
            return (*own, *self.accounting, *(text for o in observers for text in o.mismatch))
        if verdict == Verdict.INVALID_AUDIT:
            return (*own, *(text for o in observers for text in o.invalid))
        if verdict == Verdict.INCONCLUSIVE and self.unfinished:
            return (*own, "the run did not finish; only the steps recorded so far are accounted")
        return own


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What the claim is compared with, and what keeps the two from being compared.

    Attributes
    ----------
    claim_epsilon, epsilon_upper : float or None
        Claimed ε and the smallest certified upper bound at the claim's δ; None when absent.
    tested_epsilon : float or None
        For canaries that stand k > 1 times in the data: the group-k ε they test. None for k = 1, where the lower
        bound is compared with the claim and with the accounted bound.
    missing : sequence of str
        Names of required fields that the evidence lacks.
    mismatches : sequence of str
        Sentences on claim and accounting that disagree (δ, relation, unit).
    """

    claim_epsilon: float | None
    epsilon_upper: float | None
    tested_epsilon: float | None = None
    missing: Sequence[str] = ()
    mismatches: Sequence[str] = ()

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The claim, and the accounted bound, above which a lower bound contradicts either."""
        if self.tested_epsilon is not None:
            return self.tested_epsilon, None
        return self.claim_epsilon, self.epsilon_upper

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps the recorded steps from supporting the claim."""
        found = [f"{name} is missing, so the claim cannot be recomputed" for name in self.missing]
        found += self.mismatches
        claim, upper = self.claim_epsilon, self.epsilon_upper
        if claim is not None and upper is not None and exceeds(upper, claim):
            found.append(
                f"the recorded steps cost up to ε={upper_text(upper, 6)}, more than the claimed {exact_text(claim)}"
            )
        return tuple(found)


def weigh(
    compared: Compared,
    *,
    audit: Mapping[str, Any] | None,
    audit_faults: Sequence[str],
    findings: Sequence[Mapping[str, Any]],
    run_status: str,
    in_run: Observed | None = None,
) -> Weighed:
    """Sort what accounting, audits and findings say by what it concerns.

    Parameters
    ----------
    compared : Compared
        Claim and accounting.
    audit : mapping or None
        ``dpaudit.audit/1`` result: ``verdict``, ``power_lower``, ``findings`` and ``primary.epsilon_lower_at_verdict``
        are read. It supports the claim only with the lower limit of a measured power, whatever it says of itself.
    audit_faults : sentences on a broken commitment or guesses.
    findings : sequence of mappings with ``name``, ``status`` (a verdict, or "note") and ``text``.
    run_status : "complete" or "unfinished".
    in_run : Observed or None
        The audit by the observer of every update.

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
    return Weighed(
        accounting=compared.faults,
        findings={verdict: tuple(texts) for verdict, texts in found.items()},
        model=_model_audit(audit, *compared.limits, tuple(audit_faults)),
        in_run=in_run,
        unfinished=run_status != "complete",
    )


def verdict_of(weighed: Weighed, lacking: Sequence[str] = ()) -> VerdictReasons:
    """One verdict from everything that was found.

    Parameters
    ----------
    weighed : Weighed
    lacking : sequence of str
        What keeps the evidence from level 2: a chain that was not seen, or an examination that was not made in full.
    """
    asked = {verdict: weighed.asking(verdict) for verdict in Verdict}
    name = next((verdict for verdict in _GRAVER if asked[verdict]), None)
    observers = [o for o in (weighed.in_run, weighed.model) if o is not None]
    supporting = [o for o in observers if o.supports]
    weak = () if supporting else tuple(text for o in observers for text in o.weak)
    open_points = (*asked[Verdict.INCONCLUSIVE], *lacking, *weak)
    if name is None:
        name = Verdict.INCONCLUSIVE if open_points or not supporting else Verdict.CONSISTENT
    if name == Verdict.CONSISTENT:
        return VerdictReasons(name, tuple(dict.fromkeys(_silence(o) for o in supporting)))
    others = tuple(text for verdict in _GRAVER if verdict != name for text in asked[verdict])
    return VerdictReasons(name, tuple(dict.fromkeys((*asked.get(name, ()), *others, *open_points))))


_GRAVER = (Verdict.VIOLATED, Verdict.ACCOUNTING_MISMATCH, Verdict.INVALID_AUDIT)


def _silence(observed: Observed) -> str:
    return f"nothing was found against the claim by an audit that would have convicted {observed.power}"


def _model_audit(
    audit: Mapping[str, Any] | None, claim: float | None, upper: float | None, faults: tuple[str, ...]
) -> Observed:
    if audit is None:
        return Observed(invalid=faults, weak=(NO_AUDIT,))
    verdict = _own_verdict(audit)
    if faults or verdict == Verdict.INVALID_AUDIT:
        own = _own_reasons(audit, "the audit itself reports that it is invalid")
        return Observed(invalid=(*faults, *(own if verdict == Verdict.INVALID_AUDIT else ())))
    if verdict not in list(Verdict):
        return Observed(invalid=(f"the audit's verdict {str(verdict)[:40]!r} is unknown",))
    against: tuple[str, ...] = ()
    lower = lower_at_verdict(audit)
    if lower is not None and claim is not None and exceeds(lower, claim):
        against = (f"the attack shows ε ≥ {lower_text(lower, beyond=claim)}, above the claimed {exact_text(claim)}",)
    elif lower is not None and upper is not None and exceeds(lower, upper):
        against = (
            f"the attack shows ε ≥ {lower_text(lower, beyond=upper)}, above the"
            f" {upper_text(upper, within=lower)} of the"
            " ledger: the steps were not run as recorded",
        )
    elif verdict == Verdict.VIOLATED:
        against = _own_reasons(audit, "the audit refutes the declared mechanism")
    mismatch = _own_reasons(audit, "the audit could not decide the claim") if verdict == _MISMATCH else ()
    weak = _own_reasons(audit, "the audit could not decide the claim") if verdict == Verdict.INCONCLUSIVE else ()
    return Observed(against=against, mismatch=mismatch, weak=weak, power=_power(audit))


_MISMATCH = Verdict.ACCOUNTING_MISMATCH


def _power(audit: Mapping[str, Any]) -> str:
    """The fault that a model audit would have convicted, and how surely."""
    fault = str(audit.get("power_source") or "").partition(": ")[2] or "a fault that is not named"
    least = _number(audit.get("power_lower"))
    return f"{fault} (probability {lower_text(0.0 if least is None else least, 2)} or more)"


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


def _own_reasons(audit: Mapping[str, Any], fallback: str) -> tuple[str, ...]:
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
    return tuple(texts) or (fallback,)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
