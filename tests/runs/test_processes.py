"""A configuration in several processes: one counts, writes and certifies, and none goes on without the others."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dpaudit import MemoryJournal, certify, verify
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.privacy.errors import DpauditError, InvalidValue, StorageFailed
from dpaudit.runs.config import parse_config
from dpaudit.runs.follower import follow_the_first
from dpaudit.runs.processes import Place, Team, _backend, _lost, gathered, launched
from dpaudit.runs.run import begin
from dpaudit.runs.steps_log import StepsLog
from dpaudit.storage.confined import Limits
from dpaudit.storage.journal import read_ledger
from dpaudit.trainers.distributed import layers
from dpaudit.trainers.distributed.layers import shard_layers
from dpaudit.trainers.distributed.shards import local
from dpaudit.trainers.zeroth_order.log import read_zo_log
from dpaudit.trainers.zeroth_order.weights import replay
from tests import ROOT
from tests.runs.run_helpers import small_config, write_toml

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def config(**changes: Any) -> Any:
    return parse_config(small_config(**changes), "c.toml")


def verified(certificate: Path) -> bool:
    """Whether a certificate verifies, on a machine that has more to do."""
    return verify_certificate(certificate, limits=Limits(seconds=120.0, megabytes=600)).ok


def test_a_place_is_read_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() is None and Team(None, MemoryJournal()).size == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == Place(3, 4, 1)
    monkeypatch.setenv("RANK", "third")
    with pytest.raises(InvalidValue, match="must be whole numbers"):
        launched()


def test_a_number_of_processes_that_contradicts_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    prepared: Any = type("Prepared", (), {"config": config(run__processes=3)})
    with (
        pytest.raises(InvalidValue, match=r"run\.processes=3 and the launcher started 2"),
        gathered(prepared, prepared),
    ):
        raise AssertionError


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_processes_cannot_share_is_refused(device: str) -> None:
    with pytest.raises(InvalidValue, match=f"optimizer.device='{device}' cannot be used in 2 processes"):
        _backend(device, Place(0, 2, 0))


def test_the_number_of_processes_may_change_on_a_resume(tmp_path: Path) -> None:
    begin(config(), tmp_path, tmp_path / "run")
    begin(config(run__processes=2), tmp_path, tmp_path / "run")


def test_other_processes_than_the_first_end_where_nothing_is_left_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    follow_the_first(None)  # alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    follow_the_first(None)  # the first
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        follow_the_first(None)
    assert ended.value.code == 0


def test_a_broken_group_is_told_in_words_and_another_error_is_not_taken_for_one() -> None:
    told = _lost(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:18649"), [])
    assert isinstance(told, DpauditError) and "another process of the run ended or hangs" in str(told)
    own = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert _lost(own, []) is own


def test_shards_of_one_process_are_refused_before_a_run_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"run\.sharding='fsdp2' spreads a model over processes"):
        begin(config(run__sharding="fsdp2"), tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    begin(config(run__sharding="fsdp2", run__processes=2), tmp_path, tmp_path / "run")
    begin(config(run__processes=3), tmp_path, tmp_path / "run")  # both may change on a resume


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of the weights that the first process kept, each time a model was brought into shards."""
    found: list[float] = []

    def watched(model: Any) -> None:
        whole = sum(p.numel() for p in model.parameters())
        shard_layers(model)
        found.append(sum(local(p).numel() for p in model.parameters()) / whole)

    monkeypatch.setattr(layers, "shard_layers", watched)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_shards_end_with_a_certificate_that_verifies(tmp_path: Path, parts: list[float], trainable: str) -> None:
    changes = {"run__processes": 2, "run__sharding": "fsdp2", "model__trainable": trainable}
    if trainable == "lora":
        changes |= {"model__lora_rank": 2, "canaries__kind": "random-token", "canaries__positions": None}
    toml = write_toml(tmp_path / "c.toml", small_config(**changes))
    run = certify(toml, tmp_path / "run")
    assert len(parts) == 1 and 0.4 < parts[0] < 0.6
    assert run.verdict == "inconclusive" and run.level == 1 and verified(run.certificate)
    assert json.loads(run.certificate.read_text())["predicate"]["provenance"]["processes"] == 2
    assert read_ledger(tmp_path / "run/release/ledger.jsonl").steps == 4
    seen = json.loads((tmp_path / "run/release/in_run.json").read_text())
    energy = np.frombuffer(base64.b64decode(seen["energy"]["step_squares"]))
    numbers = sum(seen["energy"]["sizes"])
    # mean squares of noise alone, but for what records and canaries add: 8 standard deviations of room
    assert len(energy) == 4 and abs(energy / numbers - 1).max() < 8 * math.sqrt(2 / numbers) + 0.05


