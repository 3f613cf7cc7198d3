"""Killing the run at any moment leaves a valid record and a ledger that never counts too little."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.journal import read_journal
from dpaudit.storage.run_folder import RunFolder, read_record
from tests.runs.run_helpers import small_config, write_toml

# Runs the command and, whenever a noisy release has really happened, appends one byte to a file of its own.
WITNESS = """
import os, sys
from dpaudit.trainers.optimizers import DPOptimizer
real = DPOptimizer.receive
witness = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def receive(self, *args, **kwargs):
    os.write(witness, b"x")
    return real(self, *args, **kwargs)
DPOptimizer.receive = receive
from dpaudit.cli import run
run(sys.argv[2:])
"""


def start(folder: Path, config: Path, witness: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITNESS, str(witness), "certify", str(config), "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def check(folder: Path, witness: Path) -> None:
    released = witness.stat().st_size if witness.exists() else 0
    if not (folder / "run.json").exists():
        assert released == 0
        return
    record = read_record(RunFolder.open(folder))
    ledger = folder / "release" / "ledger.jsonl"
    if not ledger.exists():
        assert released == 0 and record.status in ("planned", "training")
        return
    counted = read_journal(ledger).ledger.steps
    assert counted >= released, f"{counted} counted, {released} released"


STATUSES = ("planned", "training", "trained", "attacked", "certified")


def wait_for_the_moment(process: subprocess.Popen[bytes], folder: Path, witness: Path, rng: random.Random) -> None:
    """Wait for a moment in the run's own progress (a release, or a status) and a little longer, at any speed."""
    releases = (witness.stat().st_size if witness.exists() else 0) + rng.randint(1, 9)
    status = rng.choice(STATUSES) if rng.random() < 0.3 else None
    while process.poll() is None:
        if witness.exists() and witness.stat().st_size >= releases:
            break
        if status is not None and (folder / "run.json").exists():
            if read_record(RunFolder.open(folder)).status == status:
                break
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.3))


def kill_and_resume(tmp_path: Path, kills: int, seed: int) -> list[str]:
    rng, seen = random.Random(seed), []
    config = write_toml(tmp_path / "c.toml", small_config(privacy__steps=30, run__checkpoints=10))
    folder, witness = tmp_path / "run0", tmp_path / "released0"
    for number in range(kills):
        process = start(folder, config, witness)
        wait_for_the_moment(process, folder, witness, rng)
        process.send_signal(signal.SIGKILL)
        process.wait()
        check(folder, witness)
        status = read_record(RunFolder.open(folder)).status if (folder / "run.json").exists() else "nothing"
        seen.append(status)
        if status == "certified":  # begin another run
            folder, witness = tmp_path / f"run{number + 1}", tmp_path / f"released{number + 1}"
    process = start(folder, config, witness)
    _, error = process.communicate()
    assert process.returncode == 2, error.decode()
    check(folder, witness)
    assert read_journal(folder / "release" / "ledger.jsonl").ledger.steps == 30
    verdict = json.loads((folder / "release" / "certificate.json").read_text())["predicate"]["verdict"]["name"]
    assert verdict == "inconclusive"
    return seen


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=1, seed=1)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = kill_and_resume(tmp_path, kills=100, seed=2)
    with capsys.disabled():
        print({status: seen.count(status) for status in sorted(set(seen))})
    assert "training" in seen


def test_a_lost_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvidence):
        read_journal(tmp_path / "ledger.jsonl")
