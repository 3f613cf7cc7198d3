"""``privacy.json``: the short record that stands beside saved weights and travels with them."""

from __future__ import annotations

from dpaudit.certificates.faults import epsilon_upper
from dpaudit.certificates.lower_bound import usable_lower
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import Statement
from dpaudit.storage.commitment import canonical_json

SCHEMA = "dpaudit.privacy/1"


def privacy_json(certificate: Statement) -> bytes:
    """Bytes of ``privacy.json`` for a certificate: claim, ledger, bounds, verdict, and the digest that names it.

    The certificate binds the weights, and this file only points at the certificate; it proves nothing by itself and is
    therefore not among the certificate's subjects.

    Parameters
    ----------
    certificate : Statement
        As :func:`read_certificate` gives it, or :func:`certify_run`.

    Returns
    -------
    bytes
        Canonical JSON, ending in a newline.
    """
    body = certificate.predicate
    lower = usable_lower(body)
    value = {
        "schema": SCHEMA,
        "statement_sha256": body.digest,
        "verdict": body.verdict.name,
        "meaning": body.verdict.meaning,
        **({} if body.level is None else {"level": body.level}),
        "claim": None if body.claim is None else body.claim.to_dict(),
        "epsilon_upper": epsilon_upper(body),
        "epsilon_lower": None if lower is None else lower.epsilon_lower,
        "confidence": None if lower is None else lower.confidence,
        "epsilon_lower_at_verdict": None if lower is None else lower.epsilon_lower_at_verdict,
        "confidence_at_verdict": None if lower is None else lower.confidence_at_verdict,
        "ledger": None if body.ledger is None else body.ledger.to_plain(),
        "mechanism": body.mechanism,
        "scope": body.scope.to_plain(),
        "limits": body.limits,
        "verify": "dpaudit verify certificate.json",
    }
    return canonical_json(plain_json(value)) + b"\n"
