import math

import pytest
import torch
from torch import nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers import NoiseSource, OptimizerSettings, PrivacyPlan, train
from dpaudit.trainers.physical import PhysicalBatch, fitted
from dpaudit.trainers.release import clipper_for
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.reference_clipper import LoopClipper
from tests.trainers.test_loop import collate, linear_plan, linear_problem, loss_fn


def run(model, records, plan, **kwargs):
    return train(
        model, records, plan, collate=collate, loss_fn=loss_fn, journal=kwargs.pop("journal", MemoryJournal()), **kwargs
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_default_clipper_agrees_with_the_loop():
    draws = [[0, 1, 2], [], [3, 4, 5, 6], [7]]
    ends = []
    for clipper in (None, LoopClipper):
        model, records = linear_problem()
        noise = NoiseSource(generator=torch.Generator().manual_seed(1))
        made = None if clipper is None else clipper(model, 0.5)
        run(model, records, linear_plan(), sampler=ScriptedSampler(draws), noise=noise, clipper=made)
        ends.append(weights(model))
        assert not model._forward_hooks and not model._forward_pre_hooks
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("rule", ["per_layer", "automatic"])
def test_other_rules_bound_the_release(rule):
    model, records = linear_problem()
    reports = []
    run(
        model,
        records,
        linear_plan(clipping=rule, noise_multiplier=0.0, steps=1),
        sampler=ScriptedSampler([[0, 1, 2, 3]]),
        callback=reports.append,
    )
    norm = math.sqrt(sum(float(t.square().sum()) for t in reports[0].released))
    assert 0 < norm <= 4 * 0.5 / 10 * (1 + 1e-6)


def adaptive(**changes):
    return linear_plan(clipping="adaptive", quantile_sigma=4.0, quantile_rate=0.5, **changes)


def test_adaptive_clipping_follows_the_noised_quantile_and_scales_its_noise():
    # Every norm is far above C, so the count is -B/2 and C must rise by exp(η/2) but for the query's noise.
    bounds, stds = [], []

    class Spy(NoiseSource):
        def sample(self, shape, std, device="cpu"):
            stds.append((tuple(shape), std))
            return torch.zeros(shape)

    model, records = linear_problem()
    records = [(100 * x, y) for x, y in records]
    plan = adaptive(steps=3, clipping_norm=1e-3, noise_multiplier=2.0)
    result = run(
        model,
        records,
        plan,
        noise=Spy(),
        sampler=ScriptedSampler([list(range(10))] * 3),
        callback=lambda report: bounds.append(report.clipping_norm),
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1e-6),
    )
    assert bounds == pytest.approx([1e-3, 1e-3 * math.exp(0.25), 1e-3 * math.exp(0.5)])
    assert [std for shape, std in stds if shape == (1, 3)] == pytest.approx([2 * b for b in bounds])
    assert [std for shape, std in stds if shape == ()] == [4.0] * 3
    assert result.stage.quantile_sigma == 4.0
    # a resume continues C, not the plan's first one
    assert result.optimizer_state["param_groups"][0]["clipping_norm"] == pytest.approx(1e-3 * math.exp(0.75))


def test_a_resume_continues_the_adapted_bound():
    model, records = linear_problem()
    draws, half = [[0, 1, 2]] * 4, adaptive(steps=2)
    first = run(model, records, half, sampler=ScriptedSampler(draws))
    bounds = []
    run(
        model,
        records,
        adaptive(),
        sampler=ScriptedSampler(draws),
        start_step=2,
        optimizer_state=first.optimizer_state,
        callback=lambda report: bounds.append(report.clipping_norm),
    )
    assert bounds[0] == first.optimizer_state["param_groups"][0]["clipping_norm"] != 0.5


def test_autocast_stays_out_of_norms_and_sums():
    model, records = linear_problem()
    seen = []

    class Clipper(LoopClipper):
        def backward(self, losses):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().backward(losses)

    def cast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.is_autocast_enabled("cpu")
            return loss_fn(model, batch)

    with torch.autocast("cpu", torch.bfloat16):
        train(
            model,
            records,
            linear_plan(steps=1),
            collate=collate,
            loss_fn=cast,
            journal=MemoryJournal(),
            clipper=Clipper(model, 0.5),
            sampler=ScriptedSampler([[0, 1]]),
        )
    assert seen == [False]


def test_adaptive_clipping_needs_its_own_clipper_and_infinite_c_no_noise():
    model, records = linear_problem()
    with pytest.raises(InvalidValue, match="AdaptiveFlat"):
        run(model, records, adaptive(), clipper=LoopClipper(model, 0.5))
    with pytest.raises(InvalidValue, match="must be finite"):
        run(model, records, linear_plan(clipping_norm=math.inf), clipper=LoopClipper(model, math.inf))


def test_every_rule_has_a_clipper():
    for rule in ("flat", "per_layer", "automatic", "adaptive"):
        plan = adaptive() if rule == "adaptive" else linear_plan(clipping=rule)
        with clipper_for(nn.Linear(2, 1), plan) as clipper:
            assert clipper.clipping.clipping_norm == 0.5
    assert isinstance(plan, PrivacyPlan)


def test_physical_batches():
    assert PhysicalBatch("auto").size == 8
    batch = PhysicalBatch(5)
    batch.halve()
    batch.halve()
    batch.halve()
    assert batch.size == 1
    assert fitted(8, used=80, free=100) == 7 and fitted(8, used=10**9, free=1) == 1
    with pytest.raises(InvalidValue, match="physical_batch_size=0"):
        PhysicalBatch(0)
    model, records = linear_problem()
    result = run(model, records, linear_plan(), physical_batch_size="auto", clipper=LoopClipper(model, 0.5))
    assert result.physical_batch_size == 8
