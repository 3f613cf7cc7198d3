"""Accountants' answers in words and columns, as the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence

from dpaudit.accounting.account import Reply
from dpaudit.accounting.compare import Comparison
from dpaudit.privacy.rounding import ABSENT, exact_text, lower_text, nearest_text, upper_text
from dpaudit.privacy.stage import Relation
from dpaudit.privacy.text import table

HEAD = ("accountant", "ε lower", "ε upper", "estimate", "rigorous", "seconds")


def account_text(found: Sequence[Reply], *, delta: float, relation: Relation, defaulted: Sequence[str] = ()) -> str:
    """A table with a line for every accountant: its bounds or its refusal, and the assumption that it rests on.

    Parameters
    ----------
    defaulted : sequence of str
        Names of fields that a default filled; they are said.
    """
    rows: list[tuple[str, ...]] = [(*HEAD, "rests on")]
    for reply in found:
        said = reply.refused or (reply.guarantee.assumption if reply.guarantee else "") or ABSENT
        rows.append((*_cells(reply), said))
    by_default = f" ({', '.join(defaulted)} by default)" if defaulted else ""
    return f"ε at δ={exact_text(delta)} under {relation}{by_default}\n{table(rows)}"


def comparison_text(found: Comparison) -> str:
    """A table with a line for every accountant: its bounds, and what they are worth for this ledger."""
    rows = [(*HEAD, "here"), *((*_cells(row.reply), row.remark) for row in found.rows)]
    return f"ε at δ={exact_text(found.delta)} under {found.ledger.relation}\n{table(rows)}"


def _cells(reply: Reply) -> tuple[str, ...]:
    """Name, lower bound, upper bound, estimate, kind of the answer, and seconds."""
    value = reply.to_dict()
    lower, upper, estimate = (value[f"epsilon_{kind}"] for kind in ("lower", "upper", "estimate"))
    refused = lower is None and upper is None and estimate is None
    kind = "refused" if refused else "yes" if value["rigorous"] else "NO"
    seconds = ABSENT if value["seconds"] is None else f"{value['seconds']:.3f}"
    return value["accountant"], lower_text(lower, 6), upper_text(upper, 6), nearest_text(estimate, 6), kind, seconds
