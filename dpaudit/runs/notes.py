"""What a run says before its first step: not wrong enough to refuse, and not to be found out afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpaudit.auditing.decidable import needs_perfection, undecidable
from dpaudit.privacy.validate import name_some
from dpaudit.runs.beacons import beacon_note
from dpaudit.runs.records import limit_rule

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


def before_training(prepared: Prepared) -> tuple[str, ...]:
    """One sentence each, for the person who runs it: never written into the release."""
    plan, inside = prepared.audit_plan, prepared.in_run is not None and prepared.in_run.m
    strict = None if inside else needs_perfection(plan)
    notes = (_selection(prepared), _classes(prepared), undecidable(plan), _in_run(prepared), strict, _beacons(prepared))
    return tuple(note for note in notes if note is not None)


def _in_run(prepared: Prepared) -> str | None:
    """Why there are no in-run canaries, where nobody switched them off."""
    plan = prepared.in_run
    if plan is None or plan.m or prepared.config.audit.in_run.enabled is False:
        return None
    return f"no in-run canaries: {plan.reason}. The energy of the releases is recorded all the same."


def _beacons(prepared: Prepared) -> str | None:
    """What beacons cost, and what is promised to them."""
    return beacon_note(prepared.config, prepared.audit_plan.beacons)


def _selection(prepared: Prepared) -> str | None:
    """How ``data.limit`` chose, where it had to choose."""
    data = prepared.config.data
    split = prepared.split
    held = 0 if split is None else int((split.coins[split.of] == 0).sum())
    if data.limit is None or len(prepared.private) + held < data.limit:
        return None
    if limit_rule(data) == "first":
        return (
            f"data.limit={data.limit} takes the first rows of {data.path}, whatever their order means; set"
            ' data.limit_by="random" to draw them from the whole file.'
        )
    return f"data.limit={data.limit} takes records of {data.path} at random, by their text and run.seed."


def _classes(prepared: Prepared) -> str | None:
    """Classes of which there is nothing to learn."""
    private = prepared.private
    if private.labels is None or private.classes is None:
        return None
    present = set(private.labels)
    absent = [name for i, name in enumerate(private.classes) if i not in present]
    return None if not absent else f"no private record is labelled {name_some(absent)}; check data.path and data.limit."
