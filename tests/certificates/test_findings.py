"""Findings of an examination in a certificate and before a policy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpaudit.accounting import from_triples
from dpaudit.attacks.examiner.values import ExamTest, Excluded, Findings, found
from dpaudit.certificates import Claim, certify_run
from dpaudit.certificates.policy import Policy, _audit_failures
from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.examine import write_examination


def result(*names: str) -> Findings:
    test = ExamTest(name="noise_scale", group="noise", evidence="", excludes="less noise", size=0.9, unit="sigma")
    findings = tuple(found(name, "record 17 of 3.2 C", records=(17,)) for name in names)
    return Findings(
        findings=findings, tests=(test,), untested=("ledger: none",), alpha=0.0, excluded=Excluded.by([test])
    )


def certified(release: Path, **more: Any) -> Any:
    (release / "model").mkdir(parents=True, exist_ok=True)
    (release / "model" / "w.bin").write_bytes(b"0")
    return certify_run(
        release, source="log",
        ledger=from_triples([(2.2, 0.1, 20)], relation="add_or_remove_one", unit="row", sampling="poisson"),
        claim=Claim(epsilon=3.0, delta=1e-5, relation="add_or_remove_one", unit="row", max_records_per_unit=1),
        mechanism={"algorithm": "x", "clipping_norm": 1.0, "normaliser": "6", "noise_source": "torch"},
        trust_model="central", release_scope="last iterate", accountants=("rdp",), **more,
    ).predicate  # fmt: skip


def test_a_result_flips_the_verdict_and_leaves_its_witness_behind(tmp_path: Path) -> None:
    body = certified(tmp_path / "whole", findings=result("clipped_after_averaging"))
    assert body.verdict.name == "violated" and body.examination["tests"][0]["name"] == "noise_scale"
    assert body.examination["excluded"]["noise"] == 0.9 and "17" not in str(body.findings)
    listed = certified(tmp_path / "listed", findings=result("unclipped").findings)
    assert listed.verdict.name == "violated" and listed.examination is None


def test_conditional_findings_convict_nobody_and_keep_their_condition(tmp_path: Path) -> None:
    body = certified(tmp_path / "seeds", findings=result("noise_public_seed"))
    assert body.verdict.name == "inconclusive" and "seed" in body.findings[0]["condition"]
    facts: Any = SimpleNamespace(body=body, power_lower=None, steps=(), verdict=body.verdict.name, level=None)
    refused = list(_audit_failures(Policy(allow_conditional=False), facts))
    assert any("noise_public_seed" in sentence for sentence in refused)
    assert not any("noise_public_seed" in sentence for sentence in _audit_failures(Policy(), facts))


def test_an_examination_left_in_the_folder_is_taken_from_there(tmp_path: Path) -> None:
    release = tmp_path / "left"
    with pytest.raises(InvalidValue, match="no folder"):
        write_examination(result(), release)
    release.mkdir()
    write_examination(result("norm_underestimated"), release)
    body = certified(release)
    assert body.verdict.name == "violated" and body.findings[0]["name"] == "norm_underestimated"
    assert body.examination["untested"] == ["ledger: none"]
    with pytest.raises(InvalidValue, match="before the run is certified"):
        write_examination(result(), release)
