"""A full disk under DPTrainer: one sentence, and no step that was charged and applied is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from dpaudit.privacy.errors import StorageFailed
from dpaudit.storage.journal import DiskJournal, read_ledger
from dpaudit.trainers.huggingface import room
from tests.trainers.huggingface import test_trainer as first
from tests.trainers.huggingface.test_continuation import LEDGER, At


def trainer(folder: Path, *, callbacks: Any = (), **arguments: Any) -> Any:
    return first.trainer(folder, args=first.arguments(folder, **arguments), callbacks=list(callbacks))


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def on_call(number: int, real: Callable[..., Any], failure: Callable[..., Any] = full) -> Callable[..., Any]:
    """``real``, whose call of that number fails."""
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return failure() if calls == number else real(*arguments, **options)

    return counted


def weights_of(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return torch.cat([value.flatten() for _, value in sorted(load_file(folder / "model.safetensors").items())])


def test_no_room_for_a_checkpoint_is_said_before_a_step_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFailed, match=r"no room for a checkpoint of about \d+ MB .* free space") as refusal:
        trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    assert "\n" not in str(refusal.value)
    assert read_ledger(tmp_path / LEDGER).steps == 0
    assert not list(tmp_path.rglob("room.tmp"))


def test_a_ledger_that_cannot_be_written_ends_training_with_the_steps_before_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any) -> None:
        raise StorageFailed.of(Path("ledger.open"), OSError(errno.ENOSPC, "No space left on device"))

    real = DiskJournal.count
    counted = 0

    def count(self: Any) -> None:
        nonlocal counted
        counted += 1
        failing(self) if counted == 4 else real(self)

    monkeypatch.setattr(DiskJournal, "count", count)
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(StorageFailed, match=r"no space left .* the 3 steps .* are saved in checkpoint-3"):
        run.train()
    assert read_ledger(tmp_path / LEDGER).steps == 3
    in_memory = torch.cat([p.detach().flatten() for _, p in sorted(run.model.named_parameters())])
    assert torch.equal(weights_of(tmp_path / "checkpoint-3"), in_memory)
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train(resume_from_checkpoint=True)
    assert run.ledger.steps == 5 and run.state.global_step == 5  # no charged step was lost
    assert not list(tmp_path.rglob("room.tmp"))


def of_a_library() -> Any:
    raise RuntimeError("unexpected pos 5885440 vs 5885328")


@pytest.mark.parametrize("failure", [full, pytest.param(of_a_library, marks=pytest.mark.slow)])
def test_a_checkpoint_that_does_not_fit_is_written_into_the_reserved_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., Any]
) -> None:
    """Libraries raise errors of their own: a full disk is then told by what is free."""
    monkeypatch.setattr(Trainer, "_save_checkpoint", on_call(1, Trainer._save_checkpoint, failure))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    monkeypatch.setattr(room.CheckpointRoom, "reserve", on_call(2, room.CheckpointRoom.reserve))
    with pytest.raises(StorageFailed, match="the 2 steps that were counted are saved in checkpoint-2"):
        trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train(resume_from_checkpoint=True)
    assert run.ledger.steps == 5 and run.state.global_step == 5


def test_a_ledger_that_cannot_be_sealed_for_a_checkpoint_leaves_one_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Any:
        raise StorageFailed.of(Path("ledger.jsonl"), OSError(errno.ENOSPC, "No space left on device"))

    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    monkeypatch.setattr(DiskJournal, "_append", on_call(1, DiskJournal._append, failing))
    monkeypatch.setattr(room.CheckpointRoom, "reserve", on_call(3, room.CheckpointRoom.reserve))
    with pytest.raises(
        StorageFailed, match=r"ledger\.jsonl .*; the 2 steps that were counted are saved in checkpoint-2"
    ):
        run.train()
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    monkeypatch.undo()
    run.train(resume_from_checkpoint=True)
    assert run.ledger.steps == 5 and run.state.global_step == 5


def test_steps_that_cannot_be_saved_are_said_to_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(StorageFailed, match="the last 2 steps that were counted could not be saved either"):
        run.train()


def test_a_writer_of_logs_that_meets_a_full_disk_loses_no_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=4, callbacks=[At(3, lambda *rest: full())])
    with pytest.raises(StorageFailed, match="the 3 steps that were counted are saved in checkpoint-3"):
        run.train()
    assert read_ledger(tmp_path / LEDGER).steps == 3


def test_other_failures_are_not_called_a_full_disk(tmp_path: Path) -> None:
    def broken(*rest: Any) -> None:
        raise OSError(errno.ECONNRESET, "connection reset")

    run = trainer(tmp_path, save_strategy="steps", save_steps=4, callbacks=[At(3, broken)])
    with pytest.raises(OSError, match="connection reset"):
        run.train()


def test_a_run_without_checkpoints_says_that_the_model_holds_its_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="no", callbacks=[At(3, lambda *rest: full())])
    with pytest.raises(StorageFailed, match="the model in memory holds the 3 steps"):
        run.train()


def test_a_size_counts_tied_weights_once_and_adapters_alone() -> None:
    layer = torch.nn.Linear(100, 100)
    tied = torch.nn.ModuleList([layer, layer])
    assert room.checkpoint_size(tied) == room.checkpoint_size(torch.nn.ModuleList([layer]))
    least = 10_100 * (4 + 8)
    assert least < room.checkpoint_size(layer) < least + room.SLACK + 20_000
