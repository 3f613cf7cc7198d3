"""Counts come out of arrays: accept any whole-number type, numpy's included."""

from __future__ import annotations

import numbers

from dpaudit.privacy.errors import InvalidValue


def whole_at_least(bound: int, **values: int) -> None:
    """Require every value to be a whole number >= bound; booleans and floats are refused."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < bound:
            raise InvalidValue(f"{name}={value!r} must be an integer >= {bound}; give a whole number.")
