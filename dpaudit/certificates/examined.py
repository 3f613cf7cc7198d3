"""What a recorded examination comes to: whether it was made in full for this run, and the fault sizes it excludes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.finding import NOTE
from dpaudit.privacy.rounding import lower_text, upper_text

REQUIRED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("replay", "paired_sensitivity"), "one record's contribution"),
    (("noise_scale",), "the size of the noise"),
    (("noise_law_and_independence",), "whether the noise is fresh and independent"),
    (("sampler",), "the sampling probability"),
    (("ledger",), "whether every step is counted"),
)
"""Tests of which one must have run, and what it measures: the fixed list of an examination in full."""

SIZES = {"noise": "σ", "contribution": "C", "sampling": "q"}
"""What an examination states the excluded fault sizes of, and the unit of each."""

_STAGED = re.compile(r"^(.*) \((stage \d+)\)$")


def examination_gaps(body: Predicate) -> tuple[str, ...]:
    """Sentences on what keeps a recorded examination from being one of this run, in full; empty where nothing does.

    Parameters
    ----------
    body : Predicate
        Of a certificate. Whether tests found anything is not asked here.
    """
    examination = body.examination
    if not examination:
        return ("the implementation was not examined",)
    gaps = []
    examined, config = examination.get("config_sha256"), body.provenance.get("config_sha256")
    # A loop of one's own has no configuration file, so that only the owner's word says that the examined step is the
    # one that trained; the line of evidence then says so.
    if examined is None and config is not None:
        gaps.append("the examination does not say which configuration it examined")
    elif examined != config:
        gaps.append("the examination is of another configuration than this run's")
    processes = body.provenance.get("processes", 1)
    if processes != 1:
        gaps.append(f"the run trained in {str(processes)[:10]} processes and the examination saw one")
    for stage, ran in sorted(_by_stage(examination.get("tests")).items()):
        where = f" of {stage}" if stage else ""
        gaps += [
            f"the test {' or '.join(names)}{where} did not run, which measures {what}"
            for names, what in REQUIRED
            if not any(ran.get(name) for name in names)
        ]
    sizes = excluded_sizes(examination)
    gaps += [f"the examination excludes no fault of {unit}" for name, unit in SIZES.items() if name not in sizes]
    partial = examination.get("partial")
    if not isinstance(partial, (list, tuple)):
        gaps.append("the examination does not say what it cut short")
    else:
        gaps += [f"the examination of the {str(name)[:40]} was cut short" for name in partial]
    if examination.get("in_full") is not True and not gaps:
        gaps.append("the examination was not made in full")
    return tuple(gaps)


def excluded_sizes(examination: Mapping[str, Any] | None) -> dict[str, float]:
    """Excluded fault sizes as multiples of what was planned: noise below, a contribution or sampling above."""
    stated = (examination or {}).get("excluded")
    values = stated if isinstance(stated, Mapping) else {}
    return {
        name: float(value)
        for name in SIZES
        if isinstance(value := values.get(name), (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def sizes_text(examination: Mapping[str, Any] | None) -> str:
    """The excluded fault sizes as one phrase; empty where none is known."""
    sizes = excluded_sizes(examination)
    parts = []
    if "noise" in sizes:
        parts.append(f"noise below {lower_text(sizes['noise'], 4)} σ")
    if "contribution" in sizes:
        parts.append(f"a contribution above {upper_text(sizes['contribution'], 4)} C")
    if "sampling" in sizes:
        parts.append(f"sampling above {upper_text(sizes['sampling'], 4)} q")
    return ", ".join(parts)


def findings_against(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Findings of white-box tests that are more than a note."""
    return tuple(row for row in rows if row.get("status") not in (NOTE, None))


def _by_stage(tests: Any) -> dict[str, dict[str, str]]:
    """For each examined stage (one of them, unnamed, for a run of one), test to the fault that it excludes."""
    stages: dict[str, dict[str, str]] = {}
    for row in tests if isinstance(tests, (list, tuple)) else ():
        if isinstance(row, Mapping):
            name = str(row.get("name", ""))
            staged = _STAGED.match(name)
            name, stage = (staged[1], staged[2]) if staged else (name, "")
            stages.setdefault(stage, {})[name] = str(row.get("excludes") or "")
    return stages or {"": {}}
