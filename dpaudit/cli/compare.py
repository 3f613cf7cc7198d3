"""``dpaudit compare``: accountants side by side, and which of them is wrong here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.cli.common import EXISTING, PATH, Result, accounting_options, option, printed, with_page


@printed("compare")
@accounting_options
@option("--accountant", "accountants", multiple=True, help="Which to compare (all built-in ones); repeatable.")
@option("--points", type=EXISTING, help="CSV fpr,tpr of an attack to draw.")
@option("--out", type=PATH, help="Write one HTML page with the curves.")
def command(accountants: Sequence[str], points: Path | None, out: Path | None, **asked: Any) -> Result:
    """Accountants side by side; says which is rigorous and which is wrong here.

    \b
    Example:
      dpaudit compare --stage "q=0.01,sigma=0.8,steps=5000" --delta 1e-5
      dpaudit compare --ledger runs/first --delta 1e-6 --out compare.html
    """
    from dpaudit.reports import compare_page
    from dpaudit.runs.account import Asked, compare_stages

    found = compare_stages(Asked(**asked), accountants=accountants, points=points, curves=out is not None)
    return with_page(found, out, compare_page)
