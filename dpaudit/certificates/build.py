"""Building a certificate: an in-toto statement from which another person re-derives every number without us.

The statement is a frozen value. The same evidence always gives the same bytes: keys are sorted, canaries are
ordered by id, nothing is read from the clock. A value that is needed to recompute the claim and is absent makes the
verdict ``accounting_mismatch``; it is listed by name under ``missing`` and never left blank in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit._version import __version__
from dpaudit.certificates.faults import missing_fields, plan_commitment
from dpaudit.certificates.limits import derived_limits
from dpaudit.certificates.lines import assess
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import (
    PREDICATE_TYPE,
    SCHEMA,
    STATEMENT_TYPE,
    Statement,
)
from dpaudit.privacy import validate
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.finding import finding_status
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.verdict import Verdict
from dpaudit.storage.commitment import NONCE_BYTES

RULES = "3"
"""Revision of the rules and words by which a certificate is derived. Whoever verifies compares words with their own
only where these agree; numbers and verdicts are compared always."""

LIMITS = (
    "The ledger is the trainer's own record; that its steps are the steps that ran follows from no number here.",
    "Other runs on the same data, and evaluations on it, are not counted.",
    "The lower bound is what one attack on these canaries could show; a stronger attack may show more.",
    "It is no upper limit on what the model leaks, and it says nothing on units of privacy other than the one claimed.",
    "Preparation outside the recorded run (choice of data, tokenizer, hyper-parameters, stopping) is covered only as"
    " far as it is stated here.",
    "Floating-point and random-generator weaknesses were not examined.",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEvidence:
    """Everything a certificate is made from, as values; absent values are None and are reported as missing.

    Attributes
    ----------
    claim : Claim or None
    trust_model : str or None
        Who sees the data in the clear: "central: the trainer sees the records".
    release_scope : str or None
        What leaves: "last checkpoint", "all checkpoints".
    ledger : Ledger or None
        Stages really executed.
    ledger_head : str or None
        SHA-256 (hexadecimal) of the last chained line of ``ledger.jsonl``.
    mechanism : mapping
        Must state ``algorithm``, ``clipping_norm``, ``normaliser`` and ``noise_source``; further keys are kept.
        :func:`dpaudit.trainers.noise_statement` says what the noise of this library is (``noise_generator``,
        ``noise_support_sigma``, ``noise_mass_beyond_support``, ``noise_not_proven``).
    guarantees : tuple of Guarantee
        Accounted bounds at the claim's δ and relation.
    audit_plan, audit_plan_digest : mapping and str, or None
        The plan frozen before step 1, and the SHA-256 of its file's bytes.
    canaries : sequence of mappings
        One ``{"id", "coin", "guess"}`` per canary: coin 0/1 (1 = inserted), guess 1 in, -1 out, 0 abstain.
    copies : int
        Times an inserted canary stands in the data.
    scores_digest, control_digest : str or None
        SHA-256 of ``scores.parquet``, and of ``control_scores.parquet`` (the positive control that ``power`` rests on,
        with the digests that bind it to this run; see :mod:`dpaudit.certificates.control_file`).
    nonce : str or None
        The 32-byte nonce of the coin commitment, hexadecimal.
    audit_result : mapping or None
        Result in the form ``dpaudit.audit/1``.
    in_run : mapping or None
        The audit by who sees every noisy update: ``coins`` (bits in base64), ``nonce`` (hexadecimal),
        ``evidence_digest`` (of ``in_run.json``) and ``result``; its plan stands in ``audit_plan`` under ``in_run``.
    beacons : mapping or None
        Canaries with many copies that show whether the attack is alive: ``nonce`` (hexadecimal), ``copies`` and
        ``canaries`` (id, coin and score of each); their plan stands in ``audit_plan`` under ``beacons``.
    exposure : mapping or None
    findings : sequence of mappings
        ``{"name", "status", "text", …}``; status is one of the verdicts or "note".
    examination : mapping or None
        What white-box tests ran, with ``tests`` (each with ``name``) and ``untested``; their findings are ``findings``.
    subjects : mapping
        Relative path in ``release/`` to SHA-256 of the file (weights, adapter, tokenizer).
    provenance : mapping
        Versions, commit, dirty flag, configuration digest.
    deviations, limits : sequences of str
    reproduction : str
        Command that repeats the run.
    run_status : str
        "complete", "unfinished" or "test"; a "test" run is refused.
    """

    claim: Claim | None
    trust_model: str | None
    release_scope: str | None
    ledger: Ledger | None
    ledger_head: str | None
    mechanism: Mapping[str, Any]
    guarantees: tuple[Guarantee, ...]
    audit_plan: Mapping[str, Any] | None = None
    audit_plan_digest: str | None = None
    canaries: Sequence[Mapping[str, Any]] = ()
    copies: int = 1
    scores_digest: str | None = None
    control_digest: str | None = None
    nonce: str | None = None
    audit_result: Mapping[str, Any] | None = None
    in_run: Mapping[str, Any] | None = None
    beacons: Mapping[str, Any] | None = None
    exposure: Mapping[str, Any] | None = None
    findings: Sequence[Mapping[str, Any]] = ()
    examination: Mapping[str, Any] | None = None
    subjects: Mapping[str, str]
    provenance: Mapping[str, Any]
    deviations: Sequence[str] = ()
    limits: Sequence[str] = LIMITS
    reproduction: str = ""
    run_status: str = "complete"

    def __post_init__(self) -> None:
        validate.one_of(["complete", "unfinished", "test"], run_status=self.run_status)
        validate.integer_at_least(1, copies=self.copies)
        for finding in self.findings:
            finding_status(finding)  # raises for an unknown status
        power = None if self.audit_result is None else self.audit_result.get("power")
        if self.control_digest is None and power is not None:
            raise InvalidValue(
                f"audit_result has power={power!r} and no control_digest: a certificate carries only power that its"
                " reader can measure again, so audit with a control and give its digest, and put white-box tests into"
                " findings."
            )
        for name in self.subjects:
            validate.label(subject=name)
        for canary in self.canaries:
            if set(canary) != {"id", "coin", "guess"}:
                raise InvalidValue(
                    f"canary {dict(canary)!r:.80} must have exactly id, coin and guess; nothing else is published."
                )
            if canary["coin"] not in (0, 1) or canary["guess"] not in (-1, 0, 1):
                raise InvalidValue(
                    f"canary {canary['id']!r:.40} has coin={canary['coin']!r}, guess={canary['guess']!r}; coins are"
                    " 0 or 1 and guesses -1, 0 or 1."
                )


def build_certificate(evidence: CertificateEvidence) -> Statement:
    """Build the in-toto statement of a run.

    Returns
    -------
    Statement
        Write its ``to_bytes()``.

    Raises
    ------
    PrivacyRefusal
        For a run whose randomness was injected (``run_status="test"``): repeatable by design, hence not private.
    InvalidValue
        For a NaN, or a value that is no plain JSON.
    InvalidEvidence
        For a value that no certificate can hold, such as an unknown relation.
    """
    if evidence.run_status == "test":
        raise PrivacyRefusal(
            "run_status='test' cannot be certified, since its random generators were injected; run it without them."
        )
    statement = _draft(evidence)
    body = statement.predicate
    body = body.replaced(limits=(*body.limits, *derived_limits(body)))
    body = body.replaced(missing=missing_fields(body, statement.subject))
    found = assess(body)
    judged = {"verdict": found.to_verdict(), "level": int(found.level), "lines": found.to_lines()}
    return statement.replaced(predicate=body.replaced(**judged)).with_digest()


def _draft(evidence: CertificateEvidence) -> Statement:
    """What is certified, with an empty verdict and without what follows from the rest."""
    body = {
        "schema": SCHEMA,
        "verifier": {"name": "dpaudit", "version": __version__, "rules": RULES},
        "run_status": evidence.run_status,
        "claim": None if evidence.claim is None else evidence.claim.to_dict(),
        "scope": {"trust_model": evidence.trust_model, "release_scope": evidence.release_scope},
        "mechanism": evidence.mechanism,
        "ledger": _ledger_section(evidence),
        "accounting": _accounting_section(evidence),
        "audit": _audit_section(evidence),
        **({} if evidence.in_run is None else {"in_run": dict(evidence.in_run)}),
        **({} if evidence.beacons is None else {"beacons": dict(evidence.beacons)}),
        "exposure": evidence.exposure,
        "findings": list(evidence.findings),
        "examination": evidence.examination,
        "provenance": evidence.provenance,
        "deviations": list(evidence.deviations),
        "limits": list(evidence.limits),
        "reproduction": evidence.reproduction,
        "missing": [],
        "verdict": {"name": Verdict.INCONCLUSIVE, "reasons": [], "meaning": ""},
        "digest": "0" * 64,
    }
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(evidence.subjects.items())]
    statement = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": body}
    return Statement.from_plain(plain_json(statement))


def _ledger_section(evidence: CertificateEvidence) -> dict[str, Any] | None:
    if evidence.ledger is None:
        return None
    return {**evidence.ledger.to_dict(), "head": evidence.ledger_head}


def _accounting_section(evidence: CertificateEvidence) -> dict[str, Any]:
    rows = []
    for guarantee in sorted(evidence.guarantees, key=lambda g: g.accountant):
        row = guarantee.to_dict()
        del row["seconds"]  # a time is no evidence, and would make equal evidence give unequal bytes
        rows.append(
            {**row, "delta": guarantee.delta, "relation": str(guarantee.relation), "group_size": guarantee.group_size}
        )
    return {"guarantees": rows}


def _audit_section(evidence: CertificateEvidence) -> dict[str, Any] | None:
    if evidence.audit_result is None and evidence.audit_plan is None:
        return None
    rows = sorted([str(c["id"]), int(c["coin"]), int(c["guess"])] for c in evidence.canaries)
    plan = evidence.audit_plan
    if evidence.nonce is not None and len(evidence.nonce) != 2 * NONCE_BYTES:
        raise InvalidValue(f"nonce has {len(evidence.nonce)} hexadecimal digits and must have {2 * NONCE_BYTES}.")
    return {
        "plan": None if plan is None else dict(plan),
        "plan_digest": evidence.audit_plan_digest,
        "commitment": None if plan is None else plan_commitment(plan),
        "nonce": evidence.nonce,
        "copies": evidence.copies,
        "canaries": rows,
        "scores_digest": evidence.scores_digest,
        "control_digest": evidence.control_digest,
        "result": None if evidence.audit_result is None else dict(evidence.audit_result),
        "commitment_order": "asserted",
    }
