"""ε of the same steps under the other neighbouring relation, which a reader may have in mind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.stage import Relation

_OTHER = {
    Relation.ADD_OR_REMOVE_ONE: (Relation.REPLACE_ONE, "one {unit} were replaced by another"),
    Relation.ZERO_OUT: (Relation.REPLACE_ONE, "one {unit} were replaced by another"),
    Relation.REPLACE_ONE: (Relation.ADD_OR_REMOVE_ONE, "one {unit} were added or removed"),
}


def other_relation(ledger: Ledger, *, delta: float, accountants: Sequence[str]) -> str:
    """One sentence: the smallest certified ε at δ for the ledger's steps under the relation that is not claimed.

    By the accountants of the certificate and by ``prv``, which treats most.

    Adding or removing a unit and replacing one are different promises, and a number for one is none for the other. The
    ledger suffices for both.
    """
    from dpaudit.accounting import account

    relation, words = _OTHER[ledger.relation]
    found: list[Guarantee] = []
    for name in dict.fromkeys((*accountants, "prv")):
        try:
            found += account(dataclasses.replace(ledger, relation=relation), delta=delta, accountants=(name,))
        except (DpauditError, ArithmeticError, ValueError):
            continue
    said = f"if {words.format(unit=ledger.unit)} ({relation})"
    upper = smallest_upper(found)
    if upper is None:
        return f"no accountant bounds epsilon {said}"
    return f"epsilon <= {upper_text(upper)} at delta={exact_text(delta)} {said}"
