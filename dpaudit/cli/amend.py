"""``dpaudit amend``: append what was learnt later to a certificate, which is never rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpaudit.cli.common import PATH, Choice, Result, Said, argument, option, printed


@printed("amend")
@argument("certificate", type=PATH)
@option("--kind", type=Choice(["note", "correction", "withdrawal"]), required=True, help="What it is.")
@option("--author", required=True, help="Who says so.")
@option("--text", required=True, help="What is said.")
@option("--change", "changes", multiple=True, metavar="PATH=VALUE", help="A corrected field; repeatable.")
def command(certificate: Path, changes: Sequence[str], **said: str) -> Result:
    """Append a note, a correction or a withdrawal to CERTIFICATE; verify and policies then take it into account.

    Sign it with dpaudit sign where a policy names trusted keys.

    \b
    Example:
      dpaudit amend runs/first --kind correction --author "A. Reviewer" --text "A page." --change claim.unit=page
      dpaudit amend runs/first --kind withdrawal --author owner --text "The loader was not Poisson."
    """
    from dpaudit.certificates.amendments import amend, parse_changes
    from dpaudit.certificates.verify.verify import find_certificate

    path = amend(find_certificate(certificate), changes=parse_changes(changes), **said)
    return Said({"schema": "dpaudit.amend/1", "amendment": str(path)}, f"wrote {path}; next: dpaudit verify")
