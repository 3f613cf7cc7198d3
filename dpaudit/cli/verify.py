"""``dpaudit verify``: re-derive a certificate from its evidence."""

from __future__ import annotations

from pathlib import Path

from dpaudit.cli.common import PATH, Result, argument, option, printed


@printed("verify")
@argument("certificate", type=PATH)
@option("--policy", type=PATH, help="Your own rules; see docs/howto/policy.md.")
@option("--max-seconds", type=float, default=8.0, show_default=True, help="Computing time that it may take.")
@option("--max-megabytes", type=int, default=400, show_default=True, help="Memory that it may take.")
def command(certificate: Path, policy: Path | None, max_seconds: float, max_megabytes: int) -> Result:
    """Re-derive every number of CERTIFICATE (or a run folder, or a bundle) from its evidence, without the model.

    Exit code: the verdict's (0 consistent, 1 violated or accounting_mismatch, 2 inconclusive), 3 when anything differs,
    1 when a policy is not met and 0 when it is met and accepts the verdict. What does not finish within the limits is
    not recomputed and supports nothing; a long ledger or large weights need more of both.

    \b
    Example:
      dpaudit verify runs/first/release/certificate.json
      dpaudit verify first.dpa.zip
      dpaudit verify certificate.json --policy policy.toml --json
    """
    from dpaudit.certificates.verify.confined import verify_certificate
    from dpaudit.storage.confined import Limits

    limits = Limits(seconds=max_seconds, megabytes=max_megabytes)
    return verify_certificate(certificate, policy=policy, limits=limits)
