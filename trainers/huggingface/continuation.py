"""What a resume must find: the ledger of the checkpoint's run, the plan it counted, and the data it began with."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit import Ledger, Stage
from dpaudit.privacy.errors import InvalidEvidence, PrivacyRefusal


def refuse_lost_steps(path: Path, ledger: Ledger, heads: Sequence[str], *, known: int, head: str | None) -> None:
    """Refuse a ledger that counts fewer steps than the checkpoint, or is another one.

    Parameters
    ----------
    path : Path
        The ledger's file, for the sentence.
    ledger, heads
        What it counts, and the SHA-256 of its sealed lines.
    known : int
        Steps that the checkpoint knows to have been counted.
    head : str or None
        Line of the ledger at which the checkpoint was written, where it says so.

    Raises
    ------
    InvalidEvidence
        With both numbers, or with the line that is missing.
    """
    if ledger.steps < known:
        raise InvalidEvidence(
            f"ledger {path} counts {ledger.steps} steps and the checkpoint {known}, so that released steps would not be"
            " charged; restore the ledger, or start a new run."
        )
    if head is not None and head not in heads:
        raise InvalidEvidence(
            f"ledger {path} does not hold the line at which the checkpoint was written ({head[:12]}…); restore the"
            " ledger that belongs to it, or start a new run."
        )


def refuse_missing_ledger(path: Path, *, known: int, copy: Path | None) -> None:
    """Refuse a checkpoint without its ledger: steps after the checkpoint would be forgotten in silence."""
    if path.exists():
        return
    remedy = (
        "restore it"
        if copy is None
        else f"restore it, or, only where no step followed this checkpoint, copy {copy} there"
    )
    raise InvalidEvidence(
        f"ledger {path} is missing and the checkpoint knows of {known} counted steps; steps that followed would not be"
        f" charged: {remedy}."
    )


def refuse_another_plan(counted: Ledger, planned: Sequence[Stage]) -> None:
    """Refuse a ledger whose steps are not the first ones of the plan; with them, ledger and rest add up to the plan.

    Raises
    ------
    PrivacyRefusal
        With the field that differs, or because the ledger is longer than the plan.
    """
    plan = iter([dataclasses.replace(stage) for stage in planned])
    current, room = None, 0
    for stage in counted.stages:
        left = stage.steps
        while left:
            while not room:
                current = next(plan, None)
                if current is None:
                    raise PrivacyRefusal(
                        f"the ledger counts {counted.steps} steps and the plan has"
                        f" {sum(s.steps for s in planned)}; resume with the plan it began with, or start a new run."
                    )
                room = current.steps
            assert current is not None
            _refuse_another_stage(stage, current)
            taken = min(left, room)
            left, room = left - taken, room - taken


def _refuse_another_stage(counted: Stage, planned: Stage) -> None:
    found, wanted = counted.to_dict(), planned.to_dict()
    for key in sorted({*found, *wanted} - {"steps", "stop_reason"}):
        if found.get(key) != wanted.get(key):
            raise PrivacyRefusal(
                f"{key}={wanted.get(key)!r} differs from the {found.get(key)!r} that the ledger counts; resume with the"
                " plan it began with, or start a new run."
            )


def data_digest(dataset: Any, key: bytes) -> str | None:
    """Hexadecimal HMAC-SHA-256 of the records in their order; None where they cannot be read twice alike.

    Lists, tuples and saved ``datasets`` tables are compared. A data set that makes its records when asked (drawn
    augmentations, tokenisation on the fly) may make others the next time, so nothing is concluded from it.
    """
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)  # the stored rows, whatever transform stands before them
    elif not isinstance(dataset, (list, tuple)):
        return None
    digest = hmac.new(key, str(len(dataset)).encode(), hashlib.sha256)
    for record in dataset:
        try:
            line = json.dumps(record, sort_keys=True, default=_plain)
        except (TypeError, ValueError):
            return None
        digest.update(b"\n" + line.encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Tensors and arrays by dtype, shape and numbers; anything else cannot be compared."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if hasattr(value, "tolist") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return [str(value.dtype), list(value.shape), value.tolist()]
    raise TypeError
