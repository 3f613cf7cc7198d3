"""Beacons in a certificate: verify derives the sign of life from their scores, and takes nobody's word for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.certificates.forgery import Forgery, scores_of
from tests.certificates.verify.conftest import exposed

QUIET = 0.0
"""Shift of an audit's scores in a run that leaks nothing to this attack."""


@pytest.fixture(scope="module")
def quiet(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaks nothing, with live beacons and enough controls: consistent."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("quiet") / "release")
    forgery.write_scores(scores_of(forgery, QUIET))
    forgery.write_beacons(12.0)
    forgery.write_control(400, 40.0, runs=20)
    forgery.audit_again()
    exposed(forgery)
    forgery.seal()
    return forgery.folder


def outcomes(forgery: Forgery) -> dict[str, str]:
    return {step.name: step.outcome for step in forgery.verify().steps if step.name.startswith("beacons")}


def test_a_quiet_run_is_consistent_by_its_beacons(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    report = forgery.verify()
    assert forgery.different() == {} and report.verdict == "consistent" and report.exit_code == 0
    assert set(outcomes(forgery).values()) == {"recomputed and equal"} and len(outcomes(forgery)) == 3
    line = next(line for line in report.lines if line.name == "released_model")
    assert "40 beacons of 16 copies" in line.text and "groups of 16" in line.text


def test_without_beacons_the_same_run_is_inconclusive(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    del forgery.body["beacons"], forgery.body["audit"]["plan"]["beacons"]
    forgery.write_plan()
    forgery.write_ledger()
    forgery.write_control(400, 40.0, runs=20)
    forgery.audit_again()
    report = forgery.seal().verify()
    assert report.verdict == "inconclusive" and outcomes(forgery) == {}


def test_shuffled_beacons_are_dead_whatever_is_stated(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    rows = forgery.body["beacons"]["canaries"]
    for row, score in zip(rows, np.random.default_rng(0).permutation([row[2] for row in rows]), strict=True):
        row[2] = float(score)
    stated = forgery.seal().verify()
    assert stated.exit_code == 3 and stated.derived_verdict == "inconclusive"
    assert {"beacons.life", "audit.findings", "verdict"} <= set(forgery.different())
    forgery.audit_again()  # an honest certificate of the same scores
    report = forgery.seal().verify()
    assert report.verdict == "inconclusive" and forgery.different() == {}


def test_coins_turned_to_fit_the_scores_open_no_commitment(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    forgery.write_beacons(0.0)
    rows = forgery.body["beacons"]["canaries"]
    middle = sorted(row[2] for row in rows)[20]
    for row in rows:
        row[1] = int(row[2] >= middle)
    forgery.write_control(400, 40.0, runs=20)
    forgery.audit_again()
    assert "beacons" in {finding["name"] for finding in forgery.result["findings"]}
    report = forgery.seal().verify()
    assert report.exit_code == 3 and "beacons.coins" in forgery.different()
    assert report.derived_verdict == "inconclusive"


def test_beacons_left_out_or_brought_along_are_noticed(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    del forgery.body["beacons"]
    report = forgery.seal().verify()
    assert "holds none" in forgery.different()["beacons.coins"]
    assert report.exit_code == 3 and report.derived_verdict == "inconclusive"
    forgery = new(quiet)
    del forgery.body["audit"]["plan"]["beacons"]
    forgery.write_plan()
    forgery.write_ledger()
    assert "froze none" in forgery.seal().different()["beacons.coins"]
    forgery = new(quiet)
    forgery.body["beacons"]["canaries"].pop()
    assert "holds 39" in forgery.seal().different()["beacons.coins"]


def test_a_group_claim_typed_smaller_is_different(quiet: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(quiet)
    planned = forgery.body["audit"]["plan"]["beacons"]
    if planned["group_epsilon"] is None:  # no accountant of this ledger treats groups
        planned["group_epsilon"] = 3.0
    else:
        planned["group_epsilon"] /= 2
    forgery.write_plan()
    forgery.write_ledger()
    steps = {step.name: step.outcome for step in forgery.seal().verify().steps}
    assert steps["beacons.group_claim"] != "recomputed and equal"
