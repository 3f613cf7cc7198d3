"""The audit of a certificate, made again from its evidence alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.curve import declared_curve
from dpaudit.certificates.faults import open_commitment, plan_commitment
from dpaudit.certificates.group import group_epsilon
from dpaudit.certificates.plain import plain_json, to_float
from dpaudit.certificates.statement import Audit, Predicate
from dpaudit.certificates.verify.accounting import Recomputed, bounds
from dpaudit.certificates.verify.beacons import opened_beacons
from dpaudit.certificates.verify.compare import TOLERANCE
from dpaudit.certificates.verify.evidence import ControlRead, ScoresRead, read_control_beside, read_scores_beside
from dpaudit.certificates.verify.guard import Attempt, attempt
from dpaudit.certificates.verify.report import ABSENT, EQUAL, Step
from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.finding import Finding, finding_status
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.verdict import decide

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.result import AuditResult


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecomputedAudit:
    """What was computed here of an audit; nothing in it is anybody's word.

    Attributes
    ----------
    scores : ScoresRead
    control : ControlRead
    result : Attempt
        The audit's result in plain JSON, made again; its value is None where the scores are not there.
    lower_at_verdict : float or None
        The primary lower bound at the verdict's level, from the certified guesses alone (one run).
    group_epsilon : float or None
        ε for ``copies`` records of the steps that ran; None for one copy, or where no accountant here can say.
    """

    scores: ScoresRead
    control: ControlRead
    result: Attempt[dict[str, Any]]
    lower_at_verdict: float | None = None
    group_epsilon: float | None = None

    @property
    def power_lower(self) -> float | None:
        """Lower end of the power's 95 % interval; None unless control and scores of this run were both here."""
        lower = None if self.result.value is None else self.result.value["power_lower"]
        return None if lower is None else to_float(lower)

    @property
    def complete(self) -> bool:
        """Whether everything that decides was made again: from the scores, and from the control where there is one."""
        return self.result.value is not None and (self.control.outcome == EQUAL or not self.control.bound)


def nothing_recomputed() -> RecomputedAudit:
    """The audit where it could not be made again at all."""
    why = "the audit could not be made again"
    return RecomputedAudit(
        scores=ScoresRead(None, Step("audit.scores", ABSENT, why)),
        control=ControlRead(None, ABSENT, why),
        result=Attempt(None),
    )


def recompute_audit(folder: Path, body: Predicate, audit: Audit, guarantees: Recomputed) -> RecomputedAudit:
    """Make the audit of a certificate again.

    Parameters
    ----------
    folder : Path
        Where the certificate's evidence lies.
    body : Predicate
    audit : Audit
        Its audit.
    guarantees : dict
        Accountants' fresh results.
    """
    read = attempt("audit.scores", lambda: read_scores_beside(folder, audit))
    scores = read.value or ScoresRead(None, _failed(read, "audit.scores"))
    found = attempt("audit.power", lambda: read_control_beside(folder, audit, body.provenance))
    failed = _failed(found, "audit.power")
    control = found.value or ControlRead(None, failed.outcome, failed.detail)
    group = attempt("audit.group_claim", lambda: _group(body, audit.copies, guarantees)).value
    if audit.plan is None or not audit.canaries:
        return RecomputedAudit(scores=scores, control=control, result=Attempt(None), group_epsilon=group)
    result: Attempt[dict[str, Any]] = Attempt(None)
    if scores.values is not None:
        values = scores.values
        result = attempt("audit.result", lambda: plain_json(_run_again(body, audit, values, control, group).to_dict()))
    lower = attempt("audit.bound", lambda: _lower_from_guesses(audit)).value
    return RecomputedAudit(scores=scores, control=control, result=result, lower_at_verdict=lower, group_epsilon=group)


def _failed(tried: Attempt[Any], name: str) -> Step:
    return tried.failed or Step(name, ABSENT, "it was not read")


