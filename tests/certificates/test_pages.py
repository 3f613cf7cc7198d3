"""Pages beside a certificate: bound by digest, compared with its numbers, and any edit is found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dpaudit.certificates.build import build_certificate
from dpaudit.certificates.pages import bind_pages, page_steps
from dpaudit.certificates.short_record import privacy_json
from dpaudit.certificates.statement import Statement
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL
from dpaudit.reports import model_card, render_report
from tests.certificates import certificate_run as run

RENDERERS: dict[str, Callable[[Mapping[str, Any]], bytes]] = {
    "model/privacy.json": privacy_json,
    "model_card.md": lambda statement: model_card(statement).encode(),
    "report.html": lambda statement: render_report(statement).encode(),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    statement, pages = bind_pages(build_certificate(run.evidence(folder, m=60)), RENDERERS)
    for name, page in pages.items():
        (folder / name).write_bytes(page)
    (folder / "certificate.json").write_bytes(statement.to_bytes())
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "release")


def outcomes(folder: Path) -> dict[str, str]:
    statement = Statement.from_bytes((folder / "certificate.json").read_bytes())
    return {step.name.removeprefix("page "): step.outcome for step in page_steps(folder, statement)}


def test_pages_and_certificate_name_each_other(release: Path) -> None:
    report = verify_certificate(release)
    assert report.ok, report.to_text()
    assert outcomes(release) == dict.fromkeys(RENDERERS, EQUAL)
    statement = Statement.from_bytes((release / "certificate.json").read_bytes())
    assert statement.predicate.digest == statement.digest
    for name in RENDERERS:
        assert statement.digest.encode() in (release / name).read_bytes()
        assert b"0" * 64 not in (release / name).read_bytes()


def test_binding_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    statement = build_certificate(run.evidence(tmp_path, m=60))
    assert bind_pages(statement, RENDERERS) == bind_pages(statement, RENDERERS)
    assert "pages" not in statement.to_plain()["predicate"]
    body = statement.predicate
    turned = body.replaced(provenance=dict(reversed(body.provenance.items())))
    assert bind_pages(statement.replaced(predicate=turned), RENDERERS) == bind_pages(statement, RENDERERS)


@pytest.mark.parametrize("name", RENDERERS)
@pytest.mark.parametrize("change", ["edit", "cut", "empty", "pipe", "link", "folder"])
def test_any_change_to_a_page_is_found(release: Path, name: str, change: str) -> None:
    path = release / name
    data = path.read_bytes()
    path.unlink()
    match change:
        case "edit":
            changed = data.replace(b"Inconclusive", b"Consistent").replace(b'"inconclusive"', b'"consistent"')
            assert changed != data
            path.write_bytes(changed)
        case "cut":
            path.write_bytes(data[:-2])
        case "empty":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    assert verify_certificate(release).exit_code == 3


def test_a_page_of_another_certificate_is_found(release: Path, tmp_path: Path) -> None:
    other = build_certificate(run.evidence(tmp_path / "other", m=64))
    for name, page in bind_pages(other, RENDERERS)[1].items():
        (release / name).write_bytes(page)
    assert outcomes(release) == dict.fromkeys(RENDERERS, DIFFERENT)


def test_pages_may_be_left_out(release: Path) -> None:
    for name in RENDERERS:
        (release / name).unlink()
    assert verify_certificate(release).ok
    assert outcomes(release) == dict.fromkeys(RENDERERS, ABSENT)


@pytest.fixture
def unbound(release: Path) -> Path:
    """As certificates before this version are, and those of other runs whose pages are rendered later."""
    statement = run.load(release / "certificate.json")
    del statement["predicate"]["pages"]
    run.rewrite(release / "certificate.json", statement)
    (release / "model" / "privacy.json").write_bytes(privacy_json(Statement.from_plain(statement)))
    return release


def test_a_page_that_is_not_bound_is_said_to_be_so(unbound: Path) -> None:
    assert verify_certificate(unbound).ok
    assert outcomes(unbound) == {"report.html": ABSENT, "model_card.md": ABSENT, "model/privacy.json": EQUAL}


@pytest.mark.parametrize(
    "changes",
    [
        *({"verdict": "consistent"}, {"epsilon_upper": 0.1}, {"claim": None}, {"limits": []}, {"epsilon_lower": 99.0}),
        *({"statement_sha256": "0" * 64}, {"certified_by": "an authority"}, {"mechanism": {}}, {"verdict": 1}),
    ],
)
def test_privacy_json_may_not_contradict_the_certificate(unbound: Path, changes: dict[str, Any]) -> None:
    path = unbound / "model" / "privacy.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
    assert outcomes(unbound)["model/privacy.json"] == DIFFERENT
    assert verify_certificate(unbound).exit_code == 3


def trainer_record(folder: Path, **changes: Any) -> None:
    ledger = {k: v for k, v in run.load(folder / "certificate.json")["predicate"]["ledger"].items() if k != "head"}
    record = {"schema": "dpaudit.trainer/1", "status": "completed", "ledger": ledger, "noise": "x", "deviations": []}
    (folder / "model" / "privacy.json").write_text(json.dumps({**record, **changes}))


def test_the_record_of_a_trainer_may_stand_beside_its_weights(unbound: Path) -> None:
    trainer_record(unbound)
    assert outcomes(unbound)["model/privacy.json"] == EQUAL
    early = json.loads((unbound / "model" / "privacy.json").read_bytes())["ledger"]
    early["stages"][0]["steps"] -= 1
    trainer_record(unbound, ledger=early)
    assert outcomes(unbound)["model/privacy.json"] == EQUAL
    trainer_record(unbound, ledger={**early, "stages": []})
    assert outcomes(unbound)["model/privacy.json"] == EQUAL


@pytest.mark.parametrize(
    "changes",
    [
        *({"ledger": None}, {"ledger": {}}, {"ledger": 1}, {"noise": None}, {"deviations": ["allow_nonprivate_logs"]}),
        *({"steps": 10**6}, {"noise_multiplier": 5.0}, {"unit": "author"}, {"twice": True}),
    ],
)
def test_the_record_of_a_trainer_may_not_contradict_the_certificate(unbound: Path, changes: dict[str, Any]) -> None:
    trainer_record(unbound)
    ledger = json.loads((unbound / "model" / "privacy.json").read_bytes())["ledger"]
    if "unit" in changes:
        changes = {"ledger": {**ledger, **changes}}
    elif "twice" in changes:
        changes = {
            "ledger": {**ledger, "stages": [*ledger["stages"], {**ledger["stages"][0], "noise_multiplier": 9.0}]}
        }
    elif not changes.keys() & {"ledger", "noise", "deviations"}:
        changes = {"ledger": {**ledger, "stages": [{**ledger["stages"][0], **changes}]}}
    trainer_record(unbound, **changes)
    assert outcomes(unbound)["model/privacy.json"] == DIFFERENT


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"verdict":"inconclusive"}', b"[" * 1000])
def test_privacy_json_that_is_none_is_found(unbound: Path, data: bytes) -> None:
    (unbound / "model" / "privacy.json").write_bytes(data)
    assert verify_certificate(unbound).exit_code == 3
