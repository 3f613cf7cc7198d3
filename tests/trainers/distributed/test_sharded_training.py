"""A sharded run is the run of one process: updates, noise, adaptive clipping, empty draws, canaries, failures."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.trainers import NoiseSource, OptimizerSettings, PrivacyPlan, train
from dpaudit.trainers.distributed.checkpoint import load_sharded, save_sharded, whole_weights
from dpaudit.trainers.distributed.replicated import distributed_options
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.distributed.processes import together

DRAWS = [[0, 1, 2, 5, 7], [3], [], [4, 6, 8, 9, 10, 12]]
"""Empty for one of two processes in the second step, for both in the third; unequal micro-batches in the others."""
PLAN = dict(
    delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=16,
    expected_batch_size=4, steps=4, clipping_norm=0.5, noise_multiplier=1.3,
)  # fmt: skip
ADAPTIVE = dict(clipping="adaptive", quantile_sigma=4.0)


def plan(**changes: Any) -> PrivacyPlan:
    return PrivacyPlan(**{**PLAN, **changes})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def data() -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(3)
    return [(torch.randn(3, generator=rng), torch.randn(1, generator=rng)) for _ in range(16)]


def collate(rows: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.stack([r[0] for r in rows]), "y": torch.stack([r[1] for r in rows])}


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["x"]) - batch["y"]).square().sum(1)


def sharded(mesh: Any = None) -> nn.Module:
    model = small_model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    fully_shard(model[0], mesh=mesh)
    fully_shard([model[2], model[3]], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class SlicedNoise:
    """The noise of one process, drawn whole from one seed in every process, of which each takes its own rows."""

    is_test = True

    def __init__(self, model: nn.Module, *, counts: bool, part: int = 0, parts: int = 1) -> None:
        shapes = [p.shape for p in model.parameters()]
        self._shapes = itertools.cycle([*shapes, torch.Size(())] if counts else shapes)
        self._source = NoiseSource(generator=torch.Generator().manual_seed(11))
        self._part, self._parts = part, parts

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        whole = next(self._shapes)
        if whole == () and tuple(shape) != ():  # the count is noised by the first process alone
            self._source.sample((), 1.0)
            whole = next(self._shapes)
        drawn = self._source.sample(whole, std, device)
        if whole == ():
            return drawn
        mine = torch.chunk(drawn, self._parts)
        found = mine[self._part] if self._part < len(mine) else drawn[:0]
        assert found.shape == torch.Size(shape)
        return found


def settings(algorithm: str) -> OptimizerSettings:
    return OptimizerSettings(algorithm=algorithm, learning_rate=0.05, weight_decay=0.01)


def run(model: nn.Module, a_plan: PrivacyPlan, algorithm: str, **options: Any) -> Any:
    return train(
        model, data(), a_plan, collate=collate, loss_fn=loss_fn, optimizer=settings(algorithm),
        physical_batch_size=2, preflight=False, **options,
    )  # fmt: skip


def one_process(changes: dict[str, Any], algorithm: str) -> list[Tensor]:
    model = small_model()
    noise = SlicedNoise(model, counts="quantile_sigma" in changes)
    run(model, plan(**changes), algorithm, journal=MemoryJournal(), sampler=ScriptedSampler(DRAWS), noise=noise)
    return [p.detach().clone() for p in model.parameters()]


def one_of(rank: int, changes: dict[str, Any], algorithm: str, shape: tuple[int, ...]) -> dict[str, Any]:
    names = ("replicas", "shards")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model, world = sharded(mesh), dist.get_world_size()
    options: Any = distributed_options(model, plan(**changes), 16, journal=MemoryJournal())
    options["sampler"] = ScriptedSampler([[i for i in draw if i % world == rank] for draw in DRAWS])
    noise = SlicedNoise(
        small_model(), counts="quantile_sigma" in changes, part=mesh.get_local_rank(mesh.ndim - 1), parts=shape[-1]
    )
    result = run(model, plan(**changes), algorithm, noise=noise, **options)
    return {
        "weights": [p.full_tensor().detach() for p in model.parameters()],  # type: ignore[attr-defined]
        "counted": sum(s.steps for s in options["journal"].ledger_stages()),
        "status": result.status,
        "state": sum(
            t.numel() for s in result.optimizer_state["state"].values() for t in s.values() if hasattr(t, "numel")
        ),
    }


@pytest.mark.parametrize(
    "changes, algorithm, shape",
    [
        pytest.param({}, "adamw", (2,), id="flat"),
        pytest.param(ADAPTIVE, "adam", (2,), id="adaptive", marks=pytest.mark.slow),
        pytest.param({"clipping": "per_layer"}, "sgd", (3,), id="three-per-layer", marks=pytest.mark.slow),
        pytest.param({}, "adamw", (2, 2), id="hsdp", marks=pytest.mark.slow),
    ],
)
def test_shards_make_the_updates_of_one_process(tmp_path, changes, algorithm, shape):
    expected = one_process(changes, algorithm)
    found = together(int(np.prod(shape)), tmp_path, one_of, changes, algorithm, shape)
    for process in found:
        for mine, whole in zip(process["weights"], expected, strict=True):
            assert torch.allclose(mine, whole, rtol=1e-6, atol=1e-6)
        for mine, first in zip(process["weights"], found[0]["weights"], strict=True):
            assert torch.equal(mine, first)
    assert [p["counted"] for p in found] == [4] * len(found)  # the first on its disk, the others in memory
    if algorithm != "sgd" and len(shape) == 1:
        assert sum(p["state"] for p in found) == 2 * sum(w.numel() for w in expected)


def first_half(rank: int, folder: Any) -> Any:
    model = sharded()
    options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())
    options["sampler"] = ScriptedSampler([[i for i in draw if i % 2 == rank] for draw in DRAWS[:2]])
    noise = SlicedNoise(small_model(), counts=False, part=rank, parts=2)
    result = run(model, plan(), "adamw", noise=noise, callback=lambda report: report.step == 2, **options)
    assert result.steps == 2
    save_sharded(folder, model, result.optimizer_state)
    return None


def second_half(rank: int, folder: Any) -> Any:
    model, world = sharded(), dist.get_world_size()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0)
    state = load_sharded(folder, model)
    options: Any = distributed_options(model, plan(), 16, journal=MemoryJournal())
    options["sampler"] = ScriptedSampler([[i for i in draw if i % world == rank] for draw in DRAWS[2:]])
    noise = SlicedNoise(small_model(), counts=False, part=rank, parts=world)
    for _ in range(2 * len(list(small_model().parameters()))):  # the noise of the first two steps
        noise._source.sample(next(noise._shapes), 1.0)
    result = run(model, plan(), "adamw", noise=noise, start_step=2, optimizer_state=state, **options)
    assert result.steps == 4
    whole = whole_weights(model)
    assert (whole is None) == (rank != 0)
    return whole


@pytest.mark.slow
def test_a_resume_with_another_number_of_processes_ends_where_one_process_does(tmp_path):
    expected = one_process({}, "adamw")
    together(2, tmp_path / "two", first_half, tmp_path / "checkpoint")
    found = together(3, tmp_path / "three", second_half, tmp_path / "checkpoint")[0]
    for whole, wanted in zip(found.values(), expected, strict=True):
        assert torch.allclose(whole, wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(InvalidEvidence, match="no checkpoint"):
        load_sharded(tmp_path, small_model())
