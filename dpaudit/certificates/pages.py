"""Pages that show a certificate, bound to it by digest: the report, the model card, and ``privacy.json``.

A page names the certificate by the digest of its statement, and the certificate holds the digest of the page. Both can
be, because the page is digested with 64 zeros in the place of the statement's digest, which is put in afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpaudit._version import __version__
from dpaudit.certificates.short_record import privacy_json
from dpaudit.certificates.statement import Predicate, Statement, Subject
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step, judge
from dpaudit.privacy.errors import DpauditError, InvalidEvidence
from dpaudit.privacy.ledger import Ledger
from dpaudit.storage.commitment import sha256_bytes
from dpaudit.storage.readers import beside, inside, parse_json, read_bytes

PLACEHOLDER = b"0" * 64
KNOWN = ("report.html", "model_card.md")
PRIVACY_JSON = "privacy.json"
TRAINER_SCHEMA = "dpaudit.trainer/1"
"""The record that a Hugging Face trainer of ours saves beside the weights, under the same name."""

Renderers = Mapping[str, Callable[[Statement], bytes]]


def bind_pages(statement: Statement, renderers: Renderers) -> tuple[Statement, dict[str, bytes]]:
    """Certificate with the digests of its pages, and the pages.

    Parameters
    ----------
    statement : Statement
        As :func:`~dpaudit.certificates.build_certificate` makes it.
    renderers : mapping
        Path of a page relative to the certificate's folder, and the function that renders it from a statement. It may
        use the statement's digest in full only.
    """
    # Keys that were just made may stand in another order than in the file, and a page that followed it would differ the
    # next time; so the statement is read back from its bytes.
    statement = Statement.from_bytes(statement.to_bytes())
    body = statement.predicate
    draft = statement.replaced(predicate=body.replaced(digest=PLACEHOLDER.decode()))
    blanks = {name: render(draft) for name, render in renderers.items()}
    pages = {name: sha256_bytes(blanks[name]) for name in sorted(blanks)}
    bound = statement.replaced(predicate=body.replaced(pages=pages)).with_digest()
    named = bound.predicate.digest.encode()
    return bound, {name: blank.replace(PLACEHOLDER, named) for name, blank in blanks.items()}


def page_steps(folder: Path, statement: Statement) -> list[Step]:
    """Compare the pages beside a certificate with the digests inside it, and ``privacy.json`` with its numbers."""
    body = statement.predicate
    pages = body.pages or {}
    steps = [_page_step(folder, name, digest, body.digest) for name, digest in sorted(pages.items())]
    for name in KNOWN:
        if name not in pages and beside(folder, name) is not None:
            detail = "this certificate does not bind it, so that it may say anything; read the certificate"
            steps.append(Step(f"page {name}", ABSENT, detail))
    for name in _records(folder, statement.subject):
        if (difference := _record_difference(folder, name, statement)) is not None:
            steps.append(Step(f"page {name}", DIFFERENT, difference))
        elif name not in pages:
            steps.append(Step(f"page {name}", EQUAL, "its numbers are those of the certificate"))
    return steps


def _page_step(folder: Path, name: str, digest: str, statement: str) -> Step:
    path = beside(folder, name)
    if path is None:
        return Step(f"page {name}", ABSENT, "it does not stand beside the certificate")
    found = sha256_bytes(read_bytes(path).replace(statement.encode(), PLACEHOLDER))
    published = f"as published, SHA-256 {digest[:12]}…"
    return judge(f"page {name}", found == digest, published, "it was changed since it was published")


def _records(folder: Path, subjects: Sequence[Subject]) -> list[str]:
    """Every ``privacy.json`` in the folders of the subjects."""
    folders = {subject.name.rpartition("/")[0] for subject in subjects}
    names = {f"{parent}/{PRIVACY_JSON}" if parent else PRIVACY_JSON for parent in folders}
    return sorted(name for name in names if _stands(folder, name))


def _stands(folder: Path, name: str) -> bool:
    try:
        return beside(folder, name) is not None
    except InvalidEvidence:  # the name of a subject that leads nowhere; its own step says so
        return False


def _record_difference(folder: Path, name: str, statement: Statement) -> str | None:
    """What a ``privacy.json`` says that the certificate does not; None when they agree."""
    data, fresh = read_bytes(inside(folder, name)), privacy_json(statement)
    if data == fresh:
        return None
    body = statement.predicate
    found, expected = parse_json(data, name=name), parse_json(fresh)
    if name in (body.pages or {}) and body.verifier.get("version") == __version__:
        return "it is not what this certificate gives"
    if isinstance(found, dict) and found.get("schema") == TRAINER_SCHEMA:
        return _trainer_difference(found, body)
    if not isinstance(found, dict) or not found.keys() >= {"statement_sha256", "verdict", "claim", "epsilon_upper"}:
        return "it is not a record of dpaudit"
    # Another version may have written fewer keys, but none may contradict the certificate.
    allowed = {key: [value] for key, value in expected.items()}
    allowed["epsilon_lower"] = [None, expected["epsilon_lower"], expected["epsilon_lower_at_verdict"]]
    for key, value in found.items():
        if value not in allowed.get(key, []):
            return f"its {key[:40]!r} is not that of the certificate"
    return None


def _trainer_difference(found: Mapping[str, Any], body: Predicate) -> str | None:
    """What a trainer's record says that the certificate does not; its weights may stand at fewer steps."""
    try:
        counted = Ledger.from_dict(found["ledger"]).merged()
    except (DpauditError, KeyError, TypeError):
        return "its ledger cannot be read"
    if body.ledger is None or not _begins(body.ledger.to_ledger().merged(), counted):
        return "its ledger is not the one that is certified, nor its beginning"
    if "noise" in found and found["noise"] is None:
        return "its noise was injected, so that nothing was private"
    if found.get("deviations") and not body.deviations:
        return "it records deviations and the certificate has none"
    return None


def _begins(whole: Ledger, part: Ledger) -> bool:
    """Whether a ledger is the other one up to some step."""
    if dataclasses.replace(whole, stages=()) != dataclasses.replace(part, stages=()):
        return False
    plain = [[dataclasses.replace(s, stop_reason=None) for s in ledger.stages] for ledger in (whole, part)]
    if not plain[1] or len(plain[1]) > len(plain[0]):
        return not plain[1]
    *before, last = plain[1]
    reached = plain[0][len(before)]
    same = dataclasses.replace(last, steps=reached.steps) == reached and last.steps <= reached.steps
    return same and before == plain[0][: len(before)]
