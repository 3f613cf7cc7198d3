"""A plain loop as a step: what its optimizer is handed, what rounding hides, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit import Stage
from dpaudit.attacks import ExamPlan, LoopAdapter, LossFactors, NotExamined, Role, examine
from dpaudit.attacks.examiner.optimizers import MovesMore


def loop(optimizer=None, rate=1.0, dtype=torch.float32, spoil=0.0):
    """A model of two weights whose gradient is what ``indices`` says."""
    model = nn.Linear(2, 1, bias=False).to(dtype)
    made = None if optimizer is None else optimizer(model.parameters())

    def step(indices):
        gradient = torch.tensor([[float(sum(indices)), 1.0]], dtype=dtype)
        if made is None:
            with torch.no_grad():
                model.weight -= rate * gradient
            return
        model.weight.grad = gradient
        made.step()
        with torch.no_grad():
            model.weight += spoil

    return LoopAdapter(model, step, lambda: [0, 1], size=8, learning_rate=rate, optimizer=made), model


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
        lambda p: torch.optim.SGD(p, lr=0.25),
    ],
)
def test_the_release_is_what_the_optimizer_is_handed(optimizer):
    adapter, _ = loop(optimizer)
    for indices in ((1, 2), (3, 4), ()):
        assert adapter.release(indices) == pytest.approx([sum(indices), 1.0], abs=1e-5)


def test_the_optimizers_state_is_put_back():
    adapter, model = loop(lambda p: torch.optim.Adam(p, lr=0.1))
    state = adapter.snapshot()
    adapter.release((1,))
    moved = model.weight.detach().clone()
    adapter.release((5,))
    adapter.restore(state)
    adapter.release((1,))
    assert torch.equal(model.weight, moved)


def test_a_movement_that_is_not_the_optimizers_is_refused():
    adapter, _ = loop(lambda p: torch.optim.Adam(p, lr=0.1), spoil=0.5)
    with pytest.raises(MovesMore, match="otherwise"):
        adapter.release((1,))


def test_rounding_is_half_of_the_weights_spacing_over_the_rate():
    adapter, model = loop(rate=1e-3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, 5.0]]))
    largest = math.hypot(*np.spacing(np.float32([0.3, 5.0])) / 2) / 1e-3
    assert largest <= adapter.rounding <= 1.3 * largest
    coarse, twin = loop(rate=1e-3, dtype=torch.bfloat16)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor([[0.3, 5.0]]))
    assert coarse.rounding == pytest.approx(2**16 * adapter.rounding, rel=1e-6)


def test_weights_too_coarse_for_the_rate_are_refused():
    model = nn.Linear(2, 1, bias=False)

    def step(indices):
        with torch.no_grad():
            model.weight -= 1e-9 * torch.randn(1, 2)

    adapter = LoopAdapter(model, step, lambda: [0, 1], size=8, learning_rate=1e-9)
    stage = Stage(
        sampling_probability=0.25, noise_multiplier=1.0, steps=10, sampling="poisson", clipping_norm=1.0
    )  # fmt: skip
    with pytest.raises(NotExamined, match="rounding"):
        examine(adapter, ExamPlan(stage=stage, normaliser=2.0), budget="60 steps")


def test_a_scaled_loss_leaves_ordinary_records_as_they_are():
    factors = LossFactors(4, record=2)
    assert factors.adversaries[Role.HUGE] == 5 and factors.adversaries["huge loss"] == 5
    assert factors.records([3, 5]) == [3, 2]
    losses = torch.tensor([0.1, 0.2], dtype=torch.float64)
    scaled = factors.scale(losses, [3, 5])
    assert scaled[0] == losses[0] and scaled[1] == pytest.approx(0.2e6)
    assert torch.isnan(factors.scale(losses[:1], [7])).all()
