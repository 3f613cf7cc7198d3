import math

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers import (
    NoiseSource,
    OptimizerSettings,
    PoissonSampler,
    PrivacyPlan,
    causal_lm_losses,
    pad_tokens,
    train,
)
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.reference_clipper import LoopClipper

SGD = OptimizerSettings(algorithm="sgd", learning_rate=1.0)


def linear_plan(**changes):
    values = dict(
        delta=1e-3,
        relation="add_or_remove_one",
        sampling="poisson",
        unit="record",
        public_size=40,
        expected_batch_size=10,
        steps=4,
        clipping_norm=0.5,
        noise_multiplier=1.0,
    )
    return PrivacyPlan(**{**values, **changes})


def linear_problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    records = [(torch.randn(3), torch.randn(1)) for _ in range(40)]
    return model, records


def collate(rows):
    return {"x": torch.stack([r[0] for r in rows]), "y": torch.stack([r[1] for r in rows])}


def loss_fn(model, batch):
    return (model(batch["x"]) - batch["y"]).square().sum(1)


def run(model, records, plan, **kwargs):
    journal = kwargs.pop("journal", None) or MemoryJournal()
    clipper = kwargs.pop("clipper", None) or LoopClipper(model, plan.clipping_norm)
    result = train(model, records, plan, collate=collate, loss_fn=loss_fn, journal=journal, clipper=clipper, **kwargs)
    return result, journal


def noise(seed=5):
    return NoiseSource(generator=torch.Generator().manual_seed(seed))


def test_the_update_is_the_clipped_sum_plus_noise_over_the_constant():
    model, records = linear_problem()
    before = [p.detach().clone() for p in model.parameters()]
    plan = linear_plan(steps=1)
    draw = [0, 3, 7]
    twin, _ = linear_problem()
    LoopClipper(twin, 0.5).backward(loss_fn(twin, collate([records[i] for i in draw])))
    source = noise()
    expected = [p - (q.grad + source.sample(q.shape, 0.5)) / 10 for p, q in zip(before, twin.parameters(), strict=True)]
    run(model, records, plan, sampler=ScriptedSampler([draw]), noise=noise(), optimizer=SGD)
    for p, e in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p, e, atol=1e-7)


@pytest.mark.parametrize("micro", [1, 2, 5, 100])
def test_the_physical_batch_does_not_change_the_result(micro):
    draws = [[0, 1, 2, 3, 4, 5, 6], [], [8], [9, 10, 11]]

    def weights(physical):
        model, records = linear_problem()
        run(model, records, linear_plan(), sampler=ScriptedSampler(draws), noise=noise(), physical_batch_size=physical)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(weights(micro), weights(3), atol=1e-6)


def test_every_step_is_counted_before_its_release_also_when_the_draw_is_empty():
    events = []

    class Journal(MemoryJournal):
        def count(self):
            events.append("count")
            super().count()

    class Noise(NoNoise):
        def sample(self, shape, std, device="cpu"):
            events.append("noise")
            return super().sample(shape, std, device)

    model, records = linear_problem()
    journal = Journal()
    draws = ScriptedSampler([[], [0, 1], [], [2]])
    result, _ = run(model, records, linear_plan(), sampler=draws, noise=Noise(), journal=journal)
    assert events == ["count", "noise", "noise"] * 4  # one draw for each of two parameters, once per step
    (stage,) = journal.ledger_stages()
    assert stage.steps == 4 and stage == result.stage == linear_plan().stage(4)
    assert result.status == "test"


def test_an_empty_draw_moves_the_weights_by_noise():
    model, records = linear_problem()
    before = model.weight.detach().clone()
    run(model, records, linear_plan(steps=1), sampler=ScriptedSampler([[]]), optimizer=SGD)
    moved = (model.weight.detach() - before).abs()
    assert float(moved.max()) > 0 and float(moved.max()) < 6 * 0.5 / 10


def test_a_crash_is_counted():
    def burst(model, batch):
        raise RuntimeError("burst")

    model, records = linear_problem()
    journal = MemoryJournal()
    with pytest.raises(RuntimeError, match="burst"):
        train(
            model,
            records,
            linear_plan(),
            collate=collate,
            loss_fn=burst,
            journal=journal,
            clipper=LoopClipper(model, 0.5),
            sampler=ScriptedSampler([[0]]),
        )
    assert journal.ledger_stages()[0].steps == 1
    assert all(p.grad is None for p in model.parameters())


