"""verify: every number is re-derived, and each kind of tampering is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.certificates.verify.report import DIFFERENT, EQUAL
from dpaudit.certificates.verify.verify import verify_here
from tests import ROOT
from tests.certificates import certificate_run as run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    run.release(folder)
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "release")


def different(folder: Path) -> dict[str, str]:
    report = verify_certificate(folder)
    assert (report.exit_code == 3) == bool([s for s in report.steps if s.outcome == DIFFERENT])
    return {step.name: step.detail for step in report.steps if step.outcome == DIFFERENT}


def test_untouched_evidence_re_derives(original: Path) -> None:
    report = verify_certificate(original / "certificate.json")
    assert report.ok
    assert report.verdict == "inconclusive"
    assert report.exit_code == 2
    assert report.origin == "internally consistent; origin not proven"
    equal = {step.name for step in report.steps if step.outcome == EQUAL}
    assert {"accounting.rdp", "audit.bound", "audit.coins", "audit.guesses", "ledger.chain", "verdict"} <= equal


def test_certificate_alone_still_re_derives(original: Path, tmp_path: Path) -> None:
    shutil.copy(original / "certificate.json", tmp_path / "c.json")
    report = verify_certificate(tmp_path / "c.json")
    assert report.ok
    equal = {step.name for step in report.steps if step.outcome == EQUAL}
    assert {"accounting.rdp", "audit.bound", "audit.coins", "verdict"} <= equal


def forge(folder: Path, change: Any) -> dict[str, str]:
    path = folder / "certificate.json"
    statement = run.load(path)
    change(statement["predicate"], statement)
    run.rewrite(path, statement)
    return different(folder)


def test_swapped_weights(release: Path) -> None:
    (release / "model" / "model.safetensors").write_bytes(b"other " * 100)
    assert "another file" in different(release)["subject model/model.safetensors"]


def test_added_weights(release: Path) -> None:
    (release / "model" / "adapter_model.safetensors").write_bytes(b"extra")
    assert "subject model/adapter_model.safetensors" in different(release)


@pytest.mark.parametrize("name", ["model/model.safetensorsx", "elsewhere/model.safetensors"])
def test_renamed_subject_does_not_hide_swapped_weights(release: Path, name: str) -> None:
    (release / "model" / "model.safetensors").write_bytes(b"other " * 100)

    def change(_: Any, statement: dict[str, Any]) -> None:
        statement["subject"][0]["name"] = name

    assert "subject model/model.safetensors" in forge(release, change)


def test_shortened_ledger(release: Path) -> None:
    lines = (release / "ledger.jsonl").read_bytes().splitlines()
    (release / "ledger.jsonl").write_bytes(b"\n".join(lines[:-1]) + b"\n")
    assert {"ledger.chain", "ledger.stages"} <= set(different(release))


def test_shortened_ledger_inside_the_certificate(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        body["ledger"]["stages"][0]["steps"] = 10

    assert {"ledger.stages", "accounting.rdp"} <= set(forge(release, change))


def test_reflipped_coins(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        body["audit"]["canaries"][0][1] ^= 1

    assert "coins were changed" in forge(release, change)["audit.coins"]


def test_edited_guesses(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        wrong = next(r for r in body["audit"]["canaries"] if r[2] == 1 and r[1] == 1)
        other = next(r for r in body["audit"]["canaries"] if r[2] == 0 and r[1] == 0)
        wrong[2], other[2] = 0, 1

    found = forge(release, change)
    assert {"audit.guesses", "audit.bound"} <= set(found)


def test_lower_epsilon(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        body["accounting"]["guarantees"][0]["epsilon_upper"] = 0.9

    assert "accounting.rdp" in forge(release, change)


def test_invented_accountant_cannot_carry_a_claim(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        body["claim"]["epsilon"] = 0.5
        body["accounting"]["guarantees"] = [
            {**body["accounting"]["guarantees"][0], "accountant": "friendly", "epsilon_upper": 0.4}
        ]

    assert "verdict" in forge(release, change)


def test_suppressed_examination(release: Path) -> None:
    record = json.loads((release / "examination.json").read_bytes())
    record["findings"] = [{"name": "noise_scale", "status": "violated", "claim": "step function", "text": "too small"}]
    (release / "examination.json").write_text(json.dumps(record))
    assert "examination" in different(release)

    def change(body: dict[str, Any], _: Any) -> None:
        body["examination"] = record

    assert "not in the certificate" in forge(release, change)["examination"]


def test_better_verdict(release: Path) -> None:
    def change(body: dict[str, Any], _: Any) -> None:
        body["verdict"]["name"] = "consistent"

    assert "verdict" in forge(release, change)


def test_other_plan(release: Path) -> None:
    plan = json.loads((release / "audit_plan.json").read_bytes())
    plan["guesses_in"] += 1
    (release / "audit_plan.json").write_text(json.dumps(plan))
    assert "audit.plan" in different(release)


def test_changed_scores(release: Path) -> None:
    data = bytearray((release / "scores.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (release / "scores.parquet").write_bytes(bytes(data))
    assert "audit.scores" in different(release)


def test_free_text_is_bound_by_the_digest(release: Path) -> None:
    path = release / "certificate.json"
    statement = run.load(path)
    statement["predicate"]["limits"][0] += " Or so they say."
    run.rewrite(path, statement, reseal=False)
    assert "digest" in different(release)


def test_path_outside_the_folder_is_refused(release: Path) -> None:
    def change(_: Any, statement: dict[str, Any]) -> None:
        statement["subject"][0]["name"] = "../../etc/passwd"

    assert "outside the run folder" in forge(release, change)["subject ../../etc/passwd"]


def test_certificate_that_is_no_certificate(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"[1,2", b'{"a":1,"a":2}', b"NaN", b"[" * 100_000, b"\xff\xfe", b'{"_type":1}'):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(InvalidEvidence):
            verify_certificate(tmp_path / "c.json")
    with pytest.raises(InvalidEvidence, match="cannot be read"):
        verify_certificate(tmp_path / "absent.json")
    with pytest.raises(InvalidEvidence, match="holds no certificate"):
        verify_certificate(tmp_path)


def test_command_needs_no_torch(original: Path) -> None:
    code = (
        "import sys; from dpaudit.cli import run\n"
        "try: run(['verify', sys.argv[1], '--json'])\n"
        "except SystemExit as e: code = e.code\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(original)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    payload = json.loads(result.stdout)
    assert payload["schema"] == "dpaudit.verify/1"
    assert payload["verdict"] == "inconclusive"
    assert all(set(step) == {"name", "result", "detail"} for step in payload["steps"])


def test_suppressed_refutation_of_the_declared_mechanism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that leaves out the curve's test is refused where that test convicts."""
    from dpaudit.certificates.verify import audit_result as _verify_audit_result

    run.release(tmp_path / "release")
    _verify_audit_result._curve.cache_clear()
    monkeypatch.setattr(_verify_audit_result, "declared_curve", lambda *_: lambda x: 1.0 - x)  # nothing may leak
    steps = {step.name: step for step in verify_here(tmp_path / "release").steps}
    assert steps["audit.result"].outcome == DIFFERENT and "declared_mechanism" in steps["audit.result"].detail
    _verify_audit_result._curve.cache_clear()
