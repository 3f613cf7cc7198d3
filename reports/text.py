"""Numbers and names as words."""

from __future__ import annotations

import math
from typing import Any

RELATIONS = {
    "add_or_remove_one": "adding or removing one {unit}",
    "replace_one": "replacing one {unit}",
    "zero_out": "blanking one {unit}",
}


def eps(value: Any) -> str:
    """A number for people: "2.996", "0.412", "12.3", "1500", "∞"; a missing value is an em dash."""
    if value is None:
        return "—"
    number = float(value)
    if math.isnan(number):
        return "—"
    if math.isinf(number):
        return "∞"
    if number == 0:
        return "0"
    # Three decimals keep a bound apart from the claim it was calibrated to; small values keep three digits.
    digits = 3 if 0.1 <= abs(number) < 10 else max(0, 2 - math.floor(math.log10(abs(number))))
    text = f"{number:.{min(digits, 9)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def p_value(value: Any) -> str:
    """A p-value with two significant digits; a missing value is an em dash."""
    return "—" if value is None else f"{float(value):.2g}"


def delta_text(value: Any) -> str:
    """δ in short: "1e-5"; a missing value is an em dash."""
    if value is None:
        return "—"
    mantissa, exponent = f"{float(value):.3e}".split("e")
    short = mantissa.rstrip("0").rstrip(".")
    return f"{short}e{int(exponent)}"


def factor(value: Any) -> str:
    """How many times more likely any outcome may become at ε: "20", "3.4", "more than a million"."""
    number = float(value)
    if number > 13.8:
        return "more than a million"
    times = math.exp(number)
    return f"{times:,.0f}" if times >= 10 else f"{times:.2g}"


def relation_text(relation: str, unit: str) -> str:
    """Neighbouring relation in words."""
    return RELATIONS.get(relation, relation + " {unit}").replace("{unit}", unit)


def percent(value: Any) -> str:
    """A share as a percentage; a missing value is an em dash."""
    return "—" if value is None else f"{100 * float(value):.3g}%"


def plain_value(value: Any) -> str:
    """Any stored value as one line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not stated"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain_value(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(item) for item in value)
    return str(value)
