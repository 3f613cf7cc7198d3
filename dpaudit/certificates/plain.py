"""Numbers and values of a certificate as plain JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpaudit.privacy.errors import InvalidValue


def plain_json(value: Any) -> Any:
    """Copy to plain JSON types; infinities become "inf" and "-inf", NaN is refused."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return plain_json(value.item())
    if isinstance(value, float) and math.isnan(value):
        raise InvalidValue("a certificate value is NaN and must be a number; mend the evidence it comes from.")
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    raise InvalidValue(f"a certificate value has type {type(value).__name__}; give plain JSON values.")


def to_float(value: Any) -> float:
    """Read a stored number back; "inf" is infinity."""
    return float(value)
