"""The example in two processes ends with a certificate that verifies, under ``accelerate launch`` and ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.storage.confined import Limits
from dpaudit.storage.journal import read_ledger
from tests import ROOT

FSDP2 = (
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false",
)  # fmt: skip
ON_A_CPU = """
import runpy, sys
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
begin = AcceleratorState.__init__
def with_shards(self, *arguments, fsdp_plugin=None, **options):
    begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:  # read by accelerate from what its launcher set
        assert fsdp_plugin.fsdp_version == 2
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
AcceleratorState.__init__ = with_shards
from dpaudit.trainers.huggingface.processes import ProcessesTrainer
save = ProcessesTrainer.save_model
def saved(self, *arguments, **options):
    assert self.sharded and all(type(p).__name__ == "DTensor" for p in self.model.parameters())
    print("shards were saved")
    save(self, *arguments, **options)
ProcessesTrainer.save_model = saved
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""accelerate leaves FSDP out on a CPU, where the same code runs: switched on as on a GPU, and nothing else."""

LAUNCH = {
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    "accelerate launch, fsdp_version 2": [
        "accelerate.commands.launch",
        *FSDP2,
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LAUNCH)
def test_two_processes_end_with_a_certificate_that_verifies(tmp_path: Path, how: str) -> None:
    (tmp_path / "on_a_cpu.py").write_text(ON_A_CPU)
    shim = [str(tmp_path / "on_a_cpu.py")] if "fsdp" in how else []
    done = subprocess.run(
        [
            sys.executable, "-m", *LAUNCH[how], *shim, str(ROOT / "examples" / "two_processes.py"),
            str(tmp_path / "run"),
            "--records", "60", "--canaries", "24", "--steps", "3",
        ],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "verdict: inconclusive processes: 2" in done.stdout, done.stderr[-3000:]
    assert done.stdout.count("shards were saved") == (2 if shim else 0)
    assert read_ledger(tmp_path / "run" / "release" / "ledger.jsonl").steps == 3
    limits = Limits(seconds=120.0, megabytes=600)
    report = verify_certificate(tmp_path / "run" / "release" / "certificate.json", limits=limits)
    assert report.ok, report.to_text()
