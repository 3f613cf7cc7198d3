"""A clipped sum is a value: p.grad stays as it is, and the noise scales with the bound that the value carries."""

import dataclasses

import pytest
import torch
from torch import nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers import AdaptiveFlat, GhostClipping, NoiseSource, OptimizerSettings, train
from dpaudit.trainers.contribution import ClippedSum, Declared, RunningSum, summing
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.reference_clipper import LoopClipper
from tests.trainers.test_loop import collate, linear_plan, linear_problem, loss_fn


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return model, lambda: (model(x).squeeze(1) - y).square()


def test_the_sum_is_that_of_backward_and_leaves_grad_alone(problem):
    model, losses = problem
    with GhostClipping(model, 0.3) as clipper:
        found = clipper.clipped_sum(losses())
        assert all(p.grad is None for p in model.parameters())
        norms = clipper.backward(losses())
    assert found.bound == 0.3
    torch.testing.assert_close(found.norms, norms, rtol=0, atol=0)
    for p in model.parameters():
        torch.testing.assert_close(found.sums[p], p.grad, rtol=0, atol=0)


def test_a_value_is_frozen_and_knows_its_noise():
    value = ClippedSum({}, torch.zeros(0), 0.5)
    assert value.noise_std(3.0) == 1.5 and value.noise_std(0.0) == 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.bound = 1.0
    with pytest.raises(InvalidValue, match="noise_multiplier=-1"):
        value.noise_std(-1.0)


def test_the_bound_is_that_of_the_rule_now(problem):
    model, losses = problem
    with GhostClipping(model, 0.3, clipping=AdaptiveFlat(0.3)) as clipper:
        clipper.clipping = AdaptiveFlat(0.2)
        assert clipper.clipped_sum(losses()).bound == 0.2
        assert clipper.clipped_sum(torch.zeros(0)).bound == 0.2


def test_sums_of_two_bounds_are_refused(problem):
    model, losses = problem
    running = RunningSum(list(model.parameters()))
    with GhostClipping(model, 0.3) as clipper:
        running.add(clipper.clipped_sum(losses()))
        clipper.clipping = dataclasses.replace(clipper.clipping, clipping_norm=0.4)
        with pytest.raises(InvalidValue, match=r"clipped to 0\.3 and to 0\.4, and need one bound"):
            running.add(clipper.clipped_sum(losses()))


def test_a_clipper_with_backward_alone_is_declared(problem):
    model, losses = problem
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)  # of something else
    taken = summing(LoopClipper(model, 0.3), parameters, 0.3)
    assert isinstance(taken, Declared)
    found = taken.clipped_sum(losses())
    assert all(p.grad is None for p in parameters)
    with GhostClipping(model, 0.3) as clipper:
        assert summing(clipper, parameters, 0.3) is clipper
        expected = clipper.clipped_sum(losses())
    for p in parameters:
        torch.testing.assert_close(found.sums[p], expected.sums[p], rtol=1e-11, atol=1e-14)


def test_the_noise_of_a_step_follows_the_sum_and_not_the_plan():
    # A clipper whose sums have bound 2, under a plan that says 0.5: the release has the deviation of the sums.
    class Wider:
        def clipped_sum(self, losses):
            return ClippedSum({}, losses.detach(), 2.0)

    model, records = linear_problem()
    seen = []
    train(
        model,
        records,
        linear_plan(steps=200, noise_multiplier=1.0),
        collate=collate,
        loss_fn=loss_fn,
        journal=MemoryJournal(),
        clipper=Wider(),
        sampler=ScriptedSampler([[0, 1]] * 200),
        noise=NoiseSource(generator=torch.Generator().manual_seed(0)),
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1e-9),
        callback=lambda report: seen.append(torch.cat([t.flatten() for t in report.released])),
    )
    assert float(torch.stack(seen).std()) == pytest.approx(2.0 / 10, rel=0.1)  # the plan's own C would give 0.05
