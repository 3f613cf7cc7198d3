"""``dpaudit account``: ε of stages or of a ledger by every accountant asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpaudit.cli.common import Result, accounting_options, option, printed


@printed("account")
@accounting_options
@option("--accountant", "accountants", multiple=True, help="prv (default), rdp, pld, gdp, gdp-clt; repeatable.")
@option("--tuning", help="Law of the number of tuning runs: geometric:10, log:10, poisson:10 (rdp).")
@option("--rtol", type=float, help="Relative width that prv aims at (0.005 when omitted).")
def command(accountants: Sequence[str], tuning: str | None, rtol: float | None, **asked: Any) -> Result:
    """ε of stages or of a ledger by every accountant asked for.

    An accountant that refuses the ledger says why in its row; the exit code is 64 only where nobody answers.

    \b
    Example:
      dpaudit account --stage "q=0.01,sigma=1.0,steps=1000" --delta 1e-5 --relation add_or_remove_one --json
      dpaudit account --ledger runs/first --delta 1e-6 --accountant prv --accountant rdp
    """
    from dpaudit.runs.account import Asked, account_stages

    return account_stages(Asked(**asked), accountants=accountants, tuning=tuning, rtol=rtol)
