"""Functions of storage and accounting that trainers and attacks call without importing those packages.

Trainers and attacks know the privacy language alone, so that they can be read, tested and replaced without the rest. A
ledger on disk, a file written whole, a calibrated σ: for these they call the functions here, and the package root says
(:func:`bind`) which module gives them. Each is loaded at its first call.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.protocols import Calibratable, FileJournal

PRIVATE_MODE = 0o600
"""Permissions of every file in ``private/``: its owner alone reads it, also after the folder was copied elsewhere."""
P = TypeVar("P", bound=Calibratable)
_BOUND: dict[str, str] = {}


def bind(parts: Mapping[str, str]) -> None:
    """Say which ``module:function`` gives each part; called once, by the package root."""
    _BOUND.update(parts)


def _part(name: str) -> Any:
    module, function = _BOUND[name].split(":")
    return getattr(importlib.import_module(module), function)


def write_atomically(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file whole or not at all, flushed to disk; see :func:`dpaudit.storage.files.write_atomically`."""
    _part("write_atomically")(path, content, mode=mode)


def read_json(path: Path) -> Any:
    """Read one JSON file strictly; see :func:`dpaudit.storage.readers.read_json`."""
    return _part("read_json")(path)


def open_journal(
    path: Path, *, relation: str, unit: str, max_records_per_unit: int, audit_plan_sha256: str | None
) -> FileJournal:
    """Open a ledger on disk for writing; see :class:`dpaudit.storage.journal.DiskJournal`."""
    journal: FileJournal = _part("open_journal")(
        path,
        relation=relation,
        unit=unit,
        max_records_per_unit=max_records_per_unit,
        audit_plan_sha256=audit_plan_sha256,
    )
    return journal


def read_ledger(path: Path) -> Ledger:
    """Read and check a ledger file; see :func:`dpaudit.storage.journal.read_ledger`."""
    ledger: Ledger = _part("read_ledger")(path)
    return ledger


def calibrate(plan: P) -> P:
    """The plan with the smallest certified σ that meets its target; see :func:`dpaudit.accounting.calibrate`."""
    calibrated: P = _part("calibrate")(plan)
    return calibrated


def refuse_missed_target(ledger: Ledger, *, delta: float, target_epsilon: float) -> None:
    """Refuse a ledger whose ε exceeds a target; see :func:`dpaudit.accounting.target.refuse_missed_target`."""
    _part("refuse_missed_target")(ledger, delta=delta, target_epsilon=target_epsilon)


def epsilon_upper(ledger: Ledger, *, delta: float) -> float | None:
    """Certified upper bound on the ε of a ledger; None where the accountant refuses it."""
    (reply,) = _part("replies")(ledger, delta=delta, accountants=("prv",))
    return None if reply.guarantee is None else float(reply.guarantee.epsilon_upper)
