"""The line on origin and level 4, as only a reader with keys of their own can find them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpaudit.certificates.sign import signers
from dpaudit.certificates.timestamp import STAMPED
from dpaudit.certificates.verify.guard import attempt
from dpaudit.certificates.verify.report import EQUAL, Step
from dpaudit.privacy.level import Line, LineName, Standing

if TYPE_CHECKING:
    from dpaudit.certificates.policy import Policy


def origin_line(certificate: Path, data: bytes, rules: Policy | None, steps: Sequence[Step]) -> Line:
    """Who signed and dated a certificate, by the keys and roots of a policy.

    Parameters
    ----------
    certificate : Path
    data : bytes
        Its exact bytes.
    rules : Policy or None
        ``trusted_keys``, ``countersigners`` and ``timestamp_roots`` are read. Without a policy nobody is known.
    steps : sequence of Step
        Those of the timestamps among them.

    Returns
    -------
    Line
        Shown where a trusted key signed, somebody other than its holder signed too, and plan and certificate are dated.
    """
    trusted = () if rules is None else rules.trusted_keys
    others = () if rules is None else rules.countersigners
    signed = _signers(certificate, data, trusted)
    countersigned = tuple(name for name in _signers(certificate, data, others) if name not in signed)
    dated = {step.name: step.detail for step in steps if step.outcome == EQUAL and step.name in STAMPED.values()}
    words = [f"signed by key {name[:16]}…" for name in signed]
    words += [f"countersigned by key {name[:16]}…" for name in countersigned]
    words += list(dated.values())
    reasons = []
    if not signed:
        reasons.append("no key that you trust signed it (trusted_keys of a policy)")
    if not countersigned:
        reasons.append("nobody other than the signer countersigned it (countersigners of a policy)")
    for file, name in STAMPED.items():
        if name not in dated:
            reasons.append(f"no authority that you trust dated {file} (timestamp_roots of a policy)")
    return Line(
        name=LineName.ORIGIN,
        standing=Standing.MISSING if reasons else Standing.SHOWN,
        text="; ".join(words) or "nobody that you named vouches for it",
        reasons=tuple(reasons),
    )


def _signers(certificate: Path, data: bytes, keys: tuple[str, ...]) -> tuple[str, ...]:
    return (attempt("signature", lambda: signers(certificate, data, keys)).value or ()) if keys else ()
