"""Plain JSON values out of numbers that standard JSON cannot write."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """Replace infinities and NaN by the strings "inf", "-inf", "nan", so that the JSON stays standard."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return plain(value.item())
    return value
