"""What a run folder proves about steps already taken, and what may therefore be continued, corrected or begun anew."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpaudit import Ledger
from dpaudit.privacy.errors import DpauditError, InvalidEvidence
from dpaudit.storage.journal import read_journal
from dpaudit.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from dpaudit.runs.checkpoint import Checkpoint
    from dpaudit.trainers import PrivacyPlan


def private_steps(folder: RunFolder) -> int:
    """Private steps that the folder's own records show, whatever its ledger says.

    The log of a step is written after its release, so there are never more lines than releases.
    """
    try:
        return folder.steps_log.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def drew_private_records(folder: RunFolder) -> bool:
    """Whether a private record may have been drawn: by the ledger, or by anything that only a step leaves behind."""
    if folder.checkpoint.exists() or folder.model.exists() or folder.scores.exists() or private_steps(folder):
        return True
    if not folder.ledger.exists():
        return folder.ledger.with_suffix(".open").exists()
    try:
        return read_journal(folder.ledger).ledger.steps > 0
    except DpauditError:  # damaged: nobody can say that it counted nothing
        return True


def discard_preparation(folder: RunFolder) -> None:
    """Remove what a run prepared that drew no private record, so that it can be prepared anew."""
    for path in (folder.ledger, folder.ledger.with_suffix(".open"), *folder.prepared):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def refuse_lost_steps(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Refuse a ledger that is shorter than the steps that are known to have been taken.

    A ledger that was deleted, or restored from an older copy beside a newer checkpoint, would count the lost steps
    as if they had never been released. A whole folder that was restored cannot be noticed from inside it.

    Raises
    ------
    InvalidEvidence
        With both numbers, or with the line that is missing.
    """
    known = {"the checkpoint": max(checkpoint.counted, checkpoint.steps), "steps.jsonl": private_steps(folder)}
    where = max(known, key=lambda name: known[name])
    if not known[where]:
        return
    if not folder.ledger.exists():
        raise InvalidEvidence(
            f"ledger {folder.ledger} is missing and {where} knows of {known[where]} counted steps; restore the ledger,"
            " or start a new run folder."
        )
    record = read_journal(folder.ledger)
    if record.ledger.steps < known[where]:
        raise InvalidEvidence(
            f"ledger {folder.ledger} counts {record.ledger.steps} steps and {where} knows of {known[where]}, so that"
            " released steps would not be charged; restore the ledger, or start a new run folder."
        )
    if checkpoint.head is not None and checkpoint.head not in record.heads:
        raise InvalidEvidence(
            f"ledger {folder.ledger} does not hold the line at which the checkpoint was written"
            f" ({checkpoint.head[:12]}…); restore the ledger that belongs to it, or start a new run folder."
        )


def whole_run(counted: Ledger, plans: tuple[PrivacyPlan, ...]) -> Ledger:
    """The ledger so far and the steps that are still planned."""
    left, stages = counted.steps, []
    for plan in plans:
        stages.append(plan.stage(max(0, plan.steps - left)))
        left = max(0, left - plan.steps)
    rest = tuple(stage for stage in stages if stage.steps)
    return dataclasses.replace(counted, stages=(*counted.stages, *rest)).merged()


def declared_configuration(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in a run.json, with the public size of a run that was planned before it was declared.

    Such a run had it from the exact number of private records; its certificate says so.
    """
    value = {section: dict(keys) for section, keys in config.items() if isinstance(keys, Mapping)}
    if "public_size" not in value.get("privacy", {"public_size": 1}):
        canaries, audit = value.get("canaries", {}), value.get("audit", {})
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):  # not our record
            copies = round(canaries.get("count", 0) * canaries.get("copies", 1) / 2)
            trained = facts["planned"][0]["public_size"] - copies
            value["privacy"]["public_size"] = round(trained / (1 - audit.get("holdout_fraction", 0.0)))
    return {**config, **value}


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys of two configurations that differ, as ``section.key=new and was old``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}={after!r:.60} and was {before!r:.60}")
    return found
