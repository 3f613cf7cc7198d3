"""Resuming Hugging Face's trainers: the ledger, the plan and the data must be those of the run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dpaudit import InvalidEvidence, Ledger, MemoryJournal, PrivacyRefusal, Stage
from dpaudit.storage.journal import DiskJournal, read_journal, read_ledger
from dpaudit.trainers.huggingface.continuation import data_digest, refuse_another_plan
from tests.trainers.huggingface import test_trainer as first
from tests.trainers.zeroth_order import test_zo_trainer as zeroth

LEDGER = Path("privacy") / "ledger.jsonl"


class At(TrainerCallback):  # type: ignore[misc]
    """Acts at the end of one step."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == self.step:
            self.act()
        return control


def stop() -> None:
    raise RuntimeError("stopped")


def first_order(folder: Path, **options: Any) -> Any:
    return first.trainer(folder, args=first.arguments(folder, save_strategy="steps", save_steps=2), **options)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Five steps planned, a checkpoint after two, stopped after three."""
    with pytest.raises(RuntimeError, match="stopped"):
        first_order(tmp_path, callbacks=[At(3, stop)]).train()
    assert read_ledger(tmp_path / LEDGER).steps == 3
    return tmp_path


@pytest.fixture
def stopped_zo(tmp_path: Path) -> Path:
    """Six steps planned, stopped after three."""
    with pytest.raises(RuntimeError, match="stopped"):
        zeroth.trainer(tmp_path, callbacks=[At(3, stop)]).train()
    return tmp_path


def resume(folder: Path, data: Any = None, **options: Any) -> Any:
    run = first_order(folder, **options)
    run.train_dataset = run.train_dataset if data is None else data
    run.train(resume_from_checkpoint=True)
    return run


def test_a_checkpoint_without_its_ledger_is_refused_with_what_to_do(stopped: Path) -> None:
    (stopped / LEDGER).unlink()
    with pytest.raises(
        InvalidEvidence, match=r"is missing and the checkpoint knows of 2 counted .* only where no step"
    ):
        resume(stopped)
    assert not (stopped / LEDGER).exists()
    shutil.copyfile(stopped / "checkpoint-2" / "ledger.jsonl", stopped / LEDGER)  # the caller says so
    assert resume(stopped).ledger.steps == 5


def test_a_ledger_shorter_than_the_checkpoint_or_of_another_run_is_refused(stopped: Path, tmp_path: Path) -> None:
    path = stopped / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    with pytest.raises(InvalidEvidence, match="counts 0 steps and the checkpoint 2"):
        resume(stopped)
    with DiskJournal(path, relation="add_or_remove_one", unit="record", audit_plan_sha256=None) as journal:
        journal.append(dataclasses.replace(first.PLAN.stage(), steps=3), "x")
    with pytest.raises(InvalidEvidence, match="does not hold the line at which the checkpoint"):
        resume(stopped)
    path.write_bytes(b"".join(lines))
    assert resume(stopped).ledger.steps == 5


def test_a_lost_open_segment_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskJournal, "seal", lambda self, reason: self.close())  # as a kill would
    with pytest.raises(RuntimeError):
        first_order(stopped, callbacks=[At(3, stop)]).train(resume_from_checkpoint=True)
    monkeypatch.undo()
    assert (stopped / "privacy" / "ledger.open").exists()
    (stopped / "privacy" / "ledger.open").unlink()
    with pytest.raises(InvalidEvidence, match=r"ledger\.open is missing"):
        resume(stopped)


def test_a_given_journal_must_hold_the_steps_of_the_checkpoint(stopped: Path) -> None:
    (stopped / "own").mkdir()
    with (
        DiskJournal(
            stopped / "own" / "l.jsonl", relation="add_or_remove_one", unit="record", audit_plan_sha256=None
        ) as journal,
        pytest.raises(InvalidEvidence, match=r"l\.jsonl counts 0 steps and the checkpoint 2"),
    ):
        resume(stopped, journal=journal)


def test_a_damaged_record_is_one_sentence(stopped: Path) -> None:
    for content in ("", "[]", "{}", '{"ledger": 3}'):
        (stopped / "checkpoint-2" / "privacy.json").write_text(content)
        with pytest.raises(InvalidEvidence, match="so that the spent budget is unknown"):
            resume(stopped)


def test_other_data_are_refused_where_they_can_be_compared(stopped: Path) -> None:
    rows = [*first.RECORDS[:-1], {"input_ids": [1, 2, 3]}]
    for other in (rows, first.RECORDS[:-1]):
        with pytest.raises(PrivacyRefusal, match="train_dataset is not the one"):
            resume(stopped, other)
    key = stopped / "_private" / "data.key"
    assert {p.stat().st_mode & 0o777 for p in key.parent.iterdir()} == {0o600}

    class Drawn(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return first.N

        def __getitem__(self, index: int) -> dict[str, Any]:
            return first.RECORDS[index]

    assert resume(stopped, Drawn()).ledger.steps == 5


def test_a_refusal_before_the_first_step_leaves_the_folder_usable(tmp_path: Path) -> None:
    def coupled(net: Any, batch: Any) -> Any:
        losses = first.per_example_losses(net, batch)
        return losses * losses.mean()

    with pytest.raises(PrivacyRefusal, match="loss_fn"):
        first_order(tmp_path, per_example_loss=coupled).train()
    run = first_order(tmp_path, plan=dataclasses.replace(first.PLAN, noise_multiplier=2.0))
    run.train()
    assert run.ledger.steps == 5
    with pytest.raises(PrivacyRefusal, match="already holds a ledger"):
        first_order(tmp_path).train()


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_finishes_the_step_and_saves_a_checkpoint(tmp_path: Path, number: int, error: type) -> None:
    with pytest.raises(error):
        first_order(tmp_path, callbacks=[At(3, lambda: os.kill(os.getpid(), number))]).train()
    record = json.loads((tmp_path / "checkpoint-3" / "privacy.json").read_text())
    assert record["ledger"]["stages"][0]["steps"] == 3
    assert record["head"] == read_journal(tmp_path / LEDGER).head
    assert resume(tmp_path).state.global_step == 5


def test_the_ledger_is_bound_to_an_audit_plan(tmp_path: Path) -> None:
    first_order(tmp_path, audit_plan_sha256="ab" * 32).train()
    assert read_journal(tmp_path / LEDGER).audit_plan_sha256 == "ab" * 32
    zeroth.trainer(tmp_path / "zo", audit_plan_sha256="cd" * 32).train()
    assert read_journal(tmp_path / "zo" / LEDGER).audit_plan_sha256 == "cd" * 32


# -- zeroth order -----------------------------------------------------------------------------------------------------


def test_zo_goes_on_after_a_stop(stopped_zo: Path) -> None:
    again = zeroth.trainer(stopped_zo)
    again.train(resume_from_checkpoint=True)
    assert again.ledger.steps == 6


def test_zo_without_its_ledger_or_with_a_shorter_one_is_refused(stopped_zo: Path) -> None:
    path = stopped_zo / LEDGER
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InvalidEvidence, match="is missing and the checkpoint knows of 3 counted steps"):
        zeroth.trainer(stopped_zo).train(resume_from_checkpoint=True)
    with pytest.raises(PrivacyRefusal, match="a log of 3 released steps and no ledger"):
        zeroth.trainer(stopped_zo).train()
    path.write_bytes(content.splitlines(keepends=True)[0])
    with pytest.raises(InvalidEvidence, match="counts 0 steps and the checkpoint 3"):
        zeroth.trainer(stopped_zo).train(resume_from_checkpoint=True)
    with pytest.raises(InvalidEvidence, match="counts 0 steps and the checkpoint 3"):
        zeroth.trainer(stopped_zo, journal=MemoryJournal()).train(resume_from_checkpoint=True)


def test_zo_with_another_plan_or_other_data_is_refused(stopped_zo: Path) -> None:
    other = dataclasses.replace(zeroth.PRIVACY, noise_multiplier=0.1)
    with pytest.raises(PrivacyRefusal, match=r"noise_multiplier=0\.1 differs from the 1\.0"):
        zeroth.trainer(stopped_zo, privacy=other).train(resume_from_checkpoint=True)
    run = zeroth.trainer(stopped_zo)
    run.train_dataset = zeroth.ROWS[:-1]
    with pytest.raises(PrivacyRefusal, match="train_dataset is not the one"):
        run.train(resume_from_checkpoint=True)


def test_zo_finishes_the_step_on_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        zeroth.trainer(tmp_path, callbacks=[At(4, lambda: os.kill(os.getpid(), signal.SIGINT))]).train()
    assert read_ledger(tmp_path / LEDGER).steps == 4
    again = zeroth.trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.ledger.steps == 6


# -- the pieces -------------------------------------------------------------------------------------------------------


def stage(steps: int, sigma: float = 1.0) -> Stage:
    return Stage(sampling_probability=0.1, noise_multiplier=sigma, steps=steps, sampling="poisson")


def ledger(*stages: Stage) -> Ledger:
    return Ledger(stages=stages, relation="add_or_remove_one")


@pytest.mark.parametrize(
    "counted, planned, says",
    [
        (ledger(), [stage(3)], None),
        (ledger(stage(2), stage(1)), [stage(3)], None),
        (ledger(stage(3), stage(1, 2.0)), [stage(3), stage(4, 2.0)], None),
        (ledger(stage(5)), [stage(3), stage(4)], None),
        (ledger(stage(4)), [stage(3)], "counts 4 steps and the plan has 3"),
        (ledger(stage(3), stage(1)), [stage(3), stage(4, 2.0)], "noise_multiplier=2.0 differs from the 1.0"),
        (ledger(stage(1, 2.0)), [stage(3)], "noise_multiplier=1.0 differs from the 2.0"),
    ],
)
def test_a_ledger_must_be_the_beginning_of_the_plan(counted: Ledger, planned: list[Stage], says: str | None) -> None:
    if says is None:
        refuse_another_plan(counted, planned)
        return
    with pytest.raises(PrivacyRefusal, match=says):
        refuse_another_plan(counted, planned)


def test_digests_follow_every_number_and_no_container() -> None:
    key = b"k" * 32
    rows: list[Any] = [{"a": [1, 2], "b": "x"}, {"a": torch.arange(3), "b": np.float64(0.5)}]
    one = data_digest(rows, key)
    assert one == data_digest(tuple(rows), key) and one is not None
    assert data_digest(rows, b"l" * 32) != one
    for changed in (
        rows[:1],
        rows[::-1],
        [rows[0], {"a": torch.arange(3), "b": np.float64(0.25)}],
        [rows[0], {"a": torch.arange(3).float(), "b": np.float64(0.5)}],
    ):
        assert data_digest(changed, key) not in (one, None)
    assert data_digest([object()], key) is None
    assert data_digest(range(3), key) is None
