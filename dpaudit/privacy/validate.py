"""Validators whose message contains the name and the value: ``positive(noise_multiplier=x)``."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from dpaudit.privacy.errors import InvalidValue


def positive(**values: float) -> None:
    """Require every value > 0 (infinity allowed, NaN not)."""
    for name, value in values.items():
        if not value > 0:
            raise InvalidValue(f"{name}={value} must be > 0; give a positive number.")


def non_negative(**values: float) -> None:
    """Require every value >= 0 (infinity allowed, NaN not)."""
    for name, value in values.items():
        if not value >= 0:
            raise InvalidValue(f"{name}={value} must be >= 0; give zero or a positive number.")


def finite(**values: float) -> None:
    """Require every value to be a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise InvalidValue(f"{name}={value} must be finite; remove NaN and infinite values.")


def probability(**values: float) -> None:
    """Require every value in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InvalidValue(f"{name}={value} must be in [0, 1]; give a probability.")


def open_unit(**values: float) -> None:
    """Require every value in (0, 1), as for δ and α."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise InvalidValue(f"{name}={value} must be in (0, 1); for delta a usual choice is 1/(2N) or below.")


def integer_at_least(bound: int, **values: int) -> None:
    """Require every value to be an integer >= bound."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise InvalidValue(f"{name}={value!r} must be an integer >= {bound}; give a whole number.")


def one_of(allowed: Collection[str], **values: str) -> None:
    """Require every value to be one of the allowed names."""
    for name, value in values.items():
        if value not in allowed:
            raise InvalidValue(f"{name}={value!r} is unknown; choose one of {', '.join(sorted(allowed))}.")


def name_some(names: Sequence[object], limit: int = 5) -> str:
    """The first few names, for a message.

    >>> name_some(["a", "b", "c"], limit=2)
    'a, b, …'
    """
    return ", ".join(str(name) for name in names[:limit]) + (", …" if len(names) > limit else "")
