"""One module a row: which settings it has, and how one setting with one seed is run."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from findings.jobs import Job, Options

MODULES = {
    1: ("pretraining",),
    2: ("grids",),
    3: ("alignment",),
    4: ("parameters", "minilm"),
    5: ("generation", "dialogue"),
    7: ("zeroth_order", "afresh"),
    8: ("quadratic", "ablation"),
    9: ("memory",),
}
"""Row 6 is read from the committed speed table; nothing is run for it."""


def jobs_of(row: int, options: Options) -> Iterable[Job]:
    """All settings and seeds of a row, in order of value."""
    for name in MODULES.get(row, ()):
        yield from importlib.import_module(f"findings.rows.{name}").jobs(options)
