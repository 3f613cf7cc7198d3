"""``dpaudit export``: a certificate as a paragraph for a contract, or as an entry of the DP Deployments Registry."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, emit_result, json_option, tell


@click.command("export")
@click.argument("certificate", type=PATH)
@click.option(
    "--as", "form", type=click.Choice(["paragraph", "registry"]), required=True, help="paragraph, or registry (YAML)."
)
@json_option
def command(certificate: Path, form: str, as_json: bool) -> None:
    """Print what CERTIFICATE says in another form. It is read and not verified: run dpaudit verify beside it.

    \b
    Example:
      dpaudit export runs/first/release/certificate.json --as paragraph
      dpaudit export runs/first --as registry > entry.yaml
    """
    from dpaudit.certificates import read_certificate
    from dpaudit.certificates.forms import export

    found = export(read_certificate(certificate).statement, form)
    if found.missing:
        tell(
            f"the certificate does not fill {', '.join(found.missing)}; add them by hand, or state them in [statement]."
        )
    emit_result(found, as_json)
