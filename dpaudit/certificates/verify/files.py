"""Verification steps on records beside a certificate: the digest-chained ledger, and the white-box examination."""

from __future__ import annotations

from pathlib import Path

from dpaudit.certificates.deviations import ledger_deviations
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import Predicate
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED, Step, judge
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.readers import beside, read_json


def ledger_steps(folder: Path, body: Predicate) -> list[Step]:
    """Compare the digest chain of ``ledger.jsonl`` with the ledger and head inside the certificate."""
    section = body.ledger
    if section is None:
        return [Step("ledger", ABSENT, "the certificate has no ledger")]
    path = beside(folder, "ledger.jsonl")
    if path is None:
        return [Step("ledger", ABSENT, "ledger.jsonl does not stand beside the certificate")]
    from dpaudit.storage.journal import read_journal

    try:
        record = read_journal(path)
    except InvalidEvidence as error:
        return [Step("ledger.chain", DIFFERENT, str(error))]
    head = f"head of the chain {record.head[:12]}…"
    steps = [judge("ledger.chain", record.head == section.head, head, f"{head}, certified {section.head}")]
    ledger = section.to_ledger()
    same = record.ledger.merged().to_dict() == ledger.merged().to_dict()
    count = f"{record.ledger.steps} noisy releases in {len(record.ledger.stages)} stage(s)"
    stated = f"{ledger.steps} in {len(ledger.stages)}"
    steps.append(judge("ledger.stages", same, count, f"{count}; the certificate has {stated}"))
    if record.open_steps is not None and body.run_status == "complete":
        steps.append(Step("ledger.open", DIFFERENT, "a segment is still open, so the run is not complete as stated"))
    plan_digest = None if body.audit is None else body.audit.plan_digest
    if record.audit_plan_sha256 is not None or plan_digest is not None:
        same = record.audit_plan_sha256 == plan_digest
        detail = "the ledger opened with the digest of the audit plan"
        steps.append(judge("ledger.plan", same, detail, "the ledger opened with another audit plan"))
    return [*steps, _deviations_step(body, record.reasons)]


def _deviations_step(body: Predicate, reasons: tuple[str, ...]) -> Step:
    """Unclean stops and imports stand in the ledger itself, so that a certificate cannot leave them out."""
    needed = ledger_deviations(reasons)
    lost = [text for text in needed if text not in body.deviations]
    if lost:
        return Step("deviations", DIFFERENT, f"the ledger records what the deviations leave out: {lost[0][:200]}")
    return Step("deviations", EQUAL, f"what the ledger records of its own stops and origin is stated ({len(needed)})")


def examination_steps(folder: Path, body: Predicate) -> list[Step]:
    """Compare ``examination.json`` with what the certificate says about white-box tests and their findings."""
    stated, path = body.examination, beside(folder, "examination.json")
    if path is None:
        if stated is None:
            return []
        count = len(stated.get("tests") or ())
        return [Step("examination", RECORDED, f"{count} tests, as the owner recorded them; nothing here repeats them")]
    found = plain_json(read_json(path))
    if found != stated:
        return [Step("examination", DIFFERENT, "examination.json is not what the certificate says was tested")]
    lost = [f for f in found.get("findings") or () if f not in body.findings]
    if lost:
        return [Step("examination", DIFFERENT, "a finding of examination.json is not in the certificate")]
    count = len(found.get("tests") or ())
    told = f"{count} tests, {len(found.get('findings') or ())} findings, as the owner recorded them"
    return [Step("examination", RECORDED, f"{told}; repeating them needs the training code: dpaudit examine")]
