"""``dpaudit certify``: all of it, from a TOML file or a trained run folder to certificate and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpaudit.cli.common import PATH, IntRange, Result, argument, device_option, option, printed, tell


@printed("certify", runs_models=True)
@argument("source", metavar="CONFIG.toml|RUN", type=PATH)
@option("--out", type=PATH, help="Run folder; required with a TOML file.")
@option("--control", is_flag=True, help="Also train a positive control, which measures the attack's power.")
@option("--controls", type=IntRange(min=1), help="Train that many controls and count them together.")
@option("--examine", is_flag=True, help="Also examine the training step white-box, on synthetic records.")
@option("--examine-budget", help="What that may spend, such as 30s or 2min (default 1min); implies --examine.")
@device_option
@option("--sign-key", type=PATH, help="Ed25519 private key (PEM) to sign the certificate with.")
def command(control: bool, controls: int | None, sign_key: Path | None, **options: Any) -> Result:
    """Train (for a TOML file), account, attack, audit, certify and report.

    The evidence stands in four lines with a level: accounting, implementation (--examine), released model (--control)
    and origin. A second examination replaces the first, and the certificate counts both.

    Exit code: 0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage.

    \b
    Example:
      dpaudit certify examples/certify.toml --out runs/first
      dpaudit certify runs/first
    """
    from dpaudit.runs.certify import certify

    signing_key = None if sign_key is None else sign_key.read_bytes()
    return certify(controls=controls or int(control), signing_key=signing_key, tell=tell, **options)
