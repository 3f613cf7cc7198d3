"""Validators whose message contains the name and the value: ``positive(noise_multiplier=x)``."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.text import printable


def positive(**values: float) -> None:
    """Require every value > 0 (infinity allowed, NaN not)."""
    for name, value in values.items():
        if not _real(name, value) > 0:
            raise InvalidValue(f"{name}={value} must be > 0; give a positive number.")


def non_negative(**values: float) -> None:
    """Require every value >= 0 (infinity allowed, NaN not)."""
    for name, value in values.items():
        if not _real(name, value) >= 0:
            raise InvalidValue(f"{name}={value} must be >= 0; give zero or a positive number.")


def finite(**values: float) -> None:
    """Require every value to be a finite number."""
    for name, value in values.items():
        if not math.isfinite(_real(name, value)):
            raise InvalidValue(f"{name}={value} must be finite; remove NaN and infinite values.")


def probability(**values: float) -> None:
    """Require every value in [0, 1]."""
    for name, value in values.items():
        if not 0 <= _real(name, value) <= 1:
            raise InvalidValue(f"{name}={value} must be in [0, 1]; give a probability.")


def open_unit(**values: float) -> None:
    """Require every value in (0, 1), as for δ and α."""
    for name, value in values.items():
        if not 0 < _real(name, value) < 1:
            usual = (
                "; a usual choice is 1/(2N) or below for N units" if name == "delta" else "; give a number between them"
            )
            raise InvalidValue(f"{name}={value} must be in (0, 1){usual}.")


def integer_at_least(bound: int, **values: int) -> None:
    """Require every value to be an integer >= bound, and below 2**63, which no run counts to."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            hint = "give a larger number" if type(value) is int else "give a whole number"
            raise InvalidValue(f"{name}={_shown(value)} must be an integer >= {bound}; {hint}.")
        if value >= 2**63:
            raise InvalidValue(f"{name}={_shown(value)} is beyond 64 bits; give a smaller number.")


def one_of(allowed: Collection[str], **values: str) -> None:
    """Require every value to be one of the allowed names."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in allowed:
            raise InvalidValue(f"{name}={_shown(value)} is unknown; choose one of {', '.join(sorted(allowed))}.")


def label(**values: str) -> None:
    """Require every value to be a name that can be shown: some text, on one line, without control characters."""
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip() or printable(value) != value:
            raise InvalidValue(f"{name}={_shown(value)} must be a name: text on one line, without control characters.")


def _real(name: str, value: object) -> float:
    """A value as a float; what is no number, or beyond every float, is named."""
    try:
        if isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise InvalidValue(f"{name} is beyond the largest floating-point number; give a smaller one.") from None
    except (TypeError, ValueError):
        raise InvalidValue(f"{name}={_shown(value)} must be a number; give one.") from None


def _shown(value: object) -> str:
    """A value for a message, cut to one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__} of many digits"
    return printable(text if len(text) <= 80 else f"{text[:79]}…")


def name_some(names: Sequence[object], limit: int = 5) -> str:
    """The first few names, for a message.

    >>> name_some(["a", "b", "c"], limit=2)
    'a, b, …'
    """
    return ", ".join(printable(str(name)) for name in names[:limit]) + (", …" if len(names) > limit else "")
