"""The functions of the commands: all there, loaded late, and the same as what the commands call."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dpaudit
from tests import ROOT

VERBS = (
    *("account", "attack", "audit", "bundle", "calibrate", "certify", "compare", "examine", "exposure", "init"),
    *("train", "verify"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_documented_function(verb: str) -> None:
    function = getattr(dpaudit, verb)
    assert callable(function) and verb in dir(dpaudit)
    doc = function.__doc__ or ""
    assert "Parameters" in doc and "Returns" in doc


def test_importing_dpaudit_loads_no_room() -> None:
    late = ("torch", "dpaudit.runs", "dpaudit.accounting")
    code = f"import sys, dpaudit; dir(dpaudit); print([m for m in sys.modules if m in {late}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_sub_packages_are_attributes() -> None:
    code = "import dpaudit; print(dpaudit.accounting.account is dpaudit.account, dpaudit.auditing.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "True dpaudit.auditing"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="certfy"):
        dpaudit.certfy  # noqa: B018


def test_account_and_compare_answer_from_python() -> None:
    stage = dpaudit.Stage(sampling_probability=0.01, noise_multiplier=1.0, steps=100, sampling="poisson")  # type: ignore[arg-type]
    ledger = dpaudit.Ledger(stages=(stage,), relation=dpaudit.Relation.ADD_OR_REMOVE_ONE)
    (guarantee,) = dpaudit.account(ledger, delta=1e-5)
    assert guarantee.epsilon_lower is not None and guarantee.epsilon_upper is not None
    assert 0 < guarantee.epsilon_lower <= guarantee.epsilon_upper < 2


def test_audit_reads_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = ["id,member,score", *(f"c{i},{i % 2},{(i % 2) * 2 + (i * 37 % 100) / 100}" for i in range(200))]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(rows) + "\n")
    claim = {"claimed_epsilon": 4, "delta": 1e-5}
    result = dpaudit.audit(path, **claim, relation="add_or_remove_one", unit="record")
    assert result.epsilon_lower is not None and result.epsilon_lower > 1
    for missing, given in (("relation", {"unit": "record"}), ("unit", {"relation": "add_or_remove_one"})):
        with pytest.raises(dpaudit.InvalidValue, match=f"{missing} is missing"):
            dpaudit.audit(path, **claim, **given)
