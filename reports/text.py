"""Numbers and names as words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from dpaudit.privacy.rounding import exact_text, nearest_text, upper_text

RELATIONS = {
    "add_or_remove_one": "adding or removing one {unit}",
    "replace_one": "replacing one {unit}",
    "zero_out": "blanking one {unit}",
}


def p_value(value: Any) -> str:
    """A p-value with two significant digits, rounded up; "< 1e-300" where it is below what floats hold."""
    return "< 1e-300" if value is not None and float(value) == 0 else upper_text(value, 2)


def factor(value: Any) -> str:
    """How many times more likely any outcome may become at ε: e^ε rounded up, "20.1", or "more than a million"."""
    number = float(value)
    # e^13.8 is a million, beyond which more digits say nothing more, so none are printed.
    return "more than a million" if number > 13.8 else upper_text(math.exp(number), 3)


def decimal_text(value: Any) -> str:
    """A small probability without an exponent, "0.00001", down to nine decimals; exactly, in either form."""
    text = exact_text(value)
    return f"{Decimal(text):f}" if "e-" in text and float(value) >= 1e-9 else text


def capitalized(text: str) -> str:
    """A text with its first letter large, where that is a letter of prose and no symbol such as ε."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def p_equals(value: Any) -> str:
    """A p-value with its name: "p = 0.012", or "p < 1e-300" where it is below what floats hold."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def counted(number: Any, one: str, many: str | None = None) -> str:
    """A whole number with its noun: "1 record", "2,494 records"."""
    return f"{int(number):,} {one if int(number) == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as a list in prose: "4", "4 and 16", "1, 4 and 16"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def seconds(value: Any) -> str:
    """A duration as people read it: "3.1", or "below 0.01"."""
    return "—" if value is None else nearest_text(value, 2) if float(value) >= 0.01 else "below 0.01"


def relation_text(relation: str, unit: str) -> str:
    """Neighbouring relation in words."""
    return RELATIONS.get(relation, relation + " {unit}").replace("{unit}", unit)


def plain_value(value: Any) -> str:
    """Any stored value as one line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not stated"
    if isinstance(value, float):
        return nearest_text(value, 6)
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain_value(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(item) for item in value)
    return str(value)
