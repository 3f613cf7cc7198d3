"""Attempts of one run, counted in ``run.json`` before each begins: whoever tries until it fits leaves the number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.storage.run_folder import RunFolder, RunRecord, update_record

KINDS = {"training": "The training", "control": "The positive control", "examination": "The examination"}
"""What is counted, and what a certificate calls it."""


def count_attempt(folder: RunFolder, record: RunRecord, what: str) -> RunRecord:
    """Write that an attempt begins, and return the record.

    Parameters
    ----------
    what : str
        "training" (a resume is one), "control" or "examination".
    """
    made = attempts_of(record.facts)
    return update_record(folder, record, facts={"attempts": {**made, what: made.get(what, 0) + 1}})


def attempts_of(facts: Mapping[str, Any]) -> dict[str, int]:
    """Attempts so far by kind; none for runs of earlier versions."""
    stated = facts.get("attempts")
    rows = stated.items() if isinstance(stated, Mapping) else ()
    return {str(kind): count for kind, count in rows if kind in KINDS and type(count) is int and count > 0}


def attempt_deviations(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on evidence that was gathered more than once, of which the last is shown.

    A training that is resumed is one training: its ledger holds every step of it.
    """
    made = attempts_of(facts)
    return [
        f"{KINDS[what]} was begun {made[what]} times under one plan; the last one is shown."
        for what in ("control", "examination")
        if made.get(what, 0) > 1
    ]
