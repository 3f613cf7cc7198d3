"""A model in shards (FSDP2) moves as the whole model of one process does, and its log replays on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from dpaudit.privacy.errors import PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.distributed.shards import first_coordinate, gather_nothing, local, whole
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
from dpaudit.trainers.zeroth_order.distributed import OneProcess, TorchWorld
from dpaudit.trainers.zeroth_order.log import ZOLog
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import zoso
from dpaudit.trainers.zeroth_order.weights import replay
from tests.trainers.distributed.processes import shard, together
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, seeded_noise, tiny_gpt, token_records

DRAWS = [[i % 40, (7 * i) % 40, 3, 11, 12] for i in range(4)] + [[], [5], list(range(20, 33))]
"""The second process has no record in one of the draws, and fewer passes in another."""


def net() -> nn.Module:
    """Rows that do not divide by the processes (30 tokens of 15 numbers), tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=15, n_head=3, vocab_size=33, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def trained(model: nn.Module, world: Any, **options: Any) -> ZOLog:
    """Three directions in two stages with a proximal pull."""
    whole_plan = plan(steps=7, releases_per_step=3, clip="joint", clipping_norm=2.0)
    stages = zoso(whole_plan, learning_rate=0.05, scale=1e-3, stages=2, proximal=0.2)
    result, journal = run(
        model, token_records(40), stages, loss_fn=gpt_losses, sampler=ScriptedSampler(DRAWS), world=world,
        noise=seeded_noise(3 + world.rank), physical_batch_size=4, **options,
    )  # fmt: skip
    assert sum(s.steps for s in journal.ledger_stages()) == (7 if world.rank == 0 else 0)
    return result.log


def alone(**options: Any) -> tuple[dict[str, torch.Tensor], ZOLog]:
    model = net()
    log = trained(model, OneProcess(), **options)
    return {n: p.detach() for n, p in model.named_parameters()}, log


def sharded(rank: int, layout: str, replicas: int, options: dict[str, Any]) -> Any:
    world = TorchWorld("records")
    mesh = None
    if replicas > 1:
        mesh = init_device_mesh("cpu", (replicas, world.size // replicas), mesh_dim_names=("copies", "shards"))
    model = shard(net(), layout, mesh=mesh)
    log = trained(model, world, **options)
    gather_nothing(model)
    held = sum(local(p).numel() for p in model.parameters())
    return {n: whole(p) for n, p in model.named_parameters()}, log, held


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, processes, replicas, mode",
    [
        ("blocks", 2, 1, "per_layer"), ("leaves", 2, 1, "per_layer"), ("accelerate", 2, 1, "per_layer"),
        ("blocks", 2, 1, "in_place"), ("accelerate", 3, 1, "per_layer"), ("blocks", 4, 2, "per_layer"),
    ],
)  # fmt: skip
def test_shards_move_as_one_process_moves_the_whole(layout, processes, replicas, mode, tmp_path: Path) -> None:
    options = {"perturbation_mode": mode, "cache_bytes": 0 if processes > 2 else 10**7}
    expected, log = alone(**options)
    found = together(processes, tmp_path, sharded, layout, replicas, options)
    numbers = sum(p.numel() for p in expected.values())
    assert sum(held for *_, held in found) == numbers * replicas
    assert max(held for *_, held in found) < numbers
    for weights, seen, _ in found:
        assert seen == log
        assert all(torch.equal(weights[name], p) for name, p in expected.items())
    if mode == "per_layer":  # in place, rounding stays in the weights
        rebuilt = replay(found[0][1], net())
        assert all(torch.equal(expected[name], p) for name, p in rebuilt.named_parameters())


def replayed(rank: int, log: ZOLog) -> Any:
    model = shard(net(), "accelerate")
    replay(log, model)
    return {n: whole(p) for n, p in model.named_parameters()}


@pytest.mark.slow
def test_a_log_of_one_process_replays_on_shards(tmp_path: Path) -> None:
    expected, log = alone()
    for weights in together(2, tmp_path, replayed, log):
        assert all(torch.equal(weights[name], p) for name, p in expected.items())


class Reads(nn.Module):
    """Reads the weight of a layer outside that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(33, 15)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = nn.functional.linear(self.table(ids), self.table.weight).mean((1, 2))
        return found


def refused(rank: int) -> dict[str, str]:
    found: dict[str, str] = {}

    def told(name: str, work: Any) -> None:
        with pytest.raises((PrivacyRefusal, UnsupportedModel)) as error:
            work()
        found[name] = str(error.value)

    for name, world in (("alone", OneProcess()), ("directions", TorchWorld("directions"))):
        told(name, lambda world=world: trained(shard(net(), "blocks"), world))
    half = shard(net(), "blocks", mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    told("half", lambda: trained(half, TorchWorld("records")))
    stages = zoso(plan(steps=7), learning_rate=0.05, scale=1e-3, mask=MaskRule(keep=0.5, score="magnitude"))
    model = shard(net(), "blocks")
    told("mask", lambda: run(model, token_records(4), stages, loss_fn=gpt_losses, world=TorchWorld("records")))
    single = zoso(plan(steps=7), learning_rate=0.05, scale=1e-3)
    reads: dict[str, Any] = {"world": TorchWorld("records"), "sampler": ScriptedSampler([[0, 1], [2, 3]] * 4)}
    told("read", lambda: run(shard(Reads(), "blocks"), token_records(40), single, **reads))
    parts = [(first_coordinate(p), local(p).numel(), p.numel()) for p in trainable_parameters(model).values()]
    ends = [0 if rank == 0 else whole_size - size for _, size, whole_size in parts]
    assert [start for start, *_ in parts] == ends
    return found


@pytest.mark.slow
def test_what_shards_cannot_do_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for found in together(2, tmp_path, refused):
        assert all("TorchWorld('records')" in found[name] for name in ("alone", "directions"))
        assert "mixed_precision: no" in found["half"] and "bfloat16" in found["half"]
        assert "'table.weight' is read outside its own module" in found["read"]
        assert "leave keep out, or give every process a whole copy" in found["mask"]


def test_a_whole_model_begins_at_its_first_coordinate() -> None:
    assert {first_coordinate(p) for p in tiny_gpt().parameters()} == {0}
