"""What a process of a sharded run holds: its share of parameters, moments and sums, and two whole sums at most."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dpaudit import MemoryJournal
from dpaudit.trainers import OptimizerSettings, train
from dpaudit.trainers.contribution import RunningSum
from dpaudit.trainers.distributed.replicated import distributed_options
from dpaudit.trainers.distributed.shards import Scatter, local
from tests.trainers.distributed.processes import together
from tests.trainers.distributed.test_sharded_training import plan

LAYERS = 6


def held(rank: int, width: int) -> dict[str, int]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])
    whole = sum(p.numel() for p in model.parameters())
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    alive: list[Any] = []
    most = {"whole sums": 0, "running": 0}
    give, total = Scatter.give, RunningSum.total

    def watched(self: Any, parameter: Any, value: Any) -> None:
        if value is not None:
            alive.append(weakref.ref(value))
        give(self, parameter, value)
        most["whole sums"] = max(most["whole sums"], sum(value() is not None for value in alive))

    def summed(self: Any, bound: float) -> Any:
        most["running"] = max(most["running"], sum(t.numel() for t in self._sums.values()))
        return total(self, bound)

    Scatter.give, RunningSum.total = watched, summed  # type: ignore[method-assign]
    records = [torch.randn(width) for _ in range(16)]
    options: Any = distributed_options(model, plan(steps=2), 16, journal=MemoryJournal())
    result = train(
        model, records, plan(steps=2), collate=torch.stack, loss_fn=lambda m, x: m(x).square().mean(1),
        optimizer=OptimizerSettings(algorithm="adamw"), physical_batch_size=4, preflight=False, **options,
    )  # fmt: skip
    moments = sum(
        t.numel() for s in result.optimizer_state["state"].values() for t in s.values() if isinstance(t, torch.Tensor)
    )
    shards = sum(local(p).numel() for p in model.parameters())
    return {"whole": whole, "layer": width * width + width, "held": shards + moments + most["running"], **most}


@pytest.mark.parametrize("width", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_a_process_holds_its_share_and_two_sums_of_a_parameter_at_most(tmp_path, width):
    for found in together(2, tmp_path, held, width):
        one_process = 4 * found["whole"]  # parameters, two moments, sums
        assert found["held"] <= one_process / 2 + found["layer"]
        assert 1 <= found["whole sums"] <= 2
