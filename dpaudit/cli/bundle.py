"""``dpaudit bundle``: all evidence of a certificate in one file."""

from __future__ import annotations

from pathlib import Path

from dpaudit.cli.common import PATH, Result, argument, option, printed


@printed("bundle")
@argument("run", metavar="RUN|CERTIFICATE", type=PATH)
@option("--out", type=PATH, help="File to write.  [default: the run's name with .dpa.zip]")
@option("--without-weights", is_flag=True, help="Leave the weights behind; their digests stay in the certificate.")
def command(run: Path, out: Path | None, without_weights: bool) -> Result:
    """Pack the release of RUN into one file that dpaudit verify reads: to send, to file, to verify offline.

    Nothing of private/ is read. The same release gives the same bytes.

    \b
    Example:
      dpaudit bundle runs/first --out first.dpa.zip
      dpaudit verify first.dpa.zip
    """
    from dpaudit.certificates.bundle import bundle

    return bundle(run, out, weights=not without_weights)
