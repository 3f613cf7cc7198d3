"""Length of a record, by which records are sorted so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DEPTH = 3


def length_of(record: Any) -> int:
    """How long a record is: the longest sequence that it holds, 0 where it holds none.

    >>> length_of({"input_ids": [5, 6, 7], "labels": 1})
    3
    """
    return _length(record, _DEPTH)


def _length(value: Any, depth: int) -> int:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 0
    if isinstance(value, (str, bytes)):
        return len(value)
    if depth == 0:
        return 0
    if isinstance(value, Mapping):
        return max((_length(v, depth - 1) for v in value.values()), default=0)
    if isinstance(value, (list, tuple)):
        numbers = not value or isinstance(value[0], (int, float))
        return len(value) if numbers else max(_length(v, depth - 1) for v in value)
    return 0


def padded_tokens(lengths: Sequence[int], micro: int) -> int:
    """Positions that micro-batches of ``micro`` records take when each is padded to its longest record.

    >>> padded_tokens([1, 9, 1, 9], 2), padded_tokens([9, 9, 1, 1], 2)
    (36, 20)
    """
    parts = (lengths[at : at + micro] for at in range(0, len(lengths), micro))
    return sum(max(part) * len(part) for part in parts)
