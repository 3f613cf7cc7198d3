"""What the owner of a run says of it and nobody checks: rows for a page, and what was left unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "stated_by_owner"


def stated_rows(provenance: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Label and text of every statement, and the labels of what was not stated; both empty where none was asked for."""
    words = provenance.get(KEY)
    if not isinstance(words, Mapping):
        return [], []
    rows = [(_label(key), str(value)) for key, value in words.items() if key not in ("standing", "not_stated")]
    left = words.get("not_stated")
    return rows, [_label(str(key)) for key in left] if isinstance(left, (list, tuple)) else []


def _label(key: str) -> str:
    return key.replace("_", " ").capitalize()
