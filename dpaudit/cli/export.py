"""``dpaudit export``: a certificate as a paragraph for a contract, or as an entry of the DP Deployments Registry."""

from __future__ import annotations

from pathlib import Path

from dpaudit.cli.common import PATH, Choice, Result, argument, option, printed, tell


@printed("export")
@argument("certificate", type=PATH)
@option("--as", "form", type=Choice(["paragraph", "registry"]), required=True, help="paragraph, or registry (YAML).")
def command(certificate: Path, form: str) -> Result:
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
        names = ", ".join(found.missing)
        tell(f"the certificate does not fill {names}; add them by hand, or state them in [statement].")
    return found
