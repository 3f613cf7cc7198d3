"""The example in two processes ends with a certificate that verifies, under ``accelerate launch`` and ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpaudit.certificates.verify.verify import verify_certificate
from dpaudit.storage.confined import Limits
from dpaudit.storage.journal import read_ledger
from tests import ROOT

LAUNCH = {
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LAUNCH)
def test_two_processes_end_with_a_certificate_that_verifies(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", *LAUNCH[how], str(ROOT / "examples" / "two_processes.py"), str(tmp_path / "run"),
            "--records", "60", "--canaries", "24", "--steps", "3",
        ],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "verdict: inconclusive processes: 2" in done.stdout, done.stderr[-3000:]
    assert read_ledger(tmp_path / "run" / "release" / "ledger.jsonl").steps == 3
    limits = Limits(seconds=120.0, megabytes=600)
    report = verify_certificate(tmp_path / "run" / "release" / "certificate.json", limits=limits)
    assert report.ok, report.to_text()
