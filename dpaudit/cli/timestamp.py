"""``dpaudit timestamp``: let a third party date the frozen plan, or a certificate; checked offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dpaudit.cli.common import PATH, Result, argument, option, printed


@printed("timestamp")
@argument("file", type=PATH)
@option("--out", type=PATH, help="Run folder in which a CONFIG.toml freezes its plan.")
@option("--token", type=PATH, help="The authority's answer, to check and to keep.")
@option("--roots", type=PATH, multiple=True, help="PEM certificates that you trust; repeatable.")
def command(file: Path, out: Path | None, token: Path | None, roots: Sequence[Path]) -> Result:
    """Write an RFC 3161 request for FILE, or check the authority's answer and keep it beside FILE.

    With a CONFIG.toml the audit plan is frozen in the run folder first, without a training step; certify goes on from
    there. Nothing is sent: what goes to the authority is a file with a digest and a nonce, and you send it.

    \b
    Example:
      dpaudit timestamp mails.toml --out runs/mails
      dpaudit timestamp runs/mails/release/audit_plan.json --token answer.tsr --roots root.pem
    """
    from dpaudit.certificates.timestamp import attach_timestamp
    from dpaudit.runs.freeze import request_timestamp

    if token is None:
        return request_timestamp(file, out)
    if not roots:
        raise click.UsageError("--token needs --roots: the certificates of the authority that you trust.")
    return attach_timestamp(file, token, [path.read_text(encoding="utf-8") for path in roots])