def _group(body: Predicate, copies: int, guarantees: Recomputed) -> float | None:
    if body.ledger is None or body.claim is None or copies == 1:
        return None
    usable = [guarantee.accountant for guarantee in bounds(guarantees) if guarantee.epsilon_upper is not None]
    return group_epsilon(body.ledger.to_ledger(), delta=body.claim.delta, accountants=usable, copies=copies)


def _lower_from_guesses(audit: Audit) -> float | None:
    from dpaudit.auditing import AuditPlan, snj_epsilon_lower

    plan = AuditPlan.from_dict(audit.plan or {})
    if plan.kind != "one_run":
        return None
    counts = len(audit.canaries), len(audit.made), audit.right
    return snj_epsilon_lower(*counts, plan.delta, plan.alpha_split.primary)


def _run_again(
    body: Predicate, section: Audit, scores: list[float], control: ControlRead, group: float | None
) -> AuditResult:
    """The whole audit from scores, coins and control, with the findings of others that speak against the claim."""
    from dpaudit.auditing import AuditPlan, audit
    from dpaudit.auditing.words import summarise

    stated = section.result or {}
    plan = AuditPlan.from_dict(section.plan or {})
    result = audit(
        Scores(section.ids, scores, section.coins),
        plan,
        coins=_coins(section),
        accounted_upper=_accounted_upper(body, section.result),
        group_claim=_tested_group(stated, plan, group),
        control=control.control,
        secondary=bool(stated.get("secondary")),
        curve=None if body.ledger is None else _curve(body.ledger.to_ledger(), plan.delta, section.copies),
        beacons=opened_beacons(body, plan),
    )
    own = {finding.name for finding in result.findings}
    others = [_without_power(row) for row in stated.get("findings") or () if row.get("name") not in own]
    against = tuple(finding for finding in others if finding.status != "note")
    if not against:
        return result
    findings = (*against, *result.findings)
    verdict = decide(findings, power=result.power_lower)
    result = dataclasses.replace(result, findings=findings, verdict=verdict)
    return dataclasses.replace(result, summary=summarise(result))


def _coins(section: Audit) -> str:
    """``verified`` only where the coins open the commitment; a weaker statement stays as it is.

    Coins that open their commitment are fair coins, so that a bound cannot be avoided by calling them none.
    """
    stated = str(((section.result or {}).get("design") or {}).get("coins"))
    published = section.commitment
    opens = published is not None and open_commitment(section) == published == plan_commitment(section.plan or {})
    if stated == "none" or section.result is None:
        return "verified" if opens else "none"
    return "asserted" if stated == "verified" and not opens else stated


def _accounted_upper(body: Predicate, stated: dict[str, Any] | None) -> float | None:
    """Accounted ε that the audit was made against: the smallest certified bound of the certificate, or none."""
    if stated is not None and (stated.get("claim") or {}).get("accounted_upper") is None:
        return None
    return smallest_upper(body.accounting.guarantees)


def _tested_group(stated: dict[str, Any], plan: AuditPlan, group: float | None) -> float | None:
    """Group claim to test at: as stated where it is the recomputed one, else the recomputed one."""
    if plan.copies == 1:
        return None
    value = (stated.get("claim") or {}).get("tested_epsilon")
    tested = None if value is None else to_float(value)
    if group is None or tested is None:
        return tested
    return tested if math.isclose(tested, group, rel_tol=TOLERANCE) else group


def _without_power(row: dict[str, Any]) -> Finding:
    """A finding that others made: it may speak against the claim, and lends no power."""
    finding_status(row)
    return dataclasses.replace(Finding(**row), power=None)


@functools.lru_cache(maxsize=8)
def _curve(ledger: Any, delta: float, copies: int) -> Any:
    try:
        return declared_curve(ledger, delta, copies)
    except DpauditError:  # no certified profile for this ledger, such as a shuffled one
        return None
