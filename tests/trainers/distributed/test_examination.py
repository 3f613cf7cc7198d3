"""Faults between processes, planted into the release path of a sharded run and refused by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dpaudit import MemoryJournal
from dpaudit.trainers import NoiseSource
from dpaudit.trainers.distributed import examination, reduction
from dpaudit.trainers.distributed.replicated import distributed_options
from dpaudit.trainers.distributed.shards import Scatter, add_up_replicas
from tests.trainers.distributed.processes import together
from tests.trainers.distributed.test_sharded_training import plan, run, sharded


def even(mesh: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class Scaled(NoiseSource):
    """Every process divides its noise by their number."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        return super().sample(shape, std, device) / dist.get_world_size()


class Padded(NoiseSource):
    """The last rows of every shard, where padding would be, get no noise."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        drawn = super().sample(shape, std, device)
        if drawn.dim() and len(drawn):
            drawn[-1] = 0
        return drawn


class OneStream(NoiseSource):
    """Every process draws from the same public seed."""

    def __init__(self) -> None:
        super().__init__()
        self._same = torch.Generator().manual_seed(1)

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        return torch.randn(tuple(shape), generator=self._same) * std


class FirstAlone(NoiseSource):
    """Rank 0 alone adds noise, to its own shard."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        return super().sample(shape, std if dist.get_rank() == 0 else 0.0, device)


def average(give: Callable[..., None]) -> Callable[..., None]:
    def averaged(self: Any, parameter: Any, total: Any) -> None:
        give(self, parameter, None if total is None else total / dist.get_world_size())

    return averaged


def after_the_sum(self: Any, sums: Any) -> None:
    add_up_replicas(self._parameters, sums)
    for total in sums:
        total.add_(NoiseSource().sample(total.shape, 1.0))


def local_passes(passes: int, failed: bool, device: Any) -> int:
    said = torch.tensor([passes])
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return passes


def skip_empty(passes: int, failed: bool, device: Any) -> int:
    said = torch.tensor([passes])
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return int(said[0]) if passes else 0


def agreed(by: Any) -> Any:
    return patch.object(reduction, "_agreed", by)


FAULTS: dict[str, tuple[str, tuple[int, ...], Callable[[], Any], Any]] = {
    "average instead of sum": (
        "sum_over_processes", (2,), lambda: patch.object(Scatter, "give", average(Scatter.give)), NoiseSource,
    ),
    "noise over the number of processes": ("noise_scale", (2,), nullcontext, Scaled),
    "no noise on the last rows": ("noise_on_part", (2,), nullcontext, Padded),
    "noise of the first process alone": ("noise_scale", (2,), nullcontext, FirstAlone),
    "one stream in all processes": ("shared_noise", (2,), nullcontext, OneStream),
    "noise after the copies' sum": (
        "copies_diverge", (2, 2), lambda: patch.object(reduction.Sharded, "add_up", after_the_sum), NoiseSource,
    ),
    "passes of its own": ("passes_unequal", (2,), lambda: agreed(local_passes), NoiseSource),
    "an empty draw skipped": ("passes_unequal", (2,), lambda: agreed(skip_empty), NoiseSource),
}  # fmt: skip


def found(rank: int, shape: tuple[int, ...], planted: Any, source: Any) -> list[str]:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    with planted():
        model = even(mesh)
        options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())
        return [
            fault.name
            for fault in examination.examine_release(model, list(model.parameters()), options["reduction"], source())
        ]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if name == "average instead of sum" else pytest.mark.slow) for name in FAULTS],
)
def test_a_planted_fault_is_found_by_name_in_every_process(tmp_path, fault):
    name, shape, planted, source = FAULTS[fault]
    world = 2 if len(shape) == 1 else 4
    for names in together(world, tmp_path, found, shape, planted, source):
        assert name in names


def honest(rank: int, shape: tuple[int, ...]) -> list[str]:
    return found(rank, shape, nullcontext, NoiseSource)


@pytest.mark.parametrize(
    "shape", [pytest.param((3,), id="shards"), pytest.param((2, 2), id="copies of shards", marks=pytest.mark.slow)]
)
def test_an_honest_release_has_no_fault(tmp_path, shape):
    assert together(3 if len(shape) == 1 else 4, tmp_path, honest, shape) == [[]] * (3 if len(shape) == 1 else 4)


def begun(rank: int) -> str:
    model = sharded()
    journal = MemoryJournal()
    options: Any = distributed_options(model, plan(), 16, journal=journal)
    try:
        run(model, plan(), "sgd", noise=Scaled(), **options)
    except Exception as error:
        return f"{error} {len(journal.ledger_stages())}"
    return "trained"


def test_training_does_not_begin_with_a_fault(tmp_path):
    for said in together(2, tmp_path, begun):
        assert said.startswith("noise_scale: noise has 0.") and said.endswith(" 0")


def every_process_adds(self: Any, device: Any) -> None:
    self._device, self.leads, self.adds_noise = device, dist.get_rank() == 0, True


def averaged(self: Any, sums: Any) -> None:
    reduction.sum_over_processes(list(sums))
    for total in sums:
        total.div_(dist.get_world_size())


def own_noise_afterwards(self: Any, sums: Any) -> None:
    reduction.sum_over_processes(list(sums))
    own = torch.Generator().manual_seed(dist.get_rank())
    for total in sums:
        total.add_(torch.randn(total.shape, generator=own), alpha=1e-3)


COPIES: dict[str, tuple[str | None, Any, Any]] = {
    "honest": (None, nullcontext, NoiseSource),
    "average instead of sum": (
        "sum_over_processes", lambda: patch.object(reduction.Replicated, "add_up", averaged), NoiseSource,
    ),
    "every process adds noise": (
        "noise_scale", lambda: patch.object(reduction.Replicated, "__init__", every_process_adds), NoiseSource,
    ),
    "noise over the number of processes": ("noise_scale", nullcontext, Scaled),
    "no noise on the last rows": ("noise_on_part", nullcontext, Padded),
    "noise after the sum": (
        "copies_diverge", lambda: patch.object(reduction.Replicated, "add_up", own_noise_afterwards), NoiseSource,
    ),
}  # fmt: skip


def copies(rank: int) -> dict[str, list[str]]:
    names = {}
    for fault, (_, planted, source) in COPIES.items():
        with planted():
            model = nn.Linear(3, 2)
            options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())
            found = examination.examine_release(model, list(model.parameters()), options["reduction"], source())
            names[fault] = [one.name for one in found]
    return names


def test_faults_between_whole_copies_are_found_by_name_in_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "COORDINATES", 2**14)
    for names in together(2, tmp_path, copies):
        for fault, (name, _, _) in COPIES.items():
            assert name in names[fault] if name else names[fault] == []
