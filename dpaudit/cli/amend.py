"""``dpaudit amend``: append what was learnt later to a certificate, which is never rewritten."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, emit, json_option


@click.command("amend")
@click.argument("certificate", type=PATH)
@click.option("--kind", type=click.Choice(["note", "correction", "withdrawal"]), required=True, help="What it is.")
@click.option("--author", required=True, help="Who says so.")
@click.option("--text", required=True, help="What is said.")
@click.option("--change", "changes", multiple=True, metavar="PATH=VALUE", help="A corrected field; repeatable.")
@json_option
def command(certificate: Path, kind: str, author: str, text: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Append a note, a correction or a withdrawal to CERTIFICATE; verify and policies then take it into account.

    Sign it with dpaudit sign where a policy names trusted keys.

    \b
    Example:
      dpaudit amend runs/first --kind correction --author "A. Reviewer" --text "A page." --change claim.unit=page
      dpaudit amend runs/first --kind withdrawal --author owner --text "The loader was not Poisson."
    """
    from dpaudit.certificates.amendments import amend, parse_changes
    from dpaudit.certificates.verify.verify import find_certificate

    path = amend(find_certificate(certificate), kind=kind, author=author, text=text, changes=parse_changes(changes))
    emit({"schema": "dpaudit.amend/1", "amendment": str(path)}, as_json, f"wrote {path}; next: dpaudit verify")
