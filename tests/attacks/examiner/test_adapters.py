"""Adapters for other libraries, on stand-ins with the calls that their users make."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit import Stage
from dpaudit.attacks import ArrayAdapter, EngineAdapter, ExamPlan, TrainerAdapter, examine
from dpaudit.attacks.examiner.array import leaves
from dpaudit.privacy.errors import InvalidValue

STAGE = Stage(sampling_probability=0.2, noise_multiplier=1.0, steps=10, sampling="poisson", clipping_norm=1.0)
PLAN = ExamPlan(stage=STAGE, normaliser=8.0, size=40)
ROWS = np.random.default_rng(0).normal(size=(40, 12))


def clipped_sum(indices: Any) -> Any:
    rows = ROWS[list(indices)].reshape(-1, 12)
    return (rows / np.maximum(1.0, np.linalg.norm(rows, axis=1, keepdims=True))).sum(axis=0)


def test_a_pure_function_of_arrays_is_a_step():
    noise, draws = np.random.default_rng(), np.random.default_rng()

    def step(state: Any, indices: Any, noisy: bool) -> Any:
        released = (clipped_sum(indices) + noisy * noise.normal(size=12)) / 8
        return {"w": state["w"] - released}, {"head": released[:4], "body": [released[4:]]}

    adapter = ArrayAdapter(step, {"w": np.zeros(12)}, lambda: np.flatnonzero(draws.random(40) < 0.2), size=40)
    assert examine(adapter, PLAN, budget="150 steps", groups=("replay", "noise")).names == ()
    assert adapter.blocks == (("body.0", 8), ("head", 4))
    half = ArrayAdapter(
        lambda s, i, noisy: (s, (clipped_sum(i) + noisy * noise.normal(size=12) / 3) / 8), {}, adapter.draw, size=40
    )
    assert examine(half, PLAN, budget="150 steps", groups=("noise",)).names == ("noise_scale",)


def test_one_clip_for_all_records_is_named_without_a_record_of_a_huge_loss():
    def step(state: Any, indices: Any, noisy: bool) -> Any:
        mean = ROWS[list(indices)].reshape(-1, 12).sum(axis=0) / max(len(indices), 1)
        return state, mean / max(1.0, float(np.linalg.norm(mean)))

    adapter = ArrayAdapter(step, {}, lambda: [0, 1], size=40)
    assert examine(adapter, PLAN, budget="150 steps", groups=("replay",)).names[:1] == ("clipped_after_averaging",)


def test_leaves_are_arrays():
    assert [name for name, _ in leaves({"b": np.ones(2), "a": (1.0, 2.0)})] == ["a.0", "a.1", "b"]
    with pytest.raises(InvalidValue, match="no array"):
        leaves({"a": "text"})


def model_and_optimizer() -> tuple[nn.Module, Any]:
    model = nn.Linear(12, 1, bias=False)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def test_an_engine_that_takes_the_losses_hands_its_gradients_to_the_optimizer():
    model, optimizer = model_and_optimizer()
    engine = SimpleNamespace(noise_multiplier=2.0)
    own_step = optimizer.step

    def dp_step(loss: Tensor) -> None:
        torch.autograd.backward(loss.sum())
        model.weight.grad += engine.noise_multiplier
        own_step()

    optimizer.step = dp_step
    adapter = EngineAdapter(
        model, engine, optimizer, list(ROWS), collate=lambda rows: torch.tensor(np.array(rows)).float(),
        loss_fn=lambda m, x: m(x)[:, 0], draw=lambda: [0], hand_over=True,
    )  # fmt: skip
    assert adapter.clean((1, 2)) == pytest.approx(ROWS[1] + ROWS[2], rel=1e-5)
    assert adapter.release((1,)) == pytest.approx(ROWS[1] + 2.0, rel=1e-5)
    assert engine.noise_multiplier == 2.0
    with pytest.raises(InvalidValue, match="sigma"):
        EngineAdapter(
            model, engine, optimizer, list(ROWS), collate=list, loss_fn=lambda m, x: x, draw=list, noise="sigma"
        )


def test_a_trainer_clips_the_whole_gradient_as_its_loop_does():
    model, optimizer = model_and_optimizer()
    batches = SimpleNamespace(batch_sampler=[[3, 4], [5]])

    def training_step(module: nn.Module, batch: Tensor) -> None:
        torch.autograd.backward(module(batch).mean())

    trainer: Any = SimpleNamespace(
        model=model, optimizer=optimizer, training_step=training_step,
        args=SimpleNamespace(max_grad_norm=0.5, gradient_accumulation_steps=1),
        data_collator=lambda rows: torch.tensor(np.array(rows)).float(), get_train_dataloader=lambda: batches,
    )  # fmt: skip
    adapter = TrainerAdapter(trainer, list(ROWS), silence=contextlib.nullcontext)
    assert [adapter.draw() for _ in range(3)] == [[3, 4], [5], [3, 4]]
    released = adapter.release((1, 2))
    assert np.linalg.norm(released) == pytest.approx(0.5, rel=1e-4)
    mean = ROWS[1:3].mean(axis=0)
    assert released == pytest.approx(mean / np.linalg.norm(mean) / 2, rel=1e-4)