def test_resume_continues_bitwise_with_the_same_injected_randomness():
    draws = [[0, 1], [2], [3, 4, 5], [6]]
    whole, records = linear_problem()
    run(whole, records, linear_plan(), sampler=ScriptedSampler(draws), noise=noise())

    class Stop(Exception):
        pass

    states = {}

    def stop(report):
        if report.step == 2:
            raise Stop

    split, _ = linear_problem()
    generator = torch.Generator().manual_seed(5)
    source = NoiseSource(generator=generator)
    journal = MemoryJournal()
    half = linear_plan(steps=2)
    result, _ = run(split, records, half, sampler=ScriptedSampler(draws[:2]), noise=source, journal=journal)
    states = result.optimizer_state
    run(
        split,
        records,
        linear_plan(),
        sampler=ScriptedSampler(draws[2:]),
        noise=source,
        journal=journal,
        start_step=2,
        optimizer_state=states,
    )
    assert torch.equal(whole.weight, split.weight) and torch.equal(whole.bias, split.bias)
    assert sum(stage.steps for stage in journal.ledger_stages()) == 4
    assert not any("generator" in str(key) or "seed" in str(key) for key in _keys(states))


def _keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)


def test_two_real_runs_differ_and_are_not_tests():
    ends = []
    for _ in range(2):
        model, records = linear_problem()
        result, _ = run(model, records, linear_plan())
        assert result.status == "completed"
        ends.append(model.weight.detach().clone())
    assert not torch.equal(*ends)


def test_the_callback_sees_the_release_and_keeps_private_things_apart():
    reports = []
    model, records = linear_problem()

    def callback(report):
        model.eval()  # evaluation inside a callback must not leak into the next step's mode
        reports.append(report)

    model.train()
    run(model, records, linear_plan(), sampler=ScriptedSampler([[0, 1], [], [2], [3]]), callback=callback)
    assert model.training is False and [r.step for r in reports] == [1, 2, 3, 4]
    assert reports[0].private.indices == (0, 1) and reports[0].private.norms.shape == (2,)
    assert reports[1].private.losses.shape == (0,)
    assert [t.shape for t in reports[0].released] == [p.shape for p in model.parameters()]
    assert "private" not in repr(reports[0]) and "released" not in repr(reports[0])


def test_out_of_memory_halves_the_micro_batch_without_changing_the_result():
    calls = []

    def tight(model, batch):
        calls.append(len(batch["x"]))
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("simulated")
        return loss_fn(model, batch)

    draws = [[0, 1, 2, 3, 4, 5, 6], [1, 2], [], [3]]
    ends = []
    for function, micro in ((tight, 8), (loss_fn, 2)):
        model, records = linear_problem()
        result = train(
            model,
            records,
            linear_plan(),
            collate=collate,
            loss_fn=function,
            journal=MemoryJournal(),
            clipper=LoopClipper(model, 0.5),
            sampler=ScriptedSampler(draws),
            noise=noise(),
            physical_batch_size=micro,
        )
        assert result.physical_batch_size == 2
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends) and calls[:4] == [7, 4, 2, 2]


def test_bf16_weights_are_summed_and_noised_in_fp32():
    model, records = linear_problem()
    model.to(torch.bfloat16)
    seen = []

    class Spy(NoiseSource):
        def sample(self, shape, std, device="cpu"):
            seen.append(super().sample(shape, std, device))
            return seen[-1]

    def half_loss(model, batch):
        return (model(batch["x"].bfloat16()).float() - batch["y"]).square().sum(1)

    train(
        model,
        records,
        linear_plan(),
        collate=collate,
        loss_fn=half_loss,
        journal=MemoryJournal(),
        clipper=LoopClipper(model, 0.5),
        noise=Spy(),
        callback=lambda report: seen.extend(report.released),
    )
    assert {t.dtype for t in seen} == {torch.float32} and model.weight.dtype == torch.bfloat16


