"""What the in-run audit leaves in the release, and its part of a certificate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dpaudit import Ledger
from dpaudit.auditing.in_run.audit import InRunResult
from dpaudit.auditing.in_run.evidence import ControlRun, InRunEvidence, energy_from_state
from dpaudit.auditing.plan import AuditPlan
from dpaudit.certificates.in_run_loop import InRunSeen, section_of
from dpaudit.runs.in_run.planning import in_run_of, read_fixed
from dpaudit.runs.in_run.watch import Watch
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.run_folder import RunFolder, read_json, write_json


@dataclasses.dataclass(frozen=True, slots=True)
class InRunPart:
    """The in-run audit of a finished run.

    Attributes
    ----------
    result : InRunResult
    section : dict
        What the certificate carries: ``coins``, ``nonce``, ``evidence_digest`` and ``result``.
    """

    result: InRunResult
    section: dict[str, Any]


def write_evidence(folder: RunFolder, plan: AuditPlan, watch: Watch, control: tuple[ControlRun, ...]) -> None:
    """Write ``release/in_run.json`` after training: scores, coordinates, energy and control, without the coins."""
    mine = in_run_of(plan)
    if mine is None:
        return
    secret = read_fixed(folder, mine)
    none = np.zeros(0)
    evidence = InRunEvidence(
        coordinates=none.astype(np.int64) if secret is None else secret.coordinates,
        scores=none if watch.canaries is None else watch.canaries.scores(),
        coins=none.astype(np.bool_) if secret is None else secret.coins,
        energy=None if watch.recorder is None else energy_from_state(watch.recorder.state()),
        control=control,
    )
    write_json(folder.in_run, evidence.to_dict())


def in_run_part(folder: RunFolder, plan: AuditPlan, ledger: Ledger, accounted_upper: float | None) -> InRunPart | None:
    """Audit what ``release/in_run.json`` holds; None for a run whose plan has no in-run audit.

    Raises
    ------
    InvalidEvidence
        When the file or the secret is missing, damaged, or not that of the plan.
    """
    mine = in_run_of(plan)
    if mine is None:
        return None
    secret = read_fixed(folder, mine)
    coins = np.zeros(0, dtype=np.bool_) if secret is None else secret.coins
    evidence = InRunEvidence.from_dict(read_json(folder.in_run), coins)
    seen = InRunSeen(evidence=evidence, nonce=b"" if secret is None else secret.nonce)
    return InRunPart(*section_of(mine, seen, sha256_file(folder.in_run), ledger, accounted_upper))
