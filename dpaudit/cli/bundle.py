"""``dpaudit bundle``: all evidence of a certificate in one file."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, emit_result, json_option


@click.command("bundle")
@click.argument("run", metavar="RUN|CERTIFICATE", type=PATH)
@click.option("--out", type=PATH, help="File to write.  [default: the run's name with .dpa.zip]")
@click.option(
    "--without-weights", is_flag=True, help="Leave the weights behind; their digests stay in the certificate."
)
@json_option
def command(run: Path, out: Path | None, without_weights: bool, as_json: bool) -> None:
    """Pack the release of RUN into one file that dpaudit verify reads: to send, to file, to verify offline.

    Nothing of private/ is read. The same release gives the same bytes.

    \b
    Example:
      dpaudit bundle runs/first --out first.dpa.zip
      dpaudit verify first.dpa.zip
    """
    from dpaudit.certificates.bundle import bundle

    emit_result(bundle(run, out, weights=not without_weights), as_json)
