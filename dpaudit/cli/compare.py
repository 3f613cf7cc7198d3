"""``dpaudit compare``: accountants side by side, and which of them is wrong here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.common import PATH, accounting_options, emit_with_page, json_option


@click.command("compare")
@accounting_options
@click.option("--accountant", "accountants", multiple=True, help="Which to compare (all built-in ones); repeatable.")
@click.option("--points", type=click.Path(exists=True, path_type=Path), help="CSV fpr,tpr of an attack to draw.")
@click.option("--out", type=PATH, help="Write one HTML page with the curves.")
@json_option
def command(out: Path | None, as_json: bool, **options: Any) -> None:
    """Accountants side by side; says which is rigorous and which is wrong here.

    \b
    Example:
      dpaudit compare --stage "q=0.01,sigma=0.8,steps=5000" --delta 1e-5
      dpaudit compare --ledger runs/first --delta 1e-6 --out compare.html
    """
    from dpaudit.reports import compare_page
    from dpaudit.runs.account import compare_stages

    found = compare_stages(**options, curves=out is not None)
    emit_with_page(found.to_dict(), as_json, str(found), out, compare_page)
