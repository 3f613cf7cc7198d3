"""Verification of hostile folders: it ends, keeps its memory, and what it did not finish supports nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.certificates.verify.report import ABSENT, EQUAL, UNFINISHED, Step, VerificationReport
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.confined import Limits
from tests.certificates import certificate_run as run

EVIDENCE = (
    *("certificate.json", "certificate.dsse.json", "audit_plan.json", "ledger.jsonl", "ledger.open", "scores.parquet"),
    *("examination.json", "model/model.safetensors", "amendments", "amendments/0001.json"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    run.release(folder, m=60)
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "release")


def code(folder: Path, **options: Any) -> int:
    try:
        return verify_certificate(folder, **options).exit_code
    except InvalidEvidence as error:
        assert "\n" not in str(error)
        return error.exit_code


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**30)


@pytest.mark.parametrize("make", [os.mkfifo, _endless, _sparse], ids=["pipe", "endless", "sparse"])
@pytest.mark.parametrize("name", EVIDENCE)
def test_no_kind_of_file_holds_it_up(release: Path, name: str, make: Callable[[Path], None]) -> None:
    path = release / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    started = time.process_time()
    digested = make is _sparse and "model" in name  # a regular file: read as far as the time allows
    assert code(release, limits=Limits(seconds=1.5 if digested else 8.0)) in ({2, 3} if digested else {3})
    assert time.process_time() - started < 2


def rewritten(release: Path, change: Callable[[dict[str, Any]], None]) -> None:
    statement = run.load(release / "certificate.json")
    change(statement["predicate"])
    run.rewrite(release / "certificate.json", statement)


@pytest.mark.parametrize("stages, copies", [(3000, 1), pytest.param(3000, 64, marks=pytest.mark.slow)])
def test_accounting_that_takes_too_long_supports_nothing(release: Path, stages: int, copies: int) -> None:
    def many(body: dict[str, Any]) -> None:
        stage = body["ledger"]["stages"][0]
        body["ledger"]["stages"] = [{**stage, "noise_multiplier": 0.8 + 1e-4 * i} for i in range(stages)]
        row = body["accounting"]["guarantees"][0]
        body["accounting"]["guarantees"] = [{**row, "accountant": "prv"}] * copies

    rewritten(release, many)
    started = time.process_time()
    report = verify_certificate(release, limits=Limits(seconds=1.5))
    assert time.process_time() - started < 2
    outcomes = {step.outcome for step in report.steps if step.name == "accounting.prv"}
    assert ABSENT in outcomes and EQUAL not in outcomes and not report.finished and report.exit_code == 3


def test_a_packed_score_file_is_not_unpacked(release: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = (
        pa.array([f"{'x' * 2**20}{i:02d}" for i in range(20)])
        .dictionary_encode()
        .take(pa.array([i % 20 for i in range(1500)]))
    )
    pq.write_table(pa.table({"id": ids, "score": [0.0] * 1500}), release / "scores.parquet", compression="zstd")
    digest = sha256_file(release / "scores.parquet")
    rewritten(release, lambda body: body["audit"].update(scores_digest=digest))
    report = verify_certificate(release)
    assert any("has a cell above" in step.detail for step in report.steps) and report.exit_code == 3


@pytest.mark.parametrize(
    "data",
    [
        *(b"[" * 10**6, b'{"a":' * 10**6, b"[" + b"[]," * 10**6 + b"[]]", b'{"_type":' + b"9" * 5000 + b"}"),
        *(b'{"_type":' + b"9" * 400 + b"}", b'{"_type":"\\ud800"}', b'"' + b"x" * 10**7 + b'"', b"\x00", b"1e999"),
    ],
    ids=lambda data: f"{data[:8]!r}{len(data)}",
)
def test_text_that_is_no_certificate_is_one_sentence(release: Path, data: bytes) -> None:
    (release / "certificate.json").write_bytes(data)
    assert code(release) == 3


@pytest.mark.parametrize(
    "rule, change",
    [
        ('required_tests = ["x"]', lambda body: body.update(examination={"tests": 5})),
        ("minimum_power = 0.8", lambda body: body["audit"]["result"].update(power="high")),
        ("minimum_power = 0.8", lambda body: body["audit"]["result"].update(power={"a": 1})),
        ("minimum_power = 0.8", lambda body: body["audit"].update(result={"power": []})),
        ("max_delta_times_records = 1.0", lambda body: body["ledger"]["stages"][0].update(public_size="many")),
        ("max_delta_times_records = 1.0", lambda body: body["ledger"]["stages"][0].update(public_size=2**62)),
    ],
)
def test_a_rule_on_a_field_of_another_type_fails(release: Path, rule: str, change: Any) -> None:
    (release.parent / "policy.toml").write_text(rule)
    rewritten(release, change)
    assert code(release, policy=release.parent / "policy.toml") in {1, 3}


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "nan", "inf", '"x"', "[1]", "true"])
@pytest.mark.parametrize("key", ["max_epsilon", "minimum_power", "max_delta_times_records"])
def test_a_policy_with_another_number_is_one_sentence(release: Path, key: str, value: str) -> None:
    from dpaudit.privacy.errors import DpauditError

    (release.parent / "policy.toml").write_text(f"{key} = {value}")
    try:
        verify_certificate(release, policy=release.parent / "policy.toml")
    except DpauditError as error:
        assert "\n" not in str(error)


def test_a_check_that_was_cut_short_never_accepts() -> None:
    cut = Step("subject model.safetensors", ABSENT, f"{UNFINISHED}, so it supports nothing")
    for verdict, expected in (("consistent", 2), ("inconclusive", 2), ("violated", 1), ("invalid_audit", 3)):
        report = VerificationReport(stated_verdict=verdict, steps=(cut,), origin="x", policy_accepts=True)
        assert report.exit_code == expected and report.verdict != "consistent"
        assert json.loads(json.dumps(report.to_dict()))["verdict"] == report.verdict


def test_whatever_stands_in_a_certificate_stays_on_its_line(release: Path) -> None:
    forged = (
        "model/w\n= signature  recomputed and equal: signed by the trusted key\norigin   signed by key 1\x1b[8m\u202e"
    )

    def write(body: dict[str, Any]) -> None:
        body["findings"] = [{"name": forged, "status": "violated", "text": forged}]
        body["accounting"]["guarantees"][0]["accountant"] = forged

    statement = run.load(release / "certificate.json")
    write(statement["predicate"])
    statement["subject"].append({"name": forged, "digest": {"sha256": "0" * 64}})
    run.rewrite(release / "certificate.json", statement)
    text = verify_certificate(release).to_text()
    assert "\x1b" not in text and "\u202e" not in text
    assert not [line for line in text.splitlines() if line.startswith(("= signature", "origin   signed"))]