def stopped(toml: Path, out: Path, steps: int) -> None:
    """A run that is told to stop after some steps."""
    command = [sys.executable, "-m", "dpaudit", "train", str(toml), "--out", str(out)]
    log = out / "private" / "steps.jsonl"
    first = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_bytes().count(b"\n") >= steps):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.terminate()
    _, said = first.communicate(timeout=120)
    assert first.returncode == 143 and "which are saved" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("then", [{"run__processes": 3, "run__sharding": "fsdp2"}, {}])
def test_a_zeroth_order_run_in_shards_goes_on_with_others_and_its_log_replays(
    tmp_path: Path, then: dict[str, Any]
) -> None:
    """Stopped in shards, gone on in others or in one process: weights and anchor are those that the log rebuilds."""
    zeroth = {**ZEROTH, "directions": 1, "proximal": 0.2}
    method = {"privacy__method": "dp-zoso", "privacy__steps": 9, "run__checkpoints": 3}
    begun = small_config(**method, run__processes=2, run__sharding="fsdp2") | {"zeroth_order": zeroth}
    stopped(write_toml(tmp_path / "c.toml", begun), tmp_path / "run", 4)
    toml = write_toml(tmp_path / "d.toml", small_config(**method, **then) | {"zeroth_order": zeroth})
    run = certify(toml, tmp_path / "run")
    assert verified(run.certificate) and read_ledger(tmp_path / "run/release/ledger.jsonl").steps == 9
    base = AutoModelForCausalLM.from_pretrained(begun["model"]["path"], dtype=torch.float32)
    released = AutoModelForCausalLM.from_pretrained(tmp_path / "run/release/model", dtype=torch.float32)
    (log,) = (tmp_path / "run" / "release").glob("*zo*.jsonl")
    rebuilt = replay(read_zo_log(log), base)
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.parameters(), released.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("then", [{"run__processes": 3, "run__sharding": "fsdp2"}, {"run__processes": 2}])
def test_a_run_in_shards_goes_on_with_others(tmp_path: Path, then: dict[str, Any]) -> None:
    changes = {"privacy__steps": 12, "run__checkpoints": 3}
    toml = write_toml(tmp_path / "c.toml", small_config(**changes, run__processes=2, run__sharding="fsdp2"))
    stopped(toml, tmp_path / "run", 3)
    kept = torch.load(tmp_path / "run" / "private" / "checkpoint.pt", weights_only=True)
    sizes = [value.numel() for value in kept["model"].values()]
    moments = {i: values["exp_avg"].numel() for i, values in kept["optimizer"]["state"].items()}
    assert kept["steps"] >= 3 and kept["observers"]["canaries"]["steps"] == kept["steps"]
    assert set(moments.values()) <= set(sizes)
    assert {values["step"] for values in kept["optimizer"]["state"].values()} == {kept["steps"]}
    run = certify(write_toml(tmp_path / "d.toml", small_config(**changes, **then)), tmp_path / "run")
    assert verified(run.certificate) and read_ledger(tmp_path / "run/release/ledger.jsonl").steps == 12