def test_planted_faults_run_below_the_plan():
    model, records = linear_problem()
    stage = run(model, records, linear_plan(), noise=NoNoise(), clipper=LoopClipper(model, math.inf))[0].stage
    assert stage.noise_multiplier == 1.0 and stage.clipping_norm == 0.5  # the ledger still claims the plan


def test_refusals_come_before_the_first_count():
    model, records = linear_problem()
    journal = MemoryJournal()
    with pytest.raises(PrivacyRefusal, match="materialise"):
        run(model, iter(records), linear_plan(), journal=journal)
    with pytest.raises(InvalidValue, match="calibrate"):
        run(model, records, linear_plan(noise_multiplier=None, target_epsilon=2.0), journal=journal)
    with pytest.raises(InvalidValue, match="start_step=5"):
        run(model, records, linear_plan(), journal=journal, start_step=5)
    with pytest.raises(InvalidValue, match=r"\(B,\)"):
        train(
            model,
            records,
            linear_plan(),
            collate=collate,
            loss_fn=lambda m, b: loss_fn(m, b).mean(),
            journal=MemoryJournal(),
            clipper=LoopClipper(model, 0.5),
            sampler=ScriptedSampler([[0]]),
        )
    model.half()
    with pytest.raises(UnsupportedModel, match="float16"):
        run(model, records, linear_plan(), journal=journal)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(UnsupportedModel, match="trainable"):
        run(model, records, linear_plan(), journal=journal)
    assert journal.ledger_stages() == ()


def test_noise_scale_over_many_steps_of_zero_gradient():
    # Through the whole loop: per-coordinate standard deviation of one SGD step is σC/L.
    model = nn.Linear(50, 40, bias=False)
    moves, last = [], [model.weight.detach().clone()]

    def callback(report):
        moves.append((model.weight.detach() - last[0]).flatten())
        last[0] = model.weight.detach().clone()

    plan = linear_plan(steps=60, noise_multiplier=2.0)
    train(
        model,
        [(torch.zeros(50), torch.zeros(40))] * 40,
        plan,
        collate=collate,
        loss_fn=loss_fn,
        journal=MemoryJournal(),
        clipper=LoopClipper(model, 0.5),
        sampler=ScriptedSampler([[]] * 60),
        optimizer=SGD,
        callback=callback,
    )
    assert float(torch.stack(moves).std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.01)


def test_poisson_inclusion_survives_the_loop():
    plan = linear_plan(steps=600, public_size=40, expected_batch_size=4)
    model, records = linear_problem()
    counts, sizes = np.zeros(40), []

    def callback(report):
        counts[list(report.private.indices)] += 1
        sizes.append(len(report.private.indices))

    class Free:
        def backward(self, losses):
            return losses.detach()

    run(
        model,
        records,
        plan,
        sampler=PoissonSampler(40, plan.sampling_probability, generator=np.random.default_rng(2)),
        clipper=Free(),
        callback=callback,
    )
    assert np.abs(counts / 600 - 0.1).max() < 5 * np.sqrt(0.09 / 600)
    assert np.var(sizes) == pytest.approx(3.6, rel=0.25)


def test_causal_lm_losses_mean_over_own_tokens():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 11)

        def forward(self, input_ids, attention_mask=None, use_cache=None):
            return type("Out", (), {"logits": self.embed(input_ids)})

    torch.manual_seed(0)
    model = Tiny()
    batch = pad_tokens([[1, 2, 3], [4, 5, 6, 7, 8], [9], []])
    losses = causal_lm_losses(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
    logp = model.embed.weight.log_softmax(-1)
    assert losses[0].item() == pytest.approx(-(logp[1, 2] + logp[2, 3]).item() / 2, rel=1e-6)
    assert losses[1].item() == pytest.approx(-sum(logp[a, a + 1] for a in (4, 5, 6, 7)).item() / 4, rel=1e-6)
    assert losses[2].item() == losses[3].item() == 0.0
    alone = pad_tokens([[1, 2, 3]])
    assert causal_lm_losses(model, alone["input_ids"], alone["attention_mask"])[0].item() == pytest.approx(
        losses[0].item(), abs=1e-7
    )
