"""Re-deriving a certificate from its evidence: no model is loaded, and nothing written by others is trusted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.amend import amendment_steps
from dpaudit.certificates.build import certificate_bytes, missing_fields, statement_digest, verdict_section
from dpaudit.certificates.sign import signature_steps
from dpaudit.certificates.statement import validate_statement
from dpaudit.certificates.verify.accounting import Recomputed, accounting_steps, claim_step, recomputed_guarantees
from dpaudit.certificates.verify.audit import audit_steps
from dpaudit.certificates.verify.files import examination_steps, ledger_steps
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, UNFINISHED, Step, VerificationReport
from dpaudit.certificates.verify.subjects import subject_steps
from dpaudit.privacy.errors import DpauditError, InvalidEvidence
from dpaudit.storage.budget import OutOfTime, section
from dpaudit.storage.confined import LIMITS, Limits, call
from dpaudit.storage.readers import parse_json, read_bytes

if TYPE_CHECKING:
    from dpaudit.certificates.policy import Policy


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as read: exact bytes, parsed statement, and the folder its evidence lies in."""

    path: Path
    data: bytes
    statement: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the certificate; the paths of its subjects are relative to it."""
        return self.path.parent

    @property
    def body(self) -> dict[str, Any]:
        """The predicate."""
        body: dict[str, Any] = self.statement["predicate"]
        return body


def find_certificate(path: Path) -> Path:
    """Path of the certificate itself, when a run folder or its ``release/`` was given."""
    if path.is_dir():
        for candidate in (path / "certificate.json", path / "release" / "certificate.json"):
            if candidate.is_file():
                return candidate
        raise InvalidEvidence(f"{path} holds no certificate.json; give the certificate or a finished run folder.")
    return path


def read_certificate(path: Path | str) -> Certificate:
    """Read a certificate within the limits of the safe readers and check its schema.

    Raises
    ------
    InvalidEvidence
        When the file is absent, too large, not JSON, or does not follow its schema.
    """
    path = find_certificate(Path(path))
    data = read_bytes(path)
    return Certificate(path, data, validate_statement(parse_json(data, name=path.name)))


def verify_certificate(
    path: Path | str, *, policy: Path | str | None = None, limits: Limits = LIMITS
) -> VerificationReport:
    """Re-derive every number of a certificate from its evidence, without the model, in a confined process.

    Parameters
    ----------
    path : path
        ``certificate.json``, or the run folder or ``release/`` folder that holds it. Evidence beside it (ledger, plan,
        scores, weights) is used where it is present.
    policy : path, optional
        TOML file with the reader's own rules; see :func:`dpaudit.certificates.policy.read_policy`.
    limits : Limits, optional
        Computing time and memory. What does not finish within them is not recomputed and supports nothing.

    Returns
    -------
    VerificationReport
        ``exit_code`` is the verdict's (0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid), and
        3 when anything that was recomputed differs.

    Raises
    ------
    InvalidEvidence
        When the certificate cannot be read at all, or not within the limits.
    """
    try:
        folder = os.getcwd()
    except OSError:  # it was removed; an absolute path can be read all the same
        folder = os.sep
    arguments = {"path": str(path), "policy": None if policy is None else str(policy), "folder": folder}
    return VerificationReport.from_plain(call(_verify_for_another_process, arguments, limits))


def _verify_for_another_process(path: str, policy: str | None, folder: str) -> dict[str, Any]:
    os.chdir(folder)
    return verify_here(path, policy=policy).to_plain()


def verify_here(path: Path | str, *, policy: Path | str | None = None) -> VerificationReport:
    """The work of :func:`verify_certificate` in this process, with no limit on memory and none on time of its own."""
    from dpaudit.certificates.policy import read_policy

    rules = None if policy is None else read_policy(Path(policy))
    certificate = read_certificate(path)
    subjects = certificate.statement["subject"]
    steps = [_canonical_step(certificate), _digest_step(certificate)]
    trusted = () if rules is None else rules.trusted_keys
    signature, origin = signature_steps(certificate.path, certificate.data, trusted)
    steps += signature
    steps += _guarded("amendments", lambda: amendment_steps(certificate.path, certificate.data, trusted))
    steps += _guarded("fields", lambda: [_fields_step(certificate)])
    steps += _guarded("ledger", lambda: ledger_steps(certificate.folder, certificate.body))
    recomputed = recomputed_guarantees(certificate.body)
    steps += _guarded("accounting", lambda: accounting_steps(certificate.body, recomputed))
    steps += _guarded("claim", lambda: claim_step(certificate.body, recomputed))
    steps += _guarded("audit", lambda: audit_steps(certificate.folder, certificate.body))
    steps += _guarded("examination", lambda: examination_steps(certificate.folder, certificate.body))
    # Digests of large files come last, so that they cannot spend the time of what decides.
    steps += _guarded("subject", lambda: subject_steps(certificate.folder, subjects))
    steps += _guarded(
        "verdict", lambda: [_verdict_step(certificate.body, certificate.statement["subject"], recomputed)]
    )
    failures, accepts = _judged(rules, certificate.body, steps, recomputed)
    return VerificationReport(
        stated_verdict=certificate.body["verdict"]["name"],
        steps=tuple(steps),
        origin=origin,
        policy_failures=failures,
        policy_accepts=accepts,
    )


def _judged(
    rules: Policy | None, body: dict[str, Any], steps: list[Step], recomputed: Recomputed
) -> tuple[tuple[str, ...], bool]:
    """Failures of a policy, and whether it accepts; a certificate that a rule cannot be applied to fails it."""
    from dpaudit.certificates.policy import judge_policy

    if rules is None:
        return (), False
    try:
        return judge_policy(rules, body, steps, recomputed)
    except _MALFORMED as error:
        return (f"a rule cannot be applied to this certificate ({_why(error)}); a field has another form.",), False


_MALFORMED = (DpauditError, ArithmeticError, KeyError, TypeError, ValueError, AttributeError, IndexError)


def _why(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _guarded(name: str, make: Callable[[], list[Step]]) -> list[Step]:
    """Evidence that cannot be read is a difference that is named, never a traceback; what takes too long is left."""
    try:
        with section():
            return make()
    except (OutOfTime, MemoryError):
        return [Step(name, ABSENT, f"{UNFINISHED}, so it supports nothing")]
    except _MALFORMED as error:
        return [Step(name, DIFFERENT, f"the evidence cannot be read: {_why(error)}")]


def _canonical_step(certificate: Certificate) -> Step:
    same = certificate_bytes(certificate.statement) == certificate.data
    detail = "the file is the canonical form of what it says"
    return Step(
        "file", EQUAL if same else DIFFERENT, detail if same else "the file is not in canonical form: it was edited"
    )


def _digest_step(certificate: Certificate) -> Step:
    stated, found = certificate.body["digest"], statement_digest(certificate.statement)
    if stated == found:
        return Step("digest", EQUAL, f"SHA-256 of the statement is {found[:12]}…")
    return Step(
        "digest", DIFFERENT, f"the statement says {stated[:12]}… and its content gives {found[:12]}…: it was edited"
    )


def _fields_step(certificate: Certificate) -> Step:
    found = missing_fields(certificate.body, certificate.statement["subject"])
    if found != certificate.body["missing"]:
        return Step(
            "fields", DIFFERENT, f"missing fields are {found}, the certificate lists {certificate.body['missing']}"
        )
    return Step(
        "fields", EQUAL, "nothing needed is missing" if not found else f"missing, as stated: {', '.join(found)}"
    )


def _verdict_step(body: dict[str, Any], subjects: list[dict[str, Any]], recomputed: Recomputed) -> Step:
    """Derive the verdict from bounds recomputed here only: an accountant that cannot be run proves nothing."""
    rows = body["accounting"]["guarantees"]
    made = {name for name, fresh in recomputed.items() if fresh is not None and "unfinished" not in fresh}
    usable = [g for g in rows if g["accountant"] in made or not g["rigorous"]]
    view = {**body, "accounting": {"guarantees": usable}}
    view["missing"] = missing_fields(view, subjects)
    derived, stated = verdict_section(view), body["verdict"]
    if derived == stated:
        return Step("verdict", EQUAL, stated["name"])
    if len(usable) < len(rows) and derived["name"] == stated["name"]:
        return Step("verdict", EQUAL, f"{stated['name']}, without the bounds that cannot be recomputed here")
    why = "; ".join(derived["reasons"])[:300]
    return Step("verdict", DIFFERENT, f"the evidence gives {derived['name']} ({why}) and {stated['name']} is stated")