@pytest.mark.slow
def test_a_log_that_one_process_cannot_write_ends_all_with_what_ran_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StepsLog.write

    def full(self: StepsLog, step: int, private: Any) -> None:
        if step == 2:
            raise StorageFailed("no space left")
        honest(self, step, private)

    monkeypatch.setattr(StepsLog, "write", full)
    toml = write_toml(tmp_path / "c.toml", small_config(run__processes=2, run__sharding="fsdp2", run__checkpoints=1))
    with pytest.raises(StorageFailed, match="no space left; the 2 steps in the model are saved"):
        certify(toml, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "private" / "checkpoint.pt", weights_only=True)
    assert kept["steps"] == kept["counted"] == 2


@pytest.mark.slow
def test_two_processes_end_with_a_certificate_that_verifies(tmp_path: Path) -> None:
    """``[run] processes`` starts the second; what the first one releases is counted and seen by the in-run audit."""
    toml = write_toml(tmp_path / "c.toml", small_config(run__processes=2))
    run = certify(toml, tmp_path / "run")
    assert run.verdict == "inconclusive" and run.level == 1 and verify(run.certificate).ok
    told = json.loads(run.certificate.read_text())["predicate"]["provenance"]
    assert told["processes"] == 2  # an examination would be of one
    assert read_ledger(tmp_path / "run/release/ledger.jsonl").steps == 4
    seen = json.loads((tmp_path / "run/release/in_run.json").read_text())
    assert len(base64.b64decode(seen["energy"]["step_squares"])) == 4 * 8


ZEROTH = {"directions": 4, "clip": "joint", "scale": 1e-3, "stages": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dp-adam", "dp-zoso"])
def test_torchrun_starts_a_configuration(tmp_path: Path, method: str) -> None:
    value = small_config(privacy__method=method)
    if method == "dp-zoso":
        value |= {"zeroth_order": ZEROTH}
    toml = write_toml(tmp_path / "c.toml", value)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dpaudit", "train", str(toml)]
    for _ in range(2):  # again: there is nothing left to train, and nobody waits for it
        done = subprocess.run(
            [sys.executable, "-m", *command, "--out", str(tmp_path / "run"), "--json"],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["steps"] == 4  # one process prints
    assert verify(certify(tmp_path / "run").certificate).ok


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["other", "first"])
def test_a_killed_process_stops_all_and_the_run_goes_on_later(tmp_path: Path, victim: str) -> None:
    toml = write_toml(tmp_path / "c.toml", small_config(run__processes=2, privacy__steps=40, run__checkpoints=40))
    command = [sys.executable, "-m", "dpaudit", "train", str(toml), "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / "private" / "steps.jsonl"
    first = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    (other,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    os.kill(first.pid if victim == "first" else other, signal.SIGKILL)
    _, said = first.communicate(timeout=120)
    if victim == "other":
        assert first.returncode == 64 and "process 1 (exit code -9) of the run ended or hangs" in said, said
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()
    released = log.read_bytes().count(b"\n")
    done = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 40 and released < 40


@pytest.mark.slow
@pytest.mark.parametrize("told", ["first", "other"])
def test_a_signal_to_one_process_finishes_the_step_of_all(tmp_path: Path, told: str) -> None:
    toml = write_toml(tmp_path / "c.toml", small_config(run__processes=2, privacy__steps=40))
    command = [sys.executable, "-m", "dpaudit", "train", str(toml), "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / "private" / "steps.jsonl"
    first = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    (other,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    os.kill(first.pid if told == "first" else other, signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    who = "SIGTERM" if told == "first" else "a signal to another process"
    assert first.returncode == 143 and f"stopped by {who} after" in said, said
    released = log.read_bytes().count(b"\n")
    assert read_ledger(tmp_path / "run/release/ledger.jsonl").steps == released < 40
