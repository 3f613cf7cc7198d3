"""Directions spread over processes give the one-process result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpaudit import InvalidValue, MemoryJournal
from dpaudit.privacy.errors import PrivacyRefusal, StorageFailed
from dpaudit.trainers.zeroth_order.distributed import OneProcess, TorchWorld, counted_by_the_first
from dpaudit.trainers.zeroth_order.stages import zoso
from tests import ROOT
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, tiny_gpt, token_records

SCRIPT = """
import sys
import torch
from torch import distributed
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.zeroth_order.distributed import OneProcess, TorchWorld
from dpaudit.trainers.zeroth_order.stages import zoso
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, seeded_noise, tiny_gpt, token_records

torch.set_num_threads(1)
spread = sys.argv[1] == "spread"
if spread:
    distributed.init_process_group("gloo")
world = TorchWorld(sys.argv[3]) if spread else OneProcess()
draws = [[i % 40, (7 * i) % 40, 3] for i in range(6)] + [[]]
model = tiny_gpt()
for clip in ("joint", "per_direction"):
    whole = plan(steps=7, releases_per_step=5, clip=clip, clipping_norm=2.0)
    result, journal = run(
        model, token_records(40), zoso(whole, learning_rate=0.05, scale=1e-3, proximal=0.2), loss_fn=gpt_losses,
        noise=seeded_noise(3 + world.rank), sampler=ScriptedSampler(draws), world=world,
    )
    assert sum(s.steps for s in journal.ledger_stages()) == (7 if world.rank == 0 else 0)
torch.save([p.detach() for p in model.parameters()], f"{sys.argv[2]}.{world.rank}")
if spread:
    distributed.destroy_process_group()
"""


def _run(script: Path, root: Path, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("processes, share", [(2, "directions"), (3, "directions"), (2, "records"), (3, "records")])
def test_torchrun_gives_the_one_process_weights(processes: int, share: str, tmp_path: Path) -> None:
    root = ROOT
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    _run(script, root, str(script), "alone", str(tmp_path / "alone"))
    _run(
        script, root, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script),
        "spread", str(tmp_path / "spread"), share,
    )  # fmt: skip
    expected = torch.load(tmp_path / "alone.0")
    for rank in range(processes):
        found = torch.load(tmp_path / f"spread.{rank}")
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("share", ["directions", "records"])
def test_every_difference_is_found_once_and_in_order(share: str) -> None:
    whole = torch.arange(15, dtype=torch.float64).view(5, 3)
    worlds = []
    for rank in (0, 1):
        world = TorchWorld.__new__(TorchWorld)
        world.rank, world.size, world._records = rank, 2, share == "records"
        worlds.append(world)
    columns = [0, 1, 2]
    parts = [whole[list(w.directions(5))][:, list(w.units(columns))] for w in worlds]
    assert sum(part.numel() for part in parts) == 15
    for world in worlds:
        world._all = lambda value: parts  # type: ignore[method-assign]
        assert torch.equal(world.gather(parts[world.rank], 5, 3), whole)
    assert torch.equal(OneProcess().gather(whole, 5, 3), whole)


class Second(OneProcess):
    """The second of two processes, which hears that the first has failed, or has other weights."""

    rank, size = 1, 2

    def __init__(self, heard: Any) -> None:
        self.heard = heard

    def share(self, value: Any) -> Any:
        return self.heard


def test_no_process_goes_on_where_the_first_cannot_count() -> None:
    with pytest.raises(StorageFailed, match="another process could not count its step"):
        counted_by_the_first(Second(True), MemoryJournal())
    counted_by_the_first(Second(False), MemoryJournal())


def test_other_base_weights_are_refused() -> None:
    with pytest.raises(PrivacyRefusal, match="different base weights"):
        stages = zoso(plan(steps=3), learning_rate=0.05, scale=1e-3)
        run(tiny_gpt(), token_records(4), stages, loss_fn=gpt_losses, world=Second({"kind": "other"}))


def test_a_missing_process_group_is_said() -> None:
    with pytest.raises(InvalidValue, match="init_process_group"):
        TorchWorld()
