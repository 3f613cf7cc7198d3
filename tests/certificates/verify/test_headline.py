"""The first lines of ``verify`` for a reader who reads no further."""

from __future__ import annotations

from pathlib import Path

from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.certificates.verify.report import VerificationReport
from tests.certificates.certificate_run import release


def test_outcome_claim_counts_files_and_origin_come_first(tmp_path: Path) -> None:
    report = verify_certificate(release(tmp_path / "release"))
    outcome, claim, checks, origin = report.to_text().splitlines()[:4]
    assert outcome.startswith("INCONCLUSIVE, level ")
    assert claim == "Claim: epsilon <= 3 at delta = 1e-5 for one paragraph (add_or_remove_one)."
    equal = sum(step.outcome == "recomputed and equal" for step in report.steps)
    assert checks.startswith(f"Checks: {equal} derived again and equal, 0 different,") and "1 of 1 are those" in checks
    assert "origin not proven" in origin
    assert VerificationReport.from_plain(report.to_plain()) == report
    assert report.to_dict()["headline"] == [outcome, claim, checks, origin]


def test_a_difference_is_the_first_thing_said(tmp_path: Path) -> None:
    path = release(tmp_path / "release")
    (path.parent / "model" / "model.safetensors").write_bytes(b"other weights")
    report = verify_certificate(path)
    first, *_ = report.to_text().splitlines()
    assert first.startswith("DO NOT RELY ON THIS CERTIFICATE: 1 of its statements") and "model.safetensors" in first
    assert "0 of 1 are those" in report.headline[2]
