"""Verification steps on the files beside a certificate: the digest-chained ledger, and the released files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit._commitment import sha256_file
from dpaudit._errors import InvalidEvidence
from dpaudit._ledger import Ledger
from dpaudit._readers import inside
from dpaudit._verify_report import ABSENT, DIFFERENT, EQUAL, Step

# A file with one of these endings holds weights; beside certified weights it must be certified too.
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".msgpack", ".onnx"}
MAX_SUBJECT_BYTES = 64 * 2**30


def embedded_ledger(body: dict[str, Any]) -> Ledger | None:
    """The ledger inside a certificate; None when it has none."""
    section = body["ledger"]
    return None if section is None else Ledger.from_dict({k: v for k, v in section.items() if k != "head"})


def ledger_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    """Compare the digest chain of ``ledger.jsonl`` with the ledger and head inside the certificate."""
    path = folder / "ledger.jsonl"
    section = body["ledger"]
    if section is None:
        return [Step("ledger", ABSENT, "the certificate has no ledger")]
    if not path.exists():
        return [Step("ledger", ABSENT, "ledger.jsonl does not stand beside the certificate")]
    from dpaudit._journal import read_journal

    try:
        record = read_journal(path)
    except InvalidEvidence as error:
        return [Step("ledger.chain", DIFFERENT, str(error))]
    steps = []
    same = record.head == section["head"]
    detail = f"head of the chain {record.head[:12]}…"
    steps.append(
        Step("ledger.chain", *((EQUAL, detail) if same else (DIFFERENT, f"{detail}, certificate {section['head']}")))
    )
    ledger = embedded_ledger(body)
    same = ledger is not None and record.ledger.merged().to_dict() == ledger.merged().to_dict()
    count = f"{record.ledger.steps} noisy releases in {len(record.ledger.stages)} stage(s)"
    stated = "none" if ledger is None else f"{ledger.steps} in {len(ledger.stages)}"
    steps.append(
        Step("ledger.stages", *((EQUAL, count) if same else (DIFFERENT, f"{count}; the certificate has {stated}")))
    )
    if record.open_steps is not None and body["run_status"] == "complete":
        steps.append(Step("ledger.open", DIFFERENT, "a segment is still open, so the run is not complete as stated"))
    audit = body["audit"]
    plan_digest = None if audit is None else audit["plan_digest"]
    if record.audit_plan_sha256 is not None or plan_digest is not None:
        same = record.audit_plan_sha256 == plan_digest
        detail = "the ledger opened with the digest of the audit plan"
        steps.append(
            Step(
                "ledger.plan", *((EQUAL, detail) if same else (DIFFERENT, "the ledger opened with another audit plan"))
            )
        )
    return steps


def subject_steps(folder: Path, subjects: Sequence[dict[str, Any]]) -> list[Step]:
    """Digest every released file the certificate names, and look for weights it does not name."""
    steps = []
    names = {subject["name"] for subject in subjects}
    if len(names) != len(subjects):
        steps.append(Step("subject", DIFFERENT, "two subjects have the same name"))
    present = set()
    for subject in subjects:
        name, stated = subject["name"], subject["digest"]["sha256"]
        step = f"subject {name}"
        try:
            path = inside(folder, name)
        except InvalidEvidence as error:
            steps.append(Step(step, DIFFERENT, str(error)))
            continue
        if not path.is_file():
            steps.append(Step(step, ABSENT, "the file is not beside the certificate"))
            continue
        present.add(path.parent)
        if path.stat().st_size > MAX_SUBJECT_BYTES:
            steps.append(Step(step, ABSENT, f"the file is above {MAX_SUBJECT_BYTES} bytes"))
            continue
        found = sha256_file(path)
        detail = f"SHA-256 {found[:12]}…"
        same = found == stated
        steps.append(
            Step(step, *((EQUAL, detail) if same else (DIFFERENT, f"{detail}, certified {stated[:12]}…: another file")))
        )
    steps += _uncertified_weights(folder, present, names)
    return steps


def _uncertified_weights(folder: Path, folders: set[Path], names: set[str]) -> list[Step]:
    root = folder.resolve()
    extra = sorted(
        path.relative_to(root).as_posix()
        for parent in folders
        if parent != root
        for path in parent.iterdir()
        if path.suffix.lower() in WEIGHT_SUFFIXES and path.relative_to(root).as_posix() not in names
    )
    return [
        Step(f"subject {name}", DIFFERENT, "weights lie beside the certified ones and are not certified")
        for name in extra
    ]
