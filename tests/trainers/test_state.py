"""What a forward pass writes into a model is named, put back, and never released."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers import (
    Directions,
    GhostClipping,
    NoiseSource,
    OptimizerSettings,
    PrivacyPlan,
    train,
    zo_train,
)
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.state import ModelState, frozen_state
from dpaudit.trainers.zeroth_order.stages import ZOStage
from tests.trainers.reference_clipper import LoopClipper


class Plain:
    def __init__(self) -> None:
        self.mean = torch.zeros(2)


class Writes(nn.Module):
    """Writes a mean of its input wherever a module can keep one."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0
        self.head = nn.Linear(2, 3)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("large", torch.zeros(300, 300), persistent=False)
        self.kept: Tensor | None = None
        self.first = torch.zeros(2)
        self.number = 0.0
        self.array = np.zeros(2)
        self.several: list[Any] = [torch.zeros(2), "name"]
        self.by_name: dict[str, Any] = {"mean": torch.zeros(2)}
        self.queue: collections.deque[Any] = collections.deque(maxlen=2)
        self.object = Plain()
        self.hidden = [nn.BatchNorm1d(2)]
        self.pair = (torch.zeros(2), 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        m = x.detach().mean(0)
        match self.where:
            case "mean":
                self.mean.mul_(0.9).add_(m, alpha=0.1)
            case "mean rebound":
                self.mean = 0.9 * self.mean + 0.1 * m
            case "mean through data":
                self.mean.data.add_(m)
            case "large":
                self.large[0, :2] += m
            case "kept":
                self.kept = m
            case "first":
                self.first = m
            case "number":
                self.number = 0.9 * self.number + float(m[0])
            case "array":
                self.array += m.numpy()
            case "several":
                self.several[0] = m
            case "several grows":
                self.several.append(m)
            case "several rebound":
                self.several = [m, "name"]
            case "by_name":
                self.by_name["mean"] = m
            case "by_name grows":
                self.by_name["other"] = m
            case "queue":
                self.queue.append(m)
            case "object":
                self.object.mean = m
            case "hidden":
                self.hidden[0](torch.cat([x.detach(), x.detach() + 1]))
            case "pair":
                self.pair[0].add_(m)
            case "new attribute":
                self.new = m
            case "new buffer":
                self.register_buffer("new", m)
            case "weights":
                self.stats = {"of": {"records": [float(m[0])]}}
        return self.head(x)  # type: ignore[no-any-return]


PLACES = (
    "mean", "mean rebound", "mean through data", "large", "kept", "first", "number", "array", "several",
    "several grows", "several rebound", "by_name", "by_name grows", "queue", "object", "hidden", "pair",
    "new attribute", "new buffer", "weights",
)  # fmt: skip


def content(model: nn.Module) -> dict[str, Any]:
    """Everything but parameters and the count of calls, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, (Tensor, np.ndarray)):
            return value.tolist()
        if isinstance(value, (list, tuple, collections.deque)):
            return [plain(v) for v in value]
        if isinstance(value, nn.Module):
            return content(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return plain(vars(value)) if isinstance(value, Plain) else value

    skipped = {"_parameters", "_modules", "calls", *[k for k in vars(nn.Module()) if k != "_buffers"]}
    return {k: plain(v) for k, v in vars(model).items() if k not in skipped - {"_buffers"}}


@pytest.mark.parametrize("where", PLACES)
def test_what_a_forward_pass_writes_is_named_and_put_back(where: str) -> None:
    model, x = Writes(where), torch.randn(4, 2) + 3
    before, state = content(model), ModelState(model)
    mean, calls = model.mean, model.calls
    assert state.changed() == []
    with torch.no_grad():
        model(x)
    (name,) = state.changed()
    assert name.split(".")[0] == {"weights": "stats", "new": "new"}.get(where.split()[0], where.split()[0])
    assert name == state.differs(ModelState(model))[0]
    state.restore()
    assert content(model) == before and state.changed() == []
    assert model.mean is mean and model.calls == calls + 1
    with torch.no_grad():
        model(x)
    state.restore()
    assert content(model) == before


def test_what_is_written_between_steps_stays() -> None:
    model = Writes("mean")
    state = ModelState(model)
    model.mean.fill_(4.0)
    state.refresh()
    with state, torch.no_grad():
        model(torch.randn(4, 2))
    assert model.mean.tolist() == [4.0, 4.0]


def test_own_loops_keep_the_state_by_a_context() -> None:
    model = Writes("queue")
    before = content(model)
    with pytest.raises(RuntimeError), frozen_state(model):
        model(torch.randn(4, 2))
        model(torch.randn(4, 5))
    assert content(model) == before


PLAN = PrivacyPlan(
    delta=1e-3,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    public_size=12,
    expected_batch_size=6,
    steps=3,
    clipping_norm=1.0,
    noise_multiplier=1.0,
)
RECORDS = [{"x": torch.tensor([float(i), 1.0]), "y": i % 3} for i in range(12)]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"x": torch.stack([r["x"] for r in rows]), "labels": torch.tensor([r["y"] for r in rows])}


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


@pytest.mark.parametrize("where", PLACES)
def test_no_training_path_leaves_anything_of_the_records_but_its_release(where: str) -> None:
    def noise() -> NoiseSource:
        return NoiseSource(generator=torch.Generator().manual_seed(1))

    for kind in ("first order", "zeroth order"):
        torch.manual_seed(0)
        model = Writes(where)
        before = content(model)
        common: dict[str, Any] = {
            "collate": collate, "loss_fn": losses, "journal": MemoryJournal(), "noise": noise(),
            "sampler": ScriptedSampler([[0, 5, 7], [], [3, 4, 11, 2]]), "physical_batch_size": 2,
        }  # fmt: skip
        if kind == "first order":
            train(model, RECORDS, PLAN, clipper=LoopClipper(model, 1.0), **common)
        else:
            stage = ZOStage(plan=PLAN, learning_rate=1e-2, scale=1e-3)
            zo_train(model, RECORDS, stage, directions=Directions(run="state"), preflight=False, **common)
        assert content(model) == before, kind
        assert model.calls >= 4


def test_one_record_is_not_seen_in_the_gradient_of_another_through_the_state() -> None:
    class Remembers(Writes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.mean.mean()

    def weights(draw: list[int]) -> Tensor:
        torch.manual_seed(0)
        model = Remembers("mean")
        train(
            model,
            RECORDS,
            PLAN,
            collate=collate,
            loss_fn=losses,
            journal=MemoryJournal(),
            clipper=LoopClipper(model, 1e-3),
            noise=NoiseSource(generator=torch.Generator().manual_seed(1)),
            optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0),
            sampler=ScriptedSampler([draw, [1], []]),
            physical_batch_size=1,
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert float((weights([0]) - weights([11])).norm()) * 6 <= 2e-3 * (1 + 1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_running_statistics_of_any_norm_are_refused_by_name(frozen: bool) -> None:
    for norm in (nn.InstanceNorm1d(4, track_running_stats=True), nn.BatchNorm1d(4)):
        model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 3))
        norm.requires_grad_(not frozen)
        with pytest.raises(UnsupportedModel, match=r"module 0 .*(InstanceNorm1d|BatchNorm1d)"):
            GhostClipping(model, 1.0)
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True).eval(), nn.Flatten(), nn.Linear(12, 3))
    GhostClipping(model, 1.0).close()


def test_modules_that_stand_in_eval_mode_stay_there_after_a_callback() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4).requires_grad_(False).eval(), nn.Linear(4, 3))
    seen = []

    def callback(report: Any) -> None:
        seen.append(model[1].training)
        model.eval()

    model.train()
    model[1].eval()
    train(
        model,
        RECORDS,
        PLAN,
        collate=collate,
        loss_fn=losses,
        journal=MemoryJournal(),
        clipper=LoopClipper(model, 1.0),
        sampler=ScriptedSampler([[0, 1], [2, 3], [4]]),
        callback=callback,
    )
    assert seen == [False] * 3


def test_a_module_that_a_forward_pass_exchanged_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first = model[0]
    model.form = "sparse"  # type: ignore[assignment]
    state = ModelState(model)
    model[0], model.form = nn.Linear(2, 2), "full"  # type: ignore[assignment]
    model.extra = nn.Linear(2, 2)
    assert state.exchanged() == ["0", "extra"]
    state.restore()
    assert model[0] is first and not hasattr(model, "extra") and model.form == "sparse" and state.exchanged() == []
