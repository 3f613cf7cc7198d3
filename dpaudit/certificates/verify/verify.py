"""Re-deriving a certificate from its evidence: no model is loaded, and nothing written by others is trusted."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from dpaudit.certificates.amendments import amendment_steps, read_amendments
from dpaudit.certificates.faults import missing_fields
from dpaudit.certificates.pages import page_steps
from dpaudit.certificates.policy import Facts, policy_warnings, read_policy
from dpaudit.certificates.sign import signature_steps
from dpaudit.certificates.statement import Predicate, Statement, canonical_bytes, digest_of
from dpaudit.certificates.timestamp import timestamp_steps
from dpaudit.certificates.verify.accounting import (
    accounting_steps,
    claim_step,
    other_relation_steps,
    recomputed_guarantees,
)
from dpaudit.certificates.verify.audit import audit_steps
from dpaudit.certificates.verify.audit_result import RecomputedAudit, recompute_audit
from dpaudit.certificates.verify.beacons import beacon_steps
from dpaudit.certificates.verify.corrections import corrected_verdict, judge
from dpaudit.certificates.verify.derive import Derived, derive, level_steps, verdict_steps
from dpaudit.certificates.verify.files import examination_steps, ledger_steps
from dpaudit.certificates.verify.guard import Attempt, attempt, guarded
from dpaudit.certificates.verify.in_run import RecomputedInRun, recompute_in_run
from dpaudit.certificates.verify.origin import origin_line
from dpaudit.certificates.verify.report import DIFFERENT, EQUAL, RECORDED, ReportLine, Step, VerificationReport
from dpaudit.certificates.verify.statements import consistency_step, exposure_steps, limits_step, recorded_steps
from dpaudit.certificates.verify.subjects import subject_steps
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.level import Level
from dpaudit.privacy.rounding import exact_text
from dpaudit.privacy.verdict import Verdict
from dpaudit.storage.readers import read_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as read: exact bytes, parsed statement, and the folder its evidence lies in."""

    path: Path
    data: bytes
    statement: Statement

    @property
    def folder(self) -> Path:
        """Folder of the certificate; the paths of its subjects are relative to it."""
        return self.path.parent

    @property
    def body(self) -> Predicate:
        """The predicate."""
        return self.statement.predicate


def find_certificate(path: Path) -> Path:
    """Path of the certificate itself, when a run folder or its ``release/`` was given."""
    if os.path.isdir(path):
        for candidate in (path / "certificate.json", path / "release" / "certificate.json"):
            if candidate.is_file():
                return candidate
        raise InvalidEvidence(f"{path} holds no certificate.json; give the certificate or a finished run folder.")
    return path


def read_certificate(path: Path | str) -> Certificate:
    """Read a certificate within the limits of the safe readers and check its schema.

    Parameters
    ----------
    path : path
        The certificate, its ``release/`` folder, or the run folder.

    Returns
    -------
    Certificate
        Exact bytes, parsed statement, and the folder of the evidence.

    Raises
    ------
    InvalidEvidence
        When the file is absent, too large, not JSON, or does not follow its schema.
    """
    path = find_certificate(Path(path))
    data = read_bytes(path)
    return Certificate(path, data, Statement.from_bytes(data, name=path.name))


