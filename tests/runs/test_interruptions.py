"""Ctrl-C and full disks: one sentence, and no step that was applied is lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dpaudit.runs.fit as fitting
import dpaudit.storage.files as files
import dpaudit.storage.journal as journal
from dpaudit.runs.checkpoint import read_checkpoint
from dpaudit.runs.steps_log import StepsLog
from dpaudit.storage.journal import read_journal
from dpaudit.storage.run_folder import RunFolder, read_record
from tests.runs.run_helpers import Outcome, run_cli, small_config, write_toml


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "check_sensitivity", lambda *arguments: None)
    monkeypatch.setattr(fitting, "public_quality", lambda *arguments: 1.0)
    monkeypatch.setattr(journal, "_FLUSH_SHARE", 1e9)  # no step reserved ahead, however slow the disk is


def command(root: Path, method: str, name: str = "train") -> Outcome:
    config = small_config(privacy__method=method, privacy__steps=6, run__checkpoints=2)
    if method == "dp-zoso":
        config["zeroth_order"] = {"stages": 2, "scale": 1e-3, "proximal": 1e-3}
    return run_cli(name, write_toml(root / "c.toml", config), "--out", root / "run")


def after_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Act in the callback of the ``number``-th step from here."""
    seen: list[int] = []
    real = StepsLog.write

    def write(self: StepsLog, step: int, private: Any) -> None:
        real(self, step, private)
        seen.append(step)
        if len(seen) == number:
            act()

    patch.setattr(StepsLog, "write", write)


def state(root: Path) -> tuple[int, int]:
    """Counted steps, and those in the last checkpoint."""
    counted = read_journal(root / "run" / "release" / "ledger.jsonl").ledger.steps
    return counted, read_checkpoint(root / "run" / "private" / "checkpoint.pt").steps


def goes_on(root: Path, method: str) -> None:
    outcome = command(root, method)
    assert outcome.code == 0, outcome.error
    assert state(root) == (6, 6)
    record = read_record(RunFolder.open(root / "run"))
    assert record.facts["steps_lost"] == 0 and record.error is None
    left = {p.name for p in (root / "run").rglob("*") if p.is_file()}
    assert not any("tmp" in name or "lock" in name or "open" in name for name in left), left


@pytest.mark.parametrize(
    "method, number, code",
    [("dp-adam", signal.SIGINT, 130), pytest.param("dp-zoso", signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, number: int, code: int
) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, 4, lambda: os.kill(os.getpid(), number))
        outcome = command(tmp_path, method)
    name = signal.Signals(number).name
    assert outcome.code == code
    assert f"stopped by {name} after 4 of 6 private steps, which are saved; run the same command again" in outcome.error
    assert state(tmp_path) == (4, 4)
    assert name in str(read_record(RunFolder.open(tmp_path / "run")).error)
    goes_on(tmp_path, method)


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass

    with monkeypatch.context() as patch:
        after_step(patch, 4, twice)
        with pytest.raises(BaseException):  # noqa: B017  click turns it into Abort
            command(tmp_path, "dp-adam")
    assert state(tmp_path) == (4, 3)
    assert "stopped at once" in str(read_record(RunFolder.open(tmp_path / "run")).error)


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def once_for(patch: pytest.MonkeyPatch, where: Any, name: str, wanted: Callable[..., bool], times: int = 1) -> None:
    """Let the next calls that are ``wanted`` meet a full disk."""
    real, left = getattr(where, name), [times]

    def call(*arguments: Any, **options: Any) -> Any:
        if left[0] and wanted(*arguments, **options):
            left[0] -= 1
            full()
        return real(*arguments, **options)

    patch.setattr(where, name, call)


def break_journal_count(patch: pytest.MonkeyPatch) -> None:
    once_for(patch, os, "pwrite", lambda *arguments: True)


def break_seal(patch: pytest.MonkeyPatch) -> None:
    real = files.write_atomically

    def write(path: Path, content: bytes, **options: Any) -> None:
        once_for(patch, os, "fsync", lambda handle: True)
        real(path, content, **options)

    patch.setattr(journal, "write_atomically", write)


def break_steps_log(patch: pytest.MonkeyPatch) -> None:
    once_for(patch, os, "write", lambda handle, data: b"batch_size" in data)


def break_checkpoint(patch: pytest.MonkeyPatch) -> None:
    once_for(patch, torch, "save", lambda *arguments: True)


def break_next_reservation(patch: pytest.MonkeyPatch) -> None:
    once_for(patch, os, "posix_fallocate", lambda *arguments: True)


@pytest.mark.parametrize(
    "method, breaks",
    [
        ("dp-adam", break_journal_count),
        pytest.param("dp-adam", break_seal, marks=pytest.mark.slow),
        pytest.param("dp-adam", break_steps_log, marks=pytest.mark.slow),
        pytest.param("dp-adam", break_checkpoint, marks=pytest.mark.slow),
        pytest.param("dp-adam", break_next_reservation, marks=pytest.mark.slow),
        pytest.param("dp-zoso", break_journal_count, marks=pytest.mark.slow),
        ("dp-zoso", break_seal),
    ],
)
def test_a_disk_that_fills_during_training_loses_no_applied_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, breaks: Callable[[pytest.MonkeyPatch], None]
) -> None:
    applied: list[int] = []
    with monkeypatch.context() as patch:
        after_step(patch, 2, lambda: breaks(patch))
        real = StepsLog.write

        def write(self: StepsLog, step: int, private: Any) -> None:
            applied.append(step)
            real(self, step, private)

        patch.setattr(StepsLog, "write", write)
        outcome = command(tmp_path, method)
    if breaks is break_checkpoint:  # the reserved room is given back, and the second try finds place
        assert outcome.code == 0, outcome.error
    else:
        assert outcome.code == 64 and ("no space left" in outcome.error or "No space left" in outcome.error)
        assert "\n" not in outcome.error and "saved" in outcome.error
        assert "pace left" in str(read_record(RunFolder.open(tmp_path / "run")).error)
        assert state(tmp_path) == (len(applied), len(applied)) and applied[-1] < 6
    goes_on(tmp_path, method)


