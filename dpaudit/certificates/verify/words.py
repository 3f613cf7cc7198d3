"""Whether two sentences say the same: word for word, and number for number within what printing rounds away."""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", re.IGNORECASE)
_PRINTED = 2e-2  # findings print two or three digits, and p-values differ in the last one between machines


def same_text(stated: Any, fresh: Any) -> bool:
    """Whether two texts differ in nothing but the last printed digits of their numbers.

    >>> same_text("p=0.0123 of 92", "p=0.0124 of 92"), same_text("59 of 92", "92 of 92")
    (True, False)
    """
    if not isinstance(stated, str) or not isinstance(fresh, str):
        return bool(stated == fresh)
    if _NUMBER.split(stated) != _NUMBER.split(fresh):
        return False
    return all(_close(a, b) for a, b in zip(_NUMBER.findall(stated), _NUMBER.findall(fresh), strict=True))


def _close(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return math.isclose(float(first), float(second), rel_tol=_PRINTED, abs_tol=1e-12)
    except ValueError:  # a version or a list such as 1,2,3
        return False
