"""Verification steps on the files beside a certificate: the digest-chained ledger, and the released files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.certificates.build import plain_json
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step, judge
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.ledger import Ledger
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.readers import inside, read_json

# A file with one of these endings holds weights; beside certified weights it must be certified too.
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".msgpack", ".onnx"}
MAX_SUBJECT_BYTES = 64 * 2**30
MAX_FOLDERS = 1000


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
    from dpaudit.storage.journal import read_journal

    try:
        record = read_journal(path)
    except InvalidEvidence as error:
        return [Step("ledger.chain", DIFFERENT, str(error))]
    head = f"head of the chain {record.head[:12]}…"
    steps = [judge("ledger.chain", record.head == section["head"], head, f"{head}, certified {section['head']}")]
    ledger = embedded_ledger(body)
    same = ledger is not None and record.ledger.merged().to_dict() == ledger.merged().to_dict()
    count = f"{record.ledger.steps} noisy releases in {len(record.ledger.stages)} stage(s)"
    stated = "none" if ledger is None else f"{ledger.steps} in {len(ledger.stages)}"
    steps.append(judge("ledger.stages", same, count, f"{count}; the certificate has {stated}"))
    if record.open_steps is not None and body["run_status"] == "complete":
        steps.append(Step("ledger.open", DIFFERENT, "a segment is still open, so the run is not complete as stated"))
    plan_digest = None if body["audit"] is None else body["audit"]["plan_digest"]
    if record.audit_plan_sha256 is not None or plan_digest is not None:
        same = record.audit_plan_sha256 == plan_digest
        detail = "the ledger opened with the digest of the audit plan"
        steps.append(judge("ledger.plan", same, detail, "the ledger opened with another audit plan"))
    return steps


def subject_steps(folder: Path, subjects: Sequence[dict[str, Any]]) -> list[Step]:
    """Digest every released file the certificate names, and look for weights it does not name."""
    steps = []
    names = {subject["name"] for subject in subjects}
    if len(names) != len(subjects):
        steps.append(Step("subject", DIFFERENT, "two subjects have the same name"))
    folders: set[Path] = set()
    for subject in subjects:
        name, stated = subject["name"], subject["digest"]["sha256"]
        step = f"subject {name}"
        try:
            path = inside(folder, name)
        except InvalidEvidence as error:
            steps.append(Step(step, DIFFERENT, str(error)))
            continue
        if path.parent != folder.resolve() and path.parent.is_dir():
            folders.add(path.parent)
        if not path.is_file():
            # A folder that is there without its certified file holds something else under another name.
            gone = path.parent in folders
            detail = "its folder is here and the file is not" if gone else "the file is not beside the certificate"
            steps.append(Step(step, DIFFERENT if gone else ABSENT, detail))
            continue
        if path.stat().st_size > MAX_SUBJECT_BYTES:
            steps.append(Step(step, ABSENT, f"the file is above {MAX_SUBJECT_BYTES} bytes"))
            continue
        found = sha256_file(path)
        detail = f"SHA-256 {found[:12]}…"
        steps.append(judge(step, found == stated, detail, f"{detail}, certified {stated[:12]}…: another file"))
    steps += _uncertified_weights(folder, folders, names)
    return steps


def examination_steps(folder: Path, body: dict[str, Any]) -> list[Step]:
    """Compare ``examination.json`` with what the certificate says about white-box tests and their findings."""
    stated, path = body.get("examination"), folder / "examination.json"
    if not path.is_file():
        if stated is None:
            return []
        return [Step("examination", ABSENT, "repeating white-box tests needs the training code: dpaudit examine")]
    found = plain_json(read_json(path))
    if found != stated:
        return [Step("examination", DIFFERENT, "examination.json is not what the certificate says was tested")]
    lost = [f for f in found.get("findings") or () if f not in body["findings"]]
    if lost:
        return [Step("examination", DIFFERENT, "a finding of examination.json is not in the certificate")]
    count = len(found.get("tests") or ())
    return [Step("examination", EQUAL, f"{count} tests, {len(found.get('findings') or ())} findings, as recorded")]


def _uncertified_weights(folder: Path, folders: set[Path], names: set[str]) -> list[Step]:
    root = folder.resolve()
    searched = set(folders)
    if (root / "ledger.jsonl").is_file() or (root / "audit_plan.json").is_file():
        # This is a release folder, so every folder in it belongs to the run.
        searched |= {path for path in sorted(root.iterdir())[:MAX_FOLDERS] if path.is_dir() and not path.is_symlink()}
    found = {path.relative_to(root).as_posix() for parent in searched for path in parent.iterdir() if _is_weights(path)}
    detail = "weights lie beside the certified ones and are not certified"
    return [Step(f"subject {name}", DIFFERENT, detail) for name in sorted(found - names)]


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() in WEIGHT_SUFFIXES
