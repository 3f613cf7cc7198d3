"""ε for groups of records, which canaries with copies test, for the recorded steps."""

from __future__ import annotations

from collections.abc import Sequence

from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger


def group_epsilon(ledger: Ledger, *, delta: float, accountants: Sequence[str], copies: int) -> float | None:
    """Smallest certified ε at δ for ``copies`` records; None for one copy, or where no accountant can treat groups.

    Parameters
    ----------
    ledger : Ledger
        Steps that ran. A run that stopped early costs its groups less than was planned.
    delta : float
        δ of the claim.
    accountants : names
        Those of the certificate; one that refuses groups of this ledger is left out.
    copies : int
        Times an inserted canary stands in the data.
    """
    if copies == 1:
        return None
    from dpaudit.accounting import account

    found: list[Guarantee] = []
    for name in accountants:
        try:
            found += account(ledger, delta=delta, accountants=(name,), group_size=copies)
        except (DpauditError, ArithmeticError, ValueError):
            continue
    return smallest_upper(found)
