"""What is said before the first step: an undecidable claim, how the limit chose, classes with nothing to learn."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dpaudit.runs.fit as fitting
from dpaudit import InvalidValue
from dpaudit.auditing import design
from dpaudit.auditing.decidable import errors_allowed, needs_perfection, undecidable
from dpaudit.cli import run
from dpaudit.runs.config import parse_config
from dpaudit.runs.notes import before_training
from dpaudit.runs.records import Records
from tests.runs.run_helpers import small_config, write_toml


def prepared(records: Records, *, m: int = 1000, **changes: Any) -> Any:
    plan = design(m, 2.0, 1e-5, relation="add_or_remove_one", unit="record")
    config = parse_config(small_config(**changes), "c.toml")
    return SimpleNamespace(config=config, private=records, split=None, audit_plan=plan, in_run=None)


def test_an_undecidable_claim_is_told_with_the_number_that_would_do() -> None:
    few = design(24, 3.0, 1e-5, relation="add_or_remove_one", unit="record")
    text = undecidable(few)
    assert text is not None and few.m_needed is not None
    assert text.startswith("24 canaries cannot decide the claim") and f"about {few.m_needed} canaries could" in text
    assert undecidable(design(few.m_needed, 3.0, 1e-5, relation="add_or_remove_one", unit="record")) is None
    never = design(100, 8.0, 1e-5, relation="add_or_remove_one", unit="record")
    assert never.m_needed is None and "no number of canaries in one run can" in (undecidable(never) or "")


def test_a_plan_that_allows_no_error_is_called_undecidable_by_attack() -> None:
    strict = design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record", errors=0)
    assert errors_allowed(strict) == 0 and "only where all 92 guesses are right" in (needs_perfection(strict) or "")
    loose = design(1000, 1.0, 1e-5, relation="add_or_remove_one", unit="record")
    assert (errors_allowed(loose) or 0) > 0 and needs_perfection(loose) is None
    records = prepared(Records(tuple("ab")), data__limit=None)
    records.audit_plan = strict
    assert len(before_training(records)) == 1
    records.in_run = SimpleNamespace(m=100_000, reason="")
    assert before_training(records) == ()  # who sees every update decides


def test_a_limit_says_how_it_chose_where_it_had_to_choose() -> None:
    sixty = Records(tuple(f"text {i}" for i in range(60)))
    (note,) = before_training(prepared(sixty))
    assert re.search(r'data.limit=60 takes the first rows of .*data.limit_by="random"', note)
    (note,) = before_training(prepared(sixty, data__limit_by="random"))
    assert "at random, by their text and run.seed" in note
    assert before_training(prepared(sixty, data__limit=61)) == ()
    assert before_training(prepared(sixty, data__limit=None)) == ()


def test_a_class_without_private_records_is_told() -> None:
    """A limit on a file sorted by class trained on one class, without a word."""
    records = Records(("a", "b"), (0, 0), ("ham", "spam"))
    (note,) = before_training(prepared(records, data__limit=None))
    assert "no private record is labelled spam" in note
    assert before_training(prepared(Records(("a", "b"), (0, 1), ("ham", "spam")), data__limit=None)) == ()


@pytest.mark.parametrize("command", ["train", "certify"])
def test_it_is_said_on_standard_error_before_the_first_step(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> None:
        raise InvalidValue("the first step would come now.")

    monkeypatch.setattr(fitting, "fit", stop)
    config = write_toml(tmp_path / "c.toml", small_config())
    with pytest.raises(SystemExit):
        run([command, str(config), "--out", str(tmp_path / "run"), "--json"])
    shown = capsys.readouterr()
    first, second, last = shown.err.splitlines()
    assert shown.out == "" and first.startswith("dpaudit: note: data.limit=60 takes the first rows")
    assert second.startswith("dpaudit: note: 24 canaries cannot decide the claim") and "canaries could." in second
    assert last == "dpaudit: the first step would come now."
