"""Timestamps by a third party (RFC 3161): that a file's bytes existed at a time, checked offline against given roots.

A timestamp on the frozen audit plan shows that plan and commitment existed by then. Who knows when training began, by
another way than the owner's word, then knows the order of the two; the certificate alone does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED, Step
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.text import printable
from dpaudit.storage.commitment import sha256_bytes
from dpaudit.storage.files import write_atomically
from dpaudit.storage.readers import read_bytes

MAX_TOKEN = 1 << 20
REQUEST, TOKEN = ".tsq", ".tsr"
STAMPED = {"audit_plan.json": "timestamp.audit_plan", "certificate.json": "timestamp.certificate"}
"""Files of a release that may have a token beside them, and the step of ``verify`` that checks it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timestamp:
    """What a token says, checked against roots.

    Attributes
    ----------
    time : str
        UTC, ISO 8601: the bytes existed by then.
    sha256 : str
        Digest of the bytes.
    issuer : str
        Subject of the certificate that signed the token.
    """

    time: str
    sha256: str
    issuer: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.timestamp/1``."""
        return {"schema": "dpaudit.timestamp/1", **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return f"SHA-256 {self.sha256} existed by {self.time}, says {printable(self.issuer)}"


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise InvalidValue("timestamps need the package 'rfc3161-client'; run: pip install rfc3161-client.") from None
    return rfc3161_client


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimestampRequest:
    """A request that waits for an authority's answer: the file that is dated, and the request beside it."""

    file: Path
    request: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.timestamp/1``."""
        return {"schema": "dpaudit.timestamp/1", "file": str(self.file), "request": str(self.request)}

    def __str__(self) -> str:
        return (
            f"wrote {self.request}; send it to an authority, for example:\n"
            f"curl -H 'Content-Type: application/timestamp-query' --data-binary @{self.request} -o answer.tsr URL\n"
            f"then: dpaudit timestamp {self.file} --token answer.tsr --roots root.pem"
        )


def timestamp_request(path: str | Path) -> Path:
    """Write ``PATH.tsq``, a request that any timestamping authority answers; it holds a digest and a nonce.

    Nothing is sent: hand the file to an authority of your choice and keep its answer as ``PATH.tsr``.

    Parameters
    ----------
    path : path
        The file to be dated.

    Returns
    -------
    Path
        ``PATH.tsq``.

    Raises
    ------
    InvalidValue
        If the package that writes requests is missing.
    InvalidEvidence
        If the file cannot be read.
    """
    path, library = Path(path), _library()
    data = read_bytes(path)
    request = library.TimestampRequestBuilder().data(data).hash_algorithm(library.HashAlgorithm.SHA256).build()
    target = path.with_name(path.name + REQUEST)
    write_atomically(target, request.as_bytes())
    return target


def check_timestamp(data: bytes, token: bytes, roots: Sequence[str]) -> Timestamp:
    """Check a token over some bytes, offline.

    Parameters
    ----------
    data : bytes
        What was stamped.
    token : bytes
        The authority's answer, DER.
    roots : sequence of str
        PEM certificates that the reader trusts; each may hold several.

    Raises
    ------
    InvalidEvidence
        When the token cannot be read, is over other bytes, or leads to no root.
    """
    library = _library()
    from cryptography import x509

    answer = _decoded(library, token)
    try:
        trusted = [root for pem in roots for root in x509.load_pem_x509_certificates(pem.encode())]
    except ValueError as error:
        raise InvalidValue(f"timestamp roots are no PEM certificates ({error}); give the authority's root.") from None
    try:
        library.VerifierBuilder(roots=trusted).build().verify_message(answer, data)
    except (library.VerificationError, ValueError) as error:
        raise InvalidEvidence(f"the timestamp does not hold: {_reason(error)}.") from None
    return Timestamp(time=_time(answer), sha256=sha256_bytes(data), issuer=_issuer(answer))


def _decoded(library: Any, token: bytes) -> Any:
    try:
        return library.decode_timestamp_response(token)
    except (ValueError, TypeError) as error:
        raise InvalidEvidence(f"the timestamp cannot be read ({printable(str(error))[:120]}); get it again.") from None


def _time(answer: Any) -> str:
    return str(answer.tst_info.gen_time.isoformat())


def _issuer(answer: Any) -> str:
    from cryptography import x509

    for der in answer.signed_data.certificates:
        certificate = x509.load_der_x509_certificate(bytes(der))
        try:
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            continue
        if x509.oid.ExtendedKeyUsageOID.TIME_STAMPING in usage:
            return certificate.subject.rfc4514_string()[:300]
    return "an authority that its token does not name"


def _reason(error: Exception) -> str:
    text = printable(str(error))
    for known, words in (
        ("unable to get local issuer", "it leads to none of the given roots"),
        ("self-signed", "it leads to none of the given roots"),
        ("Mismatch between messages", "it is over other bytes"),
        ("expired", "its authority's certificate has expired"),
        ("PKIStatus", "the authority refused the request"),
    ):
        if known in text:
            return words
    return text[:160].rstrip(".")


def attach_timestamp(path: str | Path, token: str | Path, roots: Sequence[str]) -> Timestamp:
    """Check a token over a file and keep it as ``PATH.tsr``, where ``verify`` and ``bundle`` find it.

    Parameters
    ----------
    path : path
        The file that was dated.
    token : path
        Answer of the timestamping authority.
    roots : sequence of str
        PEM text of the authorities that are trusted.

    Returns
    -------
    Timestamp
        Time and authority.

    Raises
    ------
    InvalidEvidence
        If the token is over other bytes, or none of the roots vouches for it.
    """
    path = Path(path)
    answer = read_bytes(Path(token), limit=MAX_TOKEN)
    found = check_timestamp(read_bytes(path), answer, roots)
    write_atomically(path.with_name(path.name + TOKEN), answer)
    return found


def timestamp_steps(folder: Path, roots: Sequence[str]) -> list[Step]:
    """One step for each token beside a certificate; without roots nothing is proved by it.

    Parameters
    ----------
    roots : sequence of str
        PEM certificates that the reader trusts.
    """
    steps = []
    for name, step in STAMPED.items():
        path = folder / (name + TOKEN)
        if path.is_file():
            steps.append(_step(step, folder / name, path, roots))
    return steps


def _step(name: str, stamped: Path, path: Path, roots: Sequence[str]) -> Step:
    token = read_bytes(path, limit=MAX_TOKEN)
    try:
        library = _library()
    except InvalidValue as error:
        return Step(name, ABSENT, str(error).rstrip("."))
    try:
        if not roots:
            says = _time(_decoded(library, token))
            return Step(name, RECORDED, f"a token says {says}; name timestamp_roots in a policy to check it")
        found = check_timestamp(read_bytes(stamped), token, roots)
    except InvalidEvidence as error:
        return Step(name, DIFFERENT, str(error).rstrip("."))
    return Step(name, EQUAL, f"{stamped.name} existed by {found.time}, by the trusted authority {found.issuer}")
