"""ε of the same steps under the other neighbouring relation, which a reader may have in mind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.stage import Relation

_OTHER = {
    Relation.ADD_OR_REMOVE_ONE: (Relation.REPLACE_ONE, "one {unit} were replaced by another"),
    Relation.ZERO_OUT: (Relation.REPLACE_ONE, "one {unit} were replaced by another"),
    Relation.REPLACE_ONE: (Relation.ADD_OR_REMOVE_ONE, "one {unit} were added or removed"),
}

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")


def other_relation(ledger: Ledger, *, delta: float, accountants: Sequence[str]) -> str:
    """One sentence: the smallest certified ε at δ for the ledger's steps under the relation that is not claimed.

    By the accountants of the certificate and by ``prv``, which treats most.

    Adding or removing a unit and replacing one are different promises, and a number for one is none for the other. The
    ledger suffices for both.
    """
    upper = other_upper(ledger, delta=delta, accountants=accountants)
    return _sentence(ledger, delta, None if upper is None else upper_text(upper))


def other_upper(ledger: Ledger, *, delta: float, accountants: Sequence[str]) -> float | None:
    """Smallest certified ε at δ under the relation that is not claimed; None where no accountant bounds it."""
    from dpaudit.accounting import account

    found: list[Guarantee] = []
    for name in dict.fromkeys((*accountants, "prv")):
        try:
            found += account(
                dataclasses.replace(ledger, relation=_OTHER[ledger.relation][0]), delta=delta, accountants=(name,)
            )
        except Exception:  # refused, or another's plug-in: whatever it raises, it bounds nothing here
            continue
    return smallest_upper(found)


def stated_upper(text: str, ledger: Ledger, *, delta: float) -> str | None:
    """The printed ε of a sentence that :func:`other_relation` makes for this ledger and δ; None where it bounds none.

    Raises
    ------
    InvalidEvidence
        Where the sentence is no such sentence: another relation, unit or δ, or other words.
    """
    if text == _sentence(ledger, delta, None):
        return None
    before, _, after = _sentence(ledger, delta, "\0").partition("\0")
    printed = text.removeprefix(before).removesuffix(after)
    if text != before + printed + after or not (printed == "∞" or _NUMBER.fullmatch(printed)):
        raise InvalidEvidence(f"{text[:200]!r} is not what is said of epsilon under the other relation.")
    return printed


def _sentence(ledger: Ledger, delta: float, upper: str | None) -> str:
    relation, words = _OTHER[ledger.relation]
    said = f"if {words.format(unit=ledger.unit)} ({relation})"
    if upper is None:
        return f"no accountant bounds epsilon {said}"
    return f"epsilon <= {upper} at delta={exact_text(delta)} {said}"