def test_a_disk_without_room_is_met_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "dp-adam"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        outcome = command(tmp_path, method)
    assert outcome.code == 64 and "has no room for its next checkpoint of about" in outcome.error
    assert state(tmp_path) == (0, 0)
    goes_on(tmp_path, method)


def test_a_log_of_released_numbers_that_is_refused_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpaudit.trainers.zeroth_order.log as module
    from dpaudit.trainers.zeroth_order.log import ZOLogWriter, read_zo_log

    real, failed = ZOLogWriter.flush, []

    def flush(self: ZOLogWriter) -> None:
        if '"g"' in str(self._lines[-1]).replace("'", '"') and len(failed) == 0 and self.value().steps == 2:
            failed.append(1)
            raise module.StorageFailed.of(Path("zo_log.jsonl"), OSError(errno.ENOSPC, "No space left on device"))
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(ZOLogWriter, "flush", flush)
        outcome = command(tmp_path, "dp-zoso")
    assert outcome.code == 64 and "zo_log.jsonl cannot be written" in outcome.error
    assert state(tmp_path) == (2, 2)
    assert read_zo_log(tmp_path / "run" / "release" / "zo_log.jsonl").steps == 2
    goes_on(tmp_path, "dp-zoso")


def test_a_log_that_lost_updates_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        command(tmp_path, "dp-zoso")
    log = tmp_path / "run" / "release" / "zo_log.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    outcome = command(tmp_path, "dp-zoso")
    assert outcome.code == 3 and "holds 3 updates and the checkpoint 4" in outcome.error


@pytest.mark.slow
def test_a_disk_that_fills_after_training_is_one_sentence_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)\nin serialize")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", refuse)
        outcome = command(tmp_path, "dp-adam", "certify")
    assert outcome.code == 64 and outcome.error.endswith(
        "model cannot be written: no space left on the disk; free space, then run the same again."
    )
    for name in ("scores.parquet", "report.html", "certificate.json"):
        with monkeypatch.context() as patch:
            once_for(patch, os, "replace", lambda source, target, wanted=name: Path(target).name == wanted)
            outcome = command(tmp_path, "dp-adam", "certify")
        assert outcome.code == 64 and f"{name} cannot be written: no space left" in outcome.error, outcome.error
        assert "\n" not in outcome.error
    assert state(tmp_path) == (6, 6)
    assert command(tmp_path, "dp-adam", "certify").code == 2
