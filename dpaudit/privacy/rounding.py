"""Numbers as text: an upper bound is rounded up and a lower bound down, so that the printed bound still holds.

An upper bound is rounded up and a lower bound down, so that the printed number is a bound as well; reading the text
back gives a number on the same side of the value. Estimates are rounded to the nearest, and inputs (a claim, δ) are
printed exactly.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from typing import Any

ABSENT = "—"
"""Text of a missing value."""

DIGITS = 4
"""Significant digits where a caller names none."""

# Seventeen digits tell any two floats apart, so a search over digits ends there.
_MOST_DIGITS = 17
_CONTEXT = Context(prec=400)


def upper_text(value: Any, digits: int = DIGITS, *, within: float | None = None) -> str:
    """An upper bound as text, rounded up to ``digits`` significant digits.

    Parameters
    ----------
    value : float or None
        The bound; None and NaN give a dash, infinity gives "∞".
    within : float, optional
        A limit that ``value`` is compared with. Where the value does not exceed it, digits are added until the text
        does not either, so that a bound that meets a claim never reads as if it missed it.

    Examples
    --------
    >>> upper_text(17.41623)
    '17.42'
    >>> upper_text(2.99985, within=2.9999)
    '2.9999'
    """
    return _towards(value, digits, ROUND_CEILING, within)


def lower_text(value: Any, digits: int = DIGITS, *, beyond: float | None = None) -> str:
    """A lower bound as text, rounded down to ``digits`` significant digits.

    Parameters
    ----------
    value : float or None
        The bound; None and NaN give a dash.
    beyond : float, optional
        A limit that ``value`` is compared with. Where the value exceeds it, digits are added until the text does too,
        so that a bound that refutes a claim never reads as if it met it.

    Examples
    --------
    >>> lower_text(17.41623)
    '17.41'
    >>> lower_text(3.00004, beyond=3.0)
    '3.00004'
    """
    return _towards(value, digits, ROUND_FLOOR, beyond)


def nearest_text(value: Any, digits: int = DIGITS) -> str:
    """An estimate as text, rounded to the nearest.

    >>> nearest_text(17.41623)
    '17.42'
    """
    return _towards(value, digits, ROUND_HALF_EVEN, None)


def exact_text(value: Any) -> str:
    """An input as the shortest text that reads back as the same number.

    >>> exact_text(3.0), exact_text(1e-05)
    ('3', '1e-5')
    """
    return _towards(value, _MOST_DIGITS, ROUND_HALF_EVEN, None)


def percent_upper(share: Any, digits: int = 3) -> str:
    """A share as a percentage, rounded up; a missing value is a dash.

    >>> percent_upper(0.95257)
    '95.3%'
    """
    return _percent(share, digits, ROUND_CEILING)


def percent_lower(share: Any, digits: int = 3) -> str:
    """A share as a percentage, rounded down; a missing value is a dash.

    >>> percent_lower(0.02529)
    '2.52%'
    """
    return _percent(share, digits, ROUND_FLOOR)


def percent_text(share: Any, digits: int = 3) -> str:
    """A share as a percentage, rounded to the nearest; a missing value is a dash."""
    return _percent(share, digits, ROUND_HALF_EVEN)


def _percent(share: Any, digits: int, rounding: str) -> str:
    number = _decimal(share)
    if number is None:
        return ABSENT
    if not number.is_finite():
        return _infinite(number)
    return _digits(number.scaleb(2, _CONTEXT), digits, rounding)[0] + "%"


def _towards(value: Any, digits: int, rounding: str, limit: float | None) -> str:
    number = _decimal(value)
    if number is None:
        return ABSENT
    if not number.is_finite():
        return _infinite(number)
    against = None if limit is None else _decimal(limit)
    for places in range(digits, _MOST_DIGITS + 1):
        text, rounded = _digits(number, places, rounding)
        if against is None or not against.is_finite() or (number > against) == (rounded > against):
            break
    return text


def _decimal(value: Any) -> Decimal | None:
    """The shortest decimal that reads back as the float; None for a missing value."""
    if value is None or math.isnan(number := float(value)):
        return None
    return Decimal(repr(number))


def _infinite(number: Decimal) -> str:
    return "∞" if number > 0 else "-∞"


def _digits(number: Decimal, digits: int, rounding: str) -> tuple[str, Decimal]:
    """Text with at most ``digits`` significant digits, and the number that it stands for."""
    if not number:
        return "0", Decimal(0)
    unit = Decimal((0, (1,), number.adjusted() - digits + 1))
    rounded = number.quantize(unit, rounding=rounding, context=_CONTEXT)
    if not rounded:
        return "0", rounded
    sign, figures, exponent = rounded.normalize(_CONTEXT).as_tuple()
    assert isinstance(exponent, int)  # finite
    return ("-" if sign else "") + _place("".join(map(str, figures)), exponent), rounded


def _place(figures: str, exponent: int) -> str:
    """Place the decimal point among digits, or write an exponent where that is shorter."""
    power = len(figures) - 1 + exponent
    if not -4 <= power < 7:
        return figures[0] + ("." + figures[1:] if len(figures) > 1 else "") + f"e{power}"
    if exponent >= 0:
        return figures + "0" * exponent
    if power >= 0:
        return figures[: power + 1] + "." + figures[power + 1 :]
    return "0." + "0" * (-power - 1) + figures