def verify_here(path: Path | str, *, policy: Path | str | None = None) -> VerificationReport:
    """The work of :func:`.confined.verify_certificate` in this process, with no limits of its own."""
    rules = None if policy is None else read_policy(Path(policy))
    certificate = read_certificate(path)
    folder, body, subjects = certificate.folder, certificate.body, certificate.statement.subject
    trusted = () if rules is None else rules.trusted_keys
    signature, origin = signature_steps(certificate.path, certificate.data, trusted)
    steps = [*_file_steps(certificate), *signature]
    amendments = attempt("amendments", lambda: read_amendments(certificate.path, certificate.data)).value or []
    steps += guarded("amendments", lambda: amendment_steps(certificate.path, certificate.data, trusted))
    steps += guarded("fields", lambda: [_fields_step(certificate)])
    ledger = guarded("ledger", lambda: ledger_steps(folder, body))
    steps += ledger
    steps += guarded("consistency", lambda: [consistency_step(body)])
    recomputed = recomputed_guarantees(body)
    steps += guarded("accounting", lambda: accounting_steps(body, recomputed))
    steps += guarded("claim", lambda: claim_step(body, recomputed))
    steps += guarded("accounting.other_relation", lambda: other_relation_steps(body, recomputed))
    section, again = body.audit, None
    if section is not None:
        again = attempt("audit", lambda: recompute_audit(folder, body, section, recomputed))
    audit = None if again is None else again.value
    steps += [again.failed] if again is not None and again.failed is not None else audit_steps(folder, body, audit)
    steps += guarded("beacons", lambda: beacon_steps(body, recomputed))
    tried = attempt("in_run", lambda: recompute_in_run(folder, body))
    in_run = tried.value
    steps += [tried.failed] if tried.failed is not None else () if in_run is None else in_run.steps
    steps += guarded("exposure", lambda: exposure_steps(body, None if audit is None else audit.scores.values))
    steps += guarded("examination", lambda: examination_steps(folder, body))
    steps += guarded("limits", lambda: [limits_step(body)])
    steps += recorded_steps(body)
    # Digests of large files come last, so that they cannot spend the time of what decides.
    steps += guarded("subject", lambda: subject_steps(folder, subjects))
    roots = () if rules is None else rules.timestamp_roots
    steps += guarded("timestamp", lambda: timestamp_steps(folder, roots))
    steps += guarded("page", lambda: page_steps(folder, certificate.statement))
    chained = any(step.name == "ledger.chain" and step.outcome == EQUAL for step in ledger)
    derived = attempt("verdict", lambda: derive(body, subjects, recomputed, audit, chained=chained, in_run=in_run))
    made = _made(derived)
    steps += [derived.failed] if derived.value is None and derived.failed else verdict_steps(body, made)
    steps += level_steps(body, made) if derived.value is not None else []
    verdict = corrected_verdict(made.name, body, amendments)
    source = origin_line(certificate.path, certificate.data, rules, steps)
    level = _level(made, verdict, countersigned=source.shown)
    lower = _power_lower(audit, in_run)
    facts = Facts(body=body, recomputed=recomputed, steps=steps, verdict=verdict, power_lower=lower, level=int(level))
    failures, accepts = ((), False) if rules is None else judge(rules, facts, certificate.statement, amendments)
    return VerificationReport(
        stated_verdict=body.verdict.name,
        steps=tuple(steps),
        origin=origin,
        policy_failures=failures,
        policy_accepts=accepts,
        derived_verdict=verdict,
        power_lower=lower,
        warnings=() if rules is None else policy_warnings(rules),
        level=int(level),
        lines=tuple(ReportLine.of(line) for line in (*made.lines[:-1], source)),
        about=_about(body),
    )


def _about(body: Predicate) -> str:
    """The certificate's claim in words, for the report."""
    claim = body.claim
    if claim is None:
        return ""
    each = "" if claim.max_records_per_unit == 1 else f" of at most {claim.max_records_per_unit} records"
    return (
        f"epsilon <= {exact_text(claim.epsilon)} at delta = {exact_text(claim.delta)} for one {claim.unit}{each}"
        f" ({claim.relation})"
    )


def _level(made: Derived, verdict: Verdict, *, countersigned: bool) -> Level:
    """The level that was reached; none where anything speaks against the claim."""
    if verdict not in (Verdict.CONSISTENT, Verdict.INCONCLUSIVE):
        return Level.CLAIMED
    return Level.COUNTERSIGNED if made.level == Level.AUDITED and countersigned else made.level


def _power_lower(audit: RecomputedAudit | None, in_run: RecomputedInRun | None) -> float | None:
    """Lower limit of the power of whichever audit has more; None where neither was measured again."""
    inside = None if in_run is None or in_run.result is None else in_run.result.get("power_lower")
    known = [p for p in (inside, None if audit is None else audit.power_lower) if p is not None]
    return max(known, default=None)


def _made(derived: Attempt[Derived]) -> Derived:
    """The derived verdict, or one that supports nothing where none could be derived."""
    return derived.value or Derived(name=Verdict.INCONCLUSIVE, reasons=(), complete=False)


def _file_steps(certificate: Certificate) -> list[Step]:
    plain = certificate.statement.to_plain()
    return [_canonical_step(certificate, plain), _digest_step(certificate, plain)]


def _canonical_step(certificate: Certificate, plain: dict[str, Any]) -> Step:
    same = canonical_bytes(plain) == certificate.data
    detail = "the file is the canonical form of what it says"
    return Step(
        "file", EQUAL if same else DIFFERENT, detail if same else "the file is not in canonical form: it was edited"
    )


def _digest_step(certificate: Certificate, plain: dict[str, Any]) -> Step:
    stated, found = certificate.body.digest, digest_of(plain)
    if stated == found:
        return Step("digest", EQUAL, f"SHA-256 of the statement is {found[:12]}…")
    return Step(
        "digest", DIFFERENT, f"the statement says {stated[:12]}… and its content gives {found[:12]}…: it was edited"
    )


def _fields_step(certificate: Certificate) -> Step:
    found = missing_fields(certificate.body, certificate.statement.subject)
    if found != certificate.body.missing:
        listed = list(certificate.body.missing)
        return Step("fields", DIFFERENT, f"missing fields are {list(found)}, the certificate lists {listed}")
    told = "nothing needed is missing" if not found else f"missing, as stated: {', '.join(found)}"
    return Step("fields", RECORDED, told)
