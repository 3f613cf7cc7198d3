"""Certificates that an earlier dpaudit wrote still verify, and what has changed since then supports nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED
from dpaudit.certificates.verify.verify import verify_here
from dpaudit.trainers import noise_statement
from tests import ROOT
from tests.certificates import certificate_run as run

DATA = ROOT / "tests" / "data" / "certificates"


@pytest.mark.parametrize("name", ["default_run", "control_and_holdout"])
def test_a_certificate_of_an_earlier_version_verifies(name: str) -> None:
    report = verify_here(DATA / name)
    assert report.ok and report.exit_code == 2, report.to_text()
    steps = {step.name: step.outcome for step in report.steps}
    for step in (
        "ledger.chain",
        "audit.coins",
        "audit.result",
        "audit.design",
        "exposure",
        "verdict",
    ):
        assert steps[step] == EQUAL, step
    assert report.power_lower is None


def test_words_that_have_changed_since_support_nothing_and_refute_nothing() -> None:
    by_name = {
        name: {step.name: step for step in verify_here(DATA / name).steps}["audit.findings"]
        for name in ("default_run", "control_and_holdout")
    }
    assert by_name["default_run"].outcome == EQUAL
    changed = by_name["control_and_holdout"]
    assert changed.outcome == ABSENT and changed.detail.startswith("the text of finding null_scores is not the one")


def test_the_default_run_re_derives_to_the_letter() -> None:
    steps = {step.name: step.outcome for step in verify_here(DATA / "default_run").steps}
    assert {steps[name] for name in ("audit.claim", "audit.plan.forecast", "accounting.prv", "accounting.rdp")} == {
        EQUAL
    }
    assert DIFFERENT not in steps.values()


def test_a_control_without_a_binding_and_a_finding_of_the_earlier_form_are_named() -> None:
    report = verify_here(DATA / "control_and_holdout")
    steps = {step.name: step for step in report.steps}
    assert steps["audit.power"].outcome == ABSENT and "not bound to this run" in steps["audit.power"].detail
    assert steps["verdict.reasons"].outcome == RECORDED
    body = json.loads((DATA / "control_and_holdout" / "certificate.json").read_bytes())["predicate"]
    assert "status" not in body["findings"][0] and body["findings"][0]["verdict"] == "note"


def test_a_certificate_whose_noise_came_from_an_earlier_generator_verifies(tmp_path: Path) -> None:
    told = {
        "noise_source": "Gaussian from operating-system entropy, a stream apart from sampling, coins and public seeds",
        "noise_generator": "SFC64 on a CPU (256-bit key from the operating system, a fresh one every 2^20 values),"
        " Philox on a CUDA device (64-bit key, a fresh one every tensor); neither is a cryptographic generator",
        "noise_support_sigma": 8.57,
        "noise_mass_beyond_support": 1.0e-17,
        "noise_not_proven": [
            "values are floating-point numbers on a lattice and not the real-valued Gaussian of the accounting",
            "who sees noise alone could in principle predict noise under the same key",
        ],
    }
    run.release(tmp_path / "earlier", mechanism={**run.MECHANISM, **told})
    run.release(tmp_path / "now", mechanism={**run.MECHANISM, **noise_statement()})
    earlier, now = verify_here(tmp_path / "earlier"), verify_here(tmp_path / "now")
    assert earlier.ok and earlier.exit_code == now.exit_code, earlier.to_text()
    assert [(s.name, s.outcome) for s in earlier.steps] == [(s.name, s.outcome) for s in now.steps]
    outcomes = {s.name: s.outcome for s in earlier.steps}
    assert outcomes["mechanism"] == RECORDED and outcomes["limits"] == EQUAL
