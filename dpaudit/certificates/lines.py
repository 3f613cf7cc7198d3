"""The four lines of a certificate, its level and its verdict, by one rule that ``certify`` and ``verify`` share.

A certificate cannot say who signed or dated it, since both come after its bytes: its own level is 3 at most, and only
who verifies it with keys of their own can find level 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.deviations import IMPORTED
from dpaudit.certificates.examined import examination_gaps, findings_against, sizes_text
from dpaudit.certificates.faults import audit_faults, epsilon_upper, mismatches, tested_group_epsilon
from dpaudit.certificates.in_run import in_run_text, observed_in_run
from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import LineModel, Predicate, VerdictModel
from dpaudit.certificates.verdict import Compared, Weighed, verdict_of, weigh
from dpaudit.privacy.canaries import ALIVE
from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.finding import NOTE
from dpaudit.privacy.guarantee import tightest
from dpaudit.privacy.level import Level, Line, LineName, Standing, reached
from dpaudit.privacy.rounding import lower_text, percent_lower, percent_upper, upper_text
from dpaudit.privacy.verdict import Verdict

UNSIGNED = "unsigned, unless certificate.dsse.json beside the certificate signs it"
"""A certificate and its pages cannot know of a signature, which is made over their bytes."""

_NO_CHAIN = "the chain of the ledger's digests was not seen, since ledger.jsonl is not here"
_CONTRADICTS = (Verdict.VIOLATED, Verdict.ACCOUNTING_MISMATCH)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Lines, level and verdict that follow from a certificate's fields.

    Attributes
    ----------
    verdict : Verdict
    reasons : tuple of str
        Those of the verdict first.
    level : Level
        0 where anything speaks against the claim.
    lines : tuple of Line
        Accounting, Implementation, Released model, Origin.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    level: Level
    lines: tuple[Line, ...]

    def to_verdict(self) -> VerdictModel:
        """The verdict as a certificate states it."""
        return VerdictModel.model_validate(
            {"name": self.verdict, "reasons": self.reasons, "meaning": self.verdict.meaning}
        )

    def to_lines(self) -> tuple[LineModel, ...]:
        """The lines as a certificate states them."""
        return tuple(
            LineModel.model_validate(
                {"name": str(line.name), "standing": str(line.standing), "text": line.text, "reasons": line.reasons}
            )
            for line in self.lines
        )


def assess(body: Predicate, *, chained: bool = True) -> Assessment:
    """Lines, level and verdict of a certificate.

    Parameters
    ----------
    body : Predicate
        Its ``missing`` is taken as it stands; its own verdict, level and lines are not read.
    chained : bool
        Whether the ledger's chain of digests was seen: by whoever wrote the certificate, or again by who verifies it.
    """
    audit = body.audit
    weighed = weigh(
        Compared(
            claim_epsilon=None if body.claim is None else body.claim.epsilon,
            epsilon_upper=epsilon_upper(body),
            tested_epsilon=tested_group_epsilon(audit),
            missing=body.missing,
            mismatches=mismatches(body),
        ),
        audit=None if audit is None else audit.result,
        audit_faults=[] if audit is None else audit_faults(audit),
        findings=body.findings,
        run_status=body.run_status,
        in_run=observed_in_run(body, epsilon_upper(body)),
    )
    accounting, implementation = _accounting(body, weighed, chained), _implementation(body, weighed)
    lacking = [*(() if chained else (_NO_CHAIN,))]
    lacking += implementation.reasons if implementation.standing is Standing.MISSING else ()
    found = verdict_of(weighed, lacking)
    observers = [o for o in (weighed.in_run, weighed.model) if o is not None]
    against = found.name in (Verdict.VIOLATED, Verdict.ACCOUNTING_MISMATCH, Verdict.INVALID_AUDIT)
    level = reached(
        accounted=accounting.shown and not against,
        examined=implementation.shown,
        audited=any(o.supports for o in observers) and found.name == Verdict.CONSISTENT,
    )
    lines = (accounting, implementation, _released_model(body, weighed), _origin(body))
    return Assessment(verdict=found.name, reasons=found.reasons, level=level, lines=lines)


def power_sentence(result: Mapping[str, Any]) -> str:
    """How often an attack would raise the alarm, with the fault that this is about and its interval."""
    power = result.get("power")
    if power is None:
        return "How often this attack would notice a fault was not measured."
    fault, low, high = power_of(result)
    between = f" (95% interval {percent_lower(low)} to {percent_upper(high)})" if low is not None else ""
    return f"A faulty run would raise the alarm in {percent_lower(power)} of cases{between}; the fault: {fault}."


def power_of(result: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """The fault that a measured power is about, and the ends of its interval where they are known."""
    source, _, fault = str(result.get("power_source") or "").partition(": ")
    finding: Mapping[str, Any] = next((f for f in result.get("findings") or () if f.get("name") == source), {})
    interval = (finding.get("detail") or {}).get("interval")
    low, high = interval if isinstance(interval, (list, tuple)) and len(interval) == 2 else (None, None)
    return fault or "unspecified", low, high


def _accounting(body: Predicate, weighed: Weighed, chained: bool) -> Line:
    best, claim, ledger = tightest(body.accounting.guarantees), body.claim, body.ledger
    reasons = list(weighed.accounting)
    if best is None:
        text = "no certified bound on ε"
    else:
        count = 0 if ledger is None else sum(int(stage["steps"]) for stage in ledger.stages)
        steps = "" if ledger is None else f" from {count:,} recorded step{'' if count == 1 else 's'}"
        within = claim.epsilon if claim else None
        text = f"ε ≤ {upper_text(best.epsilon_upper, within=within)} follows{steps} (certified by {best.accountant})"
    if any(deviation.startswith(IMPORTED) for deviation in body.deviations):
        text += "; the ledger was imported after the run"
    against = bool(reasons) and best is not None and not body.missing
    if weighed.unfinished:
        reasons.append("the run did not finish")
    if not chained:
        reasons.append(_NO_CHAIN)
    return _line(LineName.ACCOUNTING, text, reasons, against=against)


def _implementation(body: Predicate, weighed: Weighed) -> Line:
    examination, against = body.examination, findings_against(body.findings)
    gaps = list(examination_gaps(body))
    if not examination:
        text = "not examined"
    else:
        count = len(examination.get("tests") or ())
        sizes = sizes_text(examination)
        found = "found nothing" if not against else f"reported {len(against)} finding{'s' if len(against) > 1 else ''}"
        text = f"{count} white-box tests of the training step {found}" + (f"; excluded: {sizes}" if sizes else "")
        text += "; as the owner recorded it"
        text += "" if examination.get("config_sha256") else ", with no configuration that binds it to this run"
    inside = in_run_text(body)
    text += f". {inside}" if inside else ""
    observed = weighed.in_run
    refuted = () if observed is None else (*observed.against, *observed.invalid, *observed.mismatch)
    reasons = [*(f"{row.get('name')}: {row.get('text')}" for row in against), *refuted] or gaps
    if observed is not None and not refuted and observed.weak:
        # A weak in-run audit keeps the run from level 3 and takes nothing from the examination, so it is told beside
        # it.
        text += "".join(f". In the run: {weak.removeprefix('in the run: ').rstrip('.')}" for weak in observed.weak)
    contradicts = any(row.get("status") in _CONTRADICTS for row in against)
    contradicts = contradicts or (observed is not None and bool(observed.against or observed.mismatch))
    return _line(LineName.IMPLEMENTATION, text, reasons, against=contradicts)


def _released_model(body: Predicate, weighed: Weighed) -> Line:
    audit, model = body.audit, weighed.model
    result = (audit.result if audit is not None else None) or {}
    primary = result.get("primary")
    lower = primary.get("epsilon_lower") if isinstance(primary, Mapping) else None
    if audit is None or not result:
        text = "not attacked"
    elif model.invalid or lower is None:
        text = "attacked, without a valid bound"
    else:
        group = f" for groups of {audit.copies}" if audit.copies > 1 else ""
        sure = primary.get("confidence") if isinstance(primary, Mapping) else None
        shown = "" if sure is None else f" ({percent_lower(sure)} sure)"
        text = f"ε ≥ {lower_text(to_float(lower))}{group} by attack{shown}. {power_sentence(result)}"
        text += _perfection(audit.plan)
        text += _life(result)
    reasons = [*model.against, *model.invalid, *model.mismatch] or list(model.weak)
    return _line(LineName.RELEASED_MODEL, text, reasons, against=bool(model.against))


def _life(result: Mapping[str, Any]) -> str:
    """What beacons showed of the attack, where they showed that it is alive; else it stands among the reasons."""
    shown = [row for row in result.get("findings") or () if row.get("name") == ALIVE and row.get("status") == NOTE]
    return "".join(f" {row.get('text')}" for row in shown)


def _perfection(plan: Mapping[str, Any] | None) -> str:
    """Sentence for a plan that allows no wrong guess, which in practice decides nothing."""
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.decidable import errors_allowed

    try:
        strict = plan is not None and errors_allowed(AuditPlan.from_dict(plan)) == 0
    except (DpauditError, ValueError, TypeError):  # a plan of another form; its own step of verify says so
        return ""
    return " It convicts only where every guess is right: the claim is undecidable by attack." if strict else ""


def _origin(body: Predicate) -> Line:
    planned = "that the audit plan came before training is the owner's word"
    text = UNSIGNED if body.audit is None else f"{UNSIGNED}; {planned}"
    reasons = ["who signed and dated it is for who verifies it to see"]
    return _line(LineName.ORIGIN, text, reasons, against=False)


def _line(name: LineName, text: str, reasons: list[str], *, against: bool) -> Line:
    standing = Standing.AGAINST if against else Standing.MISSING if reasons else Standing.SHOWN
    return Line(name=name, standing=standing, text=text, reasons=tuple(dict.fromkeys(reasons)))
