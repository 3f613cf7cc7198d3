"""What a private Trainer opens before its first step, and the record it writes beside weights: ledger, budget, data."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpaudit import Ledger
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, PrivacyRefusal
from dpaudit.privacy.parts import PRIVATE_MODE, open_journal, read_json, read_ledger, write_atomically
from dpaudit.privacy.protocols import FileJournal
from dpaudit.trainers.huggingface.continuation import data_digest, refuse_missing_ledger
from dpaudit.trainers.huggingface.output import weights_saved
from dpaudit.trainers.plan import PrivacyPlan

RECORD = "privacy.json"
LEDGER = "ledger.jsonl"
PRIVATE = "_private"  # a name that push_to_hub leaves out


def write_record(folder: Path, own: Mapping[str, Any], *, ledger: Ledger, publishes_logs: bool, processes: int) -> None:
    """Write the privacy record of a saved model: what its trainer states, and what holds of every trainer."""
    record = {
        "schema": "dpaudit.trainer/1",
        **own,
        "ledger": ledger.to_dict(),
        "deviations": ["allow_nonprivate_logs"] if publishes_logs else [],
        "weights": weights_saved(folder),
        "processes": processes,
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=2).encode() + b"\n")


def read_record(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / RECORD
    if not path.exists():
        raise PrivacyRefusal(
            f"checkpoint {checkpoint.name!r} holds no {RECORD}, so its spent budget is unknown; resume from a"
            " checkpoint that DPTrainer wrote."
        )
    try:
        record: dict[str, Any] = read_json(path)
        Ledger.from_dict(record["ledger"])
    except (ValueError, KeyError, TypeError, AttributeError, DpauditError) as error:
        raise InvalidEvidence(
            f"{path} is damaged ({type(error).__name__}), so that the spent budget is unknown; restore it."
        ) from error
    return record


def open_run_ledger(
    path: Path,
    plan: PrivacyPlan,
    *,
    begun: bool,
    known: int,
    checkpoint: Path | None,
    audit_plan_sha256: str | None,
) -> FileJournal:
    """The journal of ``OUTPUT_DIR/privacy``: continued after steps, begun anew where none was ever counted.

    Raises
    ------
    PrivacyRefusal
        When steps were counted there and the run is not resumed.
    InvalidEvidence
        When it is resumed and the ledger is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if begun and known:
        copy = None if checkpoint is None or not (checkpoint / LEDGER).exists() else checkpoint / LEDGER
        refuse_missing_ledger(path, known=known, copy=copy)
    if path.exists() and not begun:
        if read_ledger(path).steps:
            raise PrivacyRefusal(
                f"output_dir={str(path.parent.parent)!r} already holds a ledger; call"
                " train(resume_from_checkpoint=True), or give a new output_dir."
            )
        for left in (path, path.with_suffix(".open")):  # of a run that was refused before its first step
            left.unlink(missing_ok=True)
    return open_journal(
        path,
        relation=plan.relation,
        unit=plan.unit,
        max_records_per_unit=plan.max_records_per_unit,
        audit_plan_sha256=audit_plan_sha256,
    )


def compare_data(folder: Path, dataset: Any, *, begun: bool) -> None:
    """Commit the data set by an HMAC whose key stays in ``folder``, and refuse another one on a resume.

    Raises
    ------
    PrivacyRefusal
        When the data can be compared and differ.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key_path, commitment = folder / "data.key", folder / "data_commitment.json"
    if begun and key_path.exists() and commitment.exists():
        stated = read_json(commitment).get("hmac_sha256")
        found = data_digest(dataset, key_path.read_bytes())
        if stated and found and found != stated:
            raise PrivacyRefusal(
                f"train_dataset is not the one that the run in {str(folder.parent)!r} began with; resume with its data,"
                " or start a new run."
            )
        return
    key = secrets.token_bytes(32)
    write_atomically(key_path, key, mode=PRIVATE_MODE)
    value = {"hmac_sha256": data_digest(dataset, key), "records": len(dataset)}
    write_atomically(commitment, json.dumps(value).encode() + b"\n", mode=PRIVATE_MODE)
