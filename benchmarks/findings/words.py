"""The words around the generated numbers, from ``words.toml``."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Words:
    """The text of one row; ``verdict`` and ``reading`` were written after the runs, ``minutes`` is a rough time."""

    title: str
    paper: str
    setup: str
    chosen: str
    verdict: str
    reading: str
    minutes: str


def _joined(text: str) -> str:
    return " ".join(text.split())


ROWS: dict[int, Words] = {
    int(row): Words(**{name: _joined(text) for name, text in found.items()})
    for row, found in tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8")).items()
}
