"""What a process that fails does to the others, and what is refused before anything is computed."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import StorageFailed
from dpaudit.storage.journal import DiskJournal, read_ledger
from dpaudit.trainers import preflight, train
from dpaudit.trainers.distributed.replicated import distributed_options
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.distributed import processes
from tests.trainers.distributed.processes import together
from tests.trainers.distributed.test_sharded_training import (
    collate,
    data,
    loss_fn,
    plan,
    run,
    sharded,
    small_model,
)


def told(work: Any, *arguments: Any) -> str:
    """The error of a run, in words."""
    try:
        work(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class FullDisk(MemoryJournal):
    """A journal whose second step cannot be written."""

    def count(self) -> None:
        super().count()
        if self._steps == 2:
            raise StorageFailed("the ledger cannot be written: no space left on the disk; free space.")


def uncounted(rank: int) -> tuple[str, int]:
    model, released = sharded(), []
    options: Any = distributed_options(model, plan(), 16, journal=FullDisk())
    error = told(lambda: run(model, plan(), "sgd", callback=lambda report: released.append(report.step), **options))
    return error, len(released)


def test_no_process_goes_on_where_the_first_cannot_count(tmp_path):
    first, second = together(2, tmp_path, uncounted)
    assert first[0].startswith("TrainingStopped: the ledger cannot be written") and first[1] == 1
    assert second[0].startswith("TrainingStopped: another process could not count") and second[1] == 1


def stopped_by_one(rank: int) -> list[int]:
    model, seen = sharded(), []
    options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())

    def callback(report: Any) -> bool:
        seen.append(report.step)
        return rank == 1 and report.step == 2

    run(model, plan(), "sgd", callback=callback, **options)
    return seen


def test_a_stop_that_one_process_wants_is_everyones(tmp_path):
    assert together(2, tmp_path, stopped_by_one) == [[1, 2], [1, 2]]


def failing(rank: int, folder: Any, how: str) -> None:
    model = sharded()
    journal = DiskJournal(
        folder / f"ledger{rank}.jsonl", relation="add_or_remove_one", unit="record", audit_plan_sha256=None
    )
    options: Any = distributed_options(model, plan(), 16, journal=journal)
    options["sampler"] = ScriptedSampler([[rank], [rank], [rank], [rank]])
    steps = []

    def loss(model: nn.Module, batch: Any) -> Any:
        steps.append(0)
        if rank == 1 and len(steps) == 3:
            if how == "dies":
                os._exit(9)
            if how == "hangs":
                time.sleep(60)
            raise RuntimeError("burst")
        return loss_fn(model, batch)

    train(
        model, data(), plan(), collate=collate, loss_fn=loss, noise=NoNoise(), preflight=False,
        callback=lambda report: (folder / f"released{rank}").write_text(str(report.step)), **options,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["dies", *(pytest.param(how, marks=pytest.mark.slow) for how in ("raises", "hangs"))])
def test_a_process_that_fails_stops_all_and_the_ledger_holds_every_release(tmp_path, monkeypatch, how):
    monkeypatch.setattr(processes, "SECONDS", 12)
    begun = time.monotonic()
    with pytest.raises(AssertionError):
        together(2, tmp_path, failing, tmp_path, how)
    assert time.monotonic() - begun < 40
    released = int((tmp_path / "released0").read_text())
    assert released == 2 and read_ledger(tmp_path / "ledger0.jsonl").steps == 3


def out_of_memory(rank: int) -> str:
    model = sharded()
    options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())
    options["sampler"] = ScriptedSampler([[rank]] * 4)

    def loss(model: nn.Module, batch: Any) -> Any:
        if rank == 0:
            raise torch.OutOfMemoryError("no room")
        raise RuntimeError("the other process went away")

    return told(
        lambda: train(
            model, data(), plan(), collate=collate, loss_fn=loss, preflight=False, physical_batch_size=8, **options
        )
    )


def test_memory_that_runs_out_in_one_process_is_refused_with_the_size_to_take(tmp_path):
    found = together(2, tmp_path, out_of_memory)
    assert found[0].startswith("InvalidValue: physical_batch_size=8 does not fit") and "resume with 4" in found[0]


def refusals(rank: int) -> dict[str, str]:
    found = {}
    mesh = init_device_mesh("cpu", (2,))
    plain = small_model()
    parallelize_module(plain, mesh, {"0": ColwiseParallel()})
    found["tensor parallel"] = told(lambda: GhostClipping(plain, 1.0))
    part = small_model()
    fully_shard(part[0], mesh=mesh)
    found["a part"] = told(lambda: GhostClipping(part, 1.0))
    whole = sharded()
    found["alone"] = told(lambda: run(whole, plan(), "sgd", journal=MemoryJournal()))
    found["wrapped"] = told(lambda: GhostClipping(nn.parallel.DistributedDataParallel(small_model()), 1.0))
    with GhostClipping(whole, 1.0) as clipper:
        found["empty"] = told(lambda: clipper.backward(torch.zeros(0)))
    rows = collate(data()[:4])
    found["preflight"] = told(lambda: preflight(whole, rows, loss_fn=loss_fn))
    placed = small_model()
    placed.hf_device_map = {"0": 0, "1": 1}
    found["device_map"] = told(lambda: GhostClipping(placed, 1.0))
    other = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
    mixed = small_model()
    fully_shard(mixed[0], mesh=other)
    fully_shard(mixed, mesh=mesh)
    found["meshes"] = told(lambda: distributed_options(mixed, plan(), 16, journal=MemoryJournal()))
    return found


def test_what_is_not_data_parallel_is_refused_by_name(tmp_path):
    for found in together(2, tmp_path, refusals):
        assert found["tensor parallel"].startswith("PrivacyRefusal: parameter '0.weight' is placed as (S")
        assert "is whole in every process while others are sharded" in found["a part"]
        assert "distributed_options" in found["alone"]
        assert "DistributedDataParallel" in found["wrapped"] and "plain model" in found["wrapped"]
        assert "losses * 0" in found["empty"]
        assert "call preflight before fully_shard" in found["preflight"]
        assert "device_map spreads the model over 0, 1" in found["device_map"]
        assert "over different meshes" in found["meshes"]
