"""A ledger from a file: our own, a run folder's, or a history that another library wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Relation
from dpaudit.privacy.stage_text import parse_stage
from dpaudit.storage.readers import read_json


def read_ledger_file(path: Path, relation: str | None) -> tuple[Ledger, list[str]]:
    """A ledger from a JSON ledger, a run (or its ``ledger.jsonl``), or a JSON history of (σ, q, T).

    Returns the ledger and the names of fields that defaults filled (histories do not state them).
    """
    if path.is_dir():
        path = path / "release" / "ledger.jsonl"
    if path.suffix == ".jsonl":
        from dpaudit.storage.journal import read_ledger

        ledger = read_ledger(path)
    else:
        value = read_json(path)
        if isinstance(value, list) or (isinstance(value, dict) and "history" in value):
            from dpaudit.accounting.events import from_opacus

            missing = ["sampling", *(["relation"] if relation is None else [])]
            chosen = relation or Relation.ADD_OR_REMOVE_ONE
            return from_opacus(value, relation=chosen, unit="record"), missing
        if not isinstance(value, dict):
            raise InvalidEvidence(f"ledger {str(path)!r} is not a JSON object; write Ledger.to_dict() there.")
        ledger = Ledger.from_dict(value)
    return (ledger if relation is None else dataclasses.replace(ledger, relation=Relation.parse(relation))), []


def ledger_of(stages: Sequence[str], path: Path | None, relation: str | None) -> tuple[Ledger, dict[str, Any]]:
    """The ledger of the options, and what to echo: relation, stages, and which fields a default filled."""
    if bool(stages) == bool(path):
        raise InvalidValue(
            "stages and a ledger file describe the same thing; give either --stage (once or more) or --ledger."
        )
    if path is not None:
        ledger, missing = read_ledger_file(path, relation)
    else:
        parsed = [parse_stage(text) for text in stages]
        missing = ["sampling"] if any(defaulted for _, defaulted in parsed) else []
        missing += ["relation"] if relation is None else []
        chosen = Relation.parse(relation or Relation.ADD_OR_REMOVE_ONE)
        ledger = Ledger(stages=tuple(stage for stage, _ in parsed), relation=chosen)
    echo: dict[str, Any] = {"relation": str(ledger.relation), "stages": [s.to_dict() for s in ledger.stages]}
    if missing:
        echo |= {"defaulted": True, "defaulted_fields": sorted(missing)}
    return ledger, echo
