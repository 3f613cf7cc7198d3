"""The zeroth-order loop: what runs is what the ledger counts; T6, T7, T11 of the reference, log, replay, resume."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit import InvalidEvidence, InvalidValue, MemoryJournal, PrivacyRefusal, Stage
from dpaudit.privacy.stage import Clip, Mechanism
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import PoissonSampler, ScriptedSampler
from dpaudit.trainers.zeroth_order.directions import DirectionKind, Directions
from dpaudit.trainers.zeroth_order.log import Release, StageEntry, ZOLogWriter, read_zo_log
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage, aggzo, dpzero, dpzo_laplace, geometric, mezo, zoso
from dpaudit.trainers.zeroth_order.steps import ZOReport
from dpaudit.trainers.zeroth_order.weights import replay
from tests.trainers.zeroth_order.zo_helpers import (
    Slope,
    Spoken,
    gpt_losses,
    plan,
    run,
    seeded_noise,
    tiny_gpt,
    token_records,
)

ROWS = [torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, 0.1], dtype=torch.float64) * s for s in range(1, 41)]


class Diary(MemoryJournal):
    """A journal that notes the order of what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def begin(self, stage: Stage, /) -> None:
        self.notes.append("begin")
        super().begin(stage)

    def count(self) -> None:
        self.notes.append("count")
        super().count()

    def seal(self, reason: str, /) -> None:
        self.notes.append(f"seal:{reason}")
        super().seal(reason)


class NotedNoise(Spoken):
    """Noise that writes its draws into the diary."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        self.diary.notes.append("noise")
        return super().sample(shape, std, device)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# the ledger


def test_every_step_is_counted_before_its_release() -> None:
    diary = Diary()
    run(Slope(), ROWS, dpzero(plan(steps=3), learning_rate=0.1, scale=0.1), journal=diary, noise=NotedNoise(diary))
    assert [note for note in diary.notes if "seal" not in note] == ["begin", *["count", "noise"] * 3]


def test_the_ledger_has_one_stage_per_stage_with_its_directions_and_clip() -> None:
    whole = plan(steps=14, releases_per_step=4, clip="per_direction", noise_multiplier=3.0)
    stages = zoso(whole, learning_rate=0.1, scale=0.1, clipping_norms=[3.0, 2.0, 1.0])
    result, journal = run(Slope(), ROWS, stages)
    counted = journal.ledger_stages()
    assert [s.steps for s in counted] == [2, 4, 8]
    assert [s.clipping_norm for s in counted] == [3.0, 2.0, 1.0]
    assert all(s.releases_per_step == 4 and s.clip is Clip.PER_DIRECTION for s in counted)
    assert all(s.noise_multiplier == 3.0 and s.sampling_probability == 0.2 for s in counted)
    assert counted == stages.ledger().stages == result.stages


def test_executed_steps_are_the_planned_steps_also_where_epochs_do_not_divide_them() -> None:
    """The planted fault: a loop that stops at step > max_steps runs one step more than its ledger."""
    result, journal = run(Slope(), ROWS, dpzero(plan(steps=7), learning_rate=0.1, scale=0.1))
    assert result.log.steps == 7
    assert journal.ledger_stages()[0].steps == 7


def test_a_stop_in_the_middle_is_charged_up_to_its_last_step() -> None:
    diary = Diary()

    def stop(report: ZOReport) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Slope(), ROWS, dpzero(plan(), learning_rate=0.1, scale=0.1), journal=diary, callback=stop)
    assert diary.ledger_stages()[0].steps == 4
    assert diary.notes[-1] == "seal:test: interrupted with injected randomness"


# T7: sampling and empty draws


def test_inclusion_is_independent_with_probability_q_and_varies_as_a_binomial() -> None:
    sizes = []

    def note(report: ZOReport) -> None:
        sizes.append(len(report.private.indices))

    rows = [torch.zeros(6, dtype=torch.float64)] * 1024
    whole = plan(public_size=1024, expected_batch_size=64, steps=600)
    run(Slope(), rows, mezo(whole, learning_rate=0.0, scale=0.1), callback=note, physical_batch_size=128)
    found = torch.tensor(sizes, dtype=torch.float64)
    assert found.mean().item() == pytest.approx(64, abs=1.0)
    assert found.var().item() == pytest.approx(60.0, rel=0.25)


def test_an_empty_draw_is_noised_charged_and_moves_the_weights() -> None:
    noise = Spoken(0.7)
    model = Slope()
    result, journal = run(
        model, ROWS, dpzero(plan(steps=2, clipping_norm=5.0), learning_rate=1.0, scale=0.1),
        sampler=ScriptedSampler([[], []]), noise=noise,
    )  # fmt: skip
    assert journal.ledger_stages()[0].steps == 2
    assert noise.asked == [((1,), 5.0)] * 2
    assert [e.values for e in result.log.entries if isinstance(e, Release)] == [(pytest.approx(0.7 / 8),)] * 2
    assert model.theta.abs().max() > 0
    assert result.status == "test"


def test_the_normaliser_is_the_expected_batch_never_the_realised_one() -> None:
    for draw in ([0], list(range(20))):
        result, _ = run(
            Slope(), [ROWS[0]] * 40, dpzero(plan(steps=1, clipping_norm=1e-3), learning_rate=1.0, scale=0.1),
            sampler=ScriptedSampler([draw]),
        )  # fmt: skip
        (entry,) = [e for e in result.log.entries if isinstance(e, Release)]
        assert abs(entry.values[0]) == pytest.approx(len(draw) * 1e-3 / 8)


@pytest.mark.parametrize("sampling", ["shuffle", "without_replacement"])
def test_shuffled_batches_are_refused_under_a_poisson_ledger(sampling: str) -> None:
    """Planted fault D2: the authors' code shuffles fixed batches and accounts Poisson."""
    stages = dpzero(plan(sampling=sampling), learning_rate=0.1, scale=0.1)
    with pytest.raises(PrivacyRefusal, match="executed by no sampler"):
        run(Slope(), ROWS, stages)


def test_a_plan_without_its_relation_is_no_plan() -> None:
    """Planted fault D3: with no relation, the same noise σC is claimed for whichever relation looks better."""
    value = dataclasses.asdict(plan())
    del value["relation"]
    with pytest.raises(TypeError, match="relation"):
        type(plan())(**value)


# T11: stages, schedules, the proximal anchor


def test_schedules_of_the_three_stages() -> None:
    stages = zoso(
        plan(steps=7000, public_size=1024, expected_batch_size=64), learning_rate=2e-5, scale=1e-6, last_scale=1e-5
    ).stages
    assert [s.plan.steps for s in stages] == [1000, 2000, 4000]
    assert [s.learning_rate for s in stages] == [2e-5, 1e-5, 5e-6]
    assert [s.scale for s in stages] == pytest.approx([1e-6, math.sqrt(1e-11), 1e-5], rel=1e-12)


@pytest.mark.parametrize(("first", "last"), [(1e-6, 1e-5), (1e-3, 1e-6), (1.0, 1.0)])
def test_geometric_scales_hit_both_ends_also_downwards(first: float, last: float) -> None:
    """Planted fault D6: a root of the difference explodes upwards and is NaN downwards."""
    values = geometric(first, last, 4)
    assert values[0] == pytest.approx(first, rel=1e-12) and values[-1] == pytest.approx(last, rel=1e-12)
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([values[1] / values[0]] * 3, rel=1e-9)


def test_the_anchor_pulls_by_one_minus_eta_gamma_a_step() -> None:
    """Planted fault D5: an anchor that aliases the weights never pulls, and the pull is not a direction's."""
    model = Slope(dtype=torch.float32)
    rows = [torch.zeros(6)] * 40
    stages = ZOPlan(
        (ZOStage(plan=plan(steps=5, releases_per_step=3, clip="joint"), learning_rate=0.5, scale=0.1, proximal=0.4),)
    )
    kick = torch.linspace(1.0, 2.0, 6)

    def push(report: ZOReport) -> None:
        if report.step == 1:  # the anchor is the zero vector of the stage's start
            with torch.no_grad():
                model.theta.copy_(kick)

    run(model, rows, stages, callback=push)
    assert torch.allclose(model.theta.detach(), kick * (1 - 0.5 * 0.4) ** 4, rtol=1e-6)


def test_the_anchor_is_refreshed_at_stage_ends_only() -> None:
    model = Slope(dtype=torch.float32)
    rows = [torch.zeros(6)] * 40
    seen: list[float] = []

    def note(report: ZOReport) -> None:
        with torch.no_grad():
            if report.step in (1, 4):  # inside stage 0, at its end (3 steps), then the first of stage 1
                model.theta.fill_(1.0)
        seen.append(model.theta[0].item())

    stages = zoso(plan(steps=9), learning_rate=0.5, scale=0.1, decay=1.0, stages=2, proximal=0.4)
    run(model, rows, stages, callback=note)
    pulled = [1.0, 0.8, 0.64]  # towards the zeros of the start
    # Stage 1's anchor is 0.64: after step 4 the weights are set to 1 and return towards 0.64.
    later = [0.64 + 0.36 * 0.8**k for k in range(6)]
    assert seen == pytest.approx(pulled + later, rel=1e-5)


def test_a_pull_beyond_the_anchor_is_refused() -> None:
    with pytest.raises(InvalidValue, match="overshoot"):
        ZOStage(plan=plan(), learning_rate=2.0, scale=0.1, proximal=0.6)


def test_training_is_in_evaluation_mode_and_modes_come_back() -> None:
    model = tiny_gpt(resid_pdrop=0.5)
    model.transformer.h[0].eval()  # type: ignore[union-attr, index]
    modes = [m.training for m in model.modules()]
    seen = []

    def losses(m: nn.Module, batch: Tensor) -> Tensor:
        seen.append(any(k.training for k in m.modules()))
        return gpt_losses(m, batch)

    run(model, token_records(40), dpzero(plan(steps=2), learning_rate=0.0, scale=1e-3), loss_fn=losses)
    assert seen and not any(seen)
    assert [m.training for m in model.modules()] == modes


def test_no_learning_rate_no_change_in_many_steps() -> None:
    model = Slope(dtype=torch.float32)
    start = weights(model)
    run(model, [r.float() for r in ROWS], dpzero(plan(steps=1000), learning_rate=0.0, scale=1e-3))
    assert torch.equal(start[0], model.theta.detach())


def test_padding_a_physical_batch_adds_no_record() -> None:
    found = []
    for size, pad in ((16, True), (16, False), (3, True), (64, True)):
        model = Slope()
        run(
            model, ROWS, dpzero(plan(steps=3, clipping_norm=50.0), learning_rate=0.1, scale=0.1),
            sampler=ScriptedSampler([[1, 2, 3, 4, 5], [7], list(range(20))]), physical_batch_size=size, pad_batches=pad,
        )  # fmt: skip
        found.append(model.theta.detach().clone())
    assert all(torch.allclose(found[0], other, rtol=1e-12) for other in found[1:])


# the family


def test_mezo_counts_its_steps_without_noise() -> None:
    stages = mezo(plan(target_epsilon=3.0), learning_rate=0.1, scale=0.1)
    _, journal = run(Slope(), ROWS, stages, noise=None)
    (stage,) = journal.ledger_stages()
    assert stage.noise_multiplier == 0.0 and stage.clipping_norm is None and stage.steps == 10


def test_aggzo_is_a_joint_clip_at_k_times_the_papers_norm() -> None:
    """The paper's update: Σ_k (Σ_x clip((Δ_1..Δ_K)/K, c)_k) z_k / b."""
    c, directions = 0.7, 4
    whole = plan(steps=1, releases_per_step=directions, clip="joint", clipping_norm=c * directions)
    result, _ = run(Slope(), ROWS, aggzo(whole, learning_rate=1.0, scale=0.1), sampler=ScriptedSampler([[0, 5, 9]]))
    v = Directions(run="test")
    z = torch.stack([v.values(step=0, direction=p, tensor="theta", size=6) for p in range(directions)]).double()
    total = torch.zeros(directions, dtype=torch.float64)
    for i in (0, 5, 9):
        a = z @ ROWS[i] / directions
        total += a * min(1.0, c / a.norm().item())
    (entry,) = [e for e in result.log.entries if isinstance(e, Release)]
    assert [g / directions for g in entry.values] == pytest.approx((total / 8).tolist(), rel=1e-9)
    with pytest.raises(InvalidValue, match="must be 'joint'"):
        aggzo(plan(releases_per_step=4, clip="per_direction"), learning_rate=1.0, scale=0.1)


def test_dpzero_and_laplace_take_one_direction() -> None:
    several = plan(releases_per_step=4, clip="joint")
    with pytest.raises(PrivacyRefusal, match="releases_per_step=4"):
        dpzero(several, learning_rate=1.0, scale=0.1)
    stages = dpzo_laplace(plan(mechanism="laplace", steps=2), learning_rate=1.0, scale=0.1)
    noise = Spoken(0.0)
    _, journal = run(Slope(), ROWS, stages, noise=noise)
    assert journal.ledger_stages()[0].mechanism is Mechanism.LAPLACE
    assert noise.asked == [((4, 1), 1.0)] * 2
    with pytest.raises(InvalidValue, match="laplace"):
        dpzo_laplace(plan(), learning_rate=1.0, scale=0.1)


def test_more_noise_free_steps_lower_the_loss_of_a_transformer() -> None:
    model, rows = tiny_gpt(), token_records(1) * 40
    before = gpt_losses(model, rows[0][None]).item()
    whole = plan(steps=14, releases_per_step=8, clip="joint", clipping_norm=1e6, noise_multiplier=0.0)
    run(model, rows, zoso(whole, learning_rate=0.05, scale=1e-3), loss_fn=gpt_losses)
    assert gpt_losses(model, rows[0][None]).item() < before - 0.05


# log, replay, resume


@pytest.mark.parametrize("kind", list(DirectionKind))
@pytest.mark.parametrize("mask", [None, MaskRule(keep=0.1, score="magnitude", strategy="dynamic", refresh_every=2)])
def test_the_log_rebuilds_the_weights_bit_for_bit(kind: DirectionKind, mask: MaskRule | None, tmp_path: Path) -> None:
    model, path = tiny_gpt(), tmp_path / "zo.jsonl"
    whole = plan(steps=14, releases_per_step=3, clip="joint")
    writer = ZOLogWriter(path)
    run(
        model, token_records(40), zoso(whole, learning_rate=0.05, scale=1e-3, proximal=0.3, mask=mask),
        loss_fn=gpt_losses, noise=seeded_noise(1), directions=Directions(run="replay", kind=kind), log=writer,
    )  # fmt: skip
    writer.close()
    assert not same(model, tiny_gpt())
    assert same(model, replay(read_zo_log(path), tiny_gpt()))
    assert path.stat().st_size < 100 * 14 + 4000


def test_replay_refuses_another_base_model() -> None:
    result, _ = run(
        tiny_gpt(), token_records(40), dpzero(plan(steps=2), learning_rate=0.1, scale=1e-3), loss_fn=gpt_losses
    )
    with pytest.raises(InvalidEvidence, match="base_sha256"):
        replay(result.log, tiny_gpt(seed=1))


def test_a_log_holds_nothing_but_releases_and_public_schedules(tmp_path: Path) -> None:
    path = tmp_path / "zo.jsonl"
    writer = ZOLogWriter(path)
    run(Slope(), ROWS, dpzero(plan(steps=2), learning_rate=0.1, scale=0.1), log=writer)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(lines[1]) == {"stage", "done", "schedule", "mask_sha256"}
    assert all(set(line) == {"step", "g"} for line in lines[2:])
    assert set(lines[0]) == {"schema", "run", "generator", "kind", "clips", "tensors", "base_sha256", "torch"}


@pytest.mark.slow
def test_a_run_in_segments_is_the_run_in_one_go() -> None:
    whole = zoso(plan(steps=14, releases_per_step=2, clip="joint"), learning_rate=0.05, scale=1e-3, proximal=0.3,
                 mask=MaskRule(keep=0.2, score="magnitude"))  # fmt: skip
    draws = [[i % 40, (i * 7) % 40] for i in range(14)]
    records = token_records(40)

    def options(first: int) -> dict[str, Any]:
        return {"loss_fn": gpt_losses, "sampler": ScriptedSampler(draws[first:])}

    one, parts = tiny_gpt(), tiny_gpt()
    run(one, records, whole, **options(0))
    writer, journal, state = ZOLogWriter(), MemoryJournal(), None
    for start, stop, first in (((0, 0), (1, 3), 0), ((1, 3), (2, 1), 5), ((2, 1), (3, 0), 7)):
        result, _ = run(
            parts, records, whole, **options(first), journal=journal, log=writer, start=start, stop=stop, state=state
        )
        state = result.state
    assert same(one, parts)
    assert sum(s.steps for s in journal.ledger_stages()) == 14
    assert same(one, replay(writer.value(), tiny_gpt()))


def test_a_crash_loses_updates_but_no_charge_and_the_log_says_so() -> None:
    """Checkpoint after 3 steps, crash after 5 counted ones, resume at 5: the log replays to the surviving weights."""
    stages = zoso(plan(steps=14), learning_rate=0.05, scale=1e-3, proximal=0.3)
    records, writer, journal = token_records(40), ZOLogWriter(), MemoryJournal()
    model = tiny_gpt()
    options: dict[str, Any] = {"loss_fn": gpt_losses, "journal": journal, "log": writer}
    saved, _ = run(model, records, stages, stop=(1, 1), **options)
    checkpoint = copy.deepcopy(model.state_dict())
    run(model, records, stages, start=(1, 1), stop=(1, 3), state=saved.state, **options)  # lost
    model.load_state_dict(checkpoint)
    run(model, records, stages, start=(1, 3), state=saved.state, **options)
    assert sum(s.steps for s in journal.ledger_stages()) == 14
    assert writer.value().steps == 12
    assert same(model, replay(writer.value(), tiny_gpt()))


def test_a_torn_last_line_is_dropped_and_a_torn_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zo.jsonl"
    writer = ZOLogWriter(path)
    writer.header({"run": "r", "generator": "g", "tensors": []})
    writer.stage(StageEntry(index=0, done=0, schedule={}))
    writer.release(Release(step=0, values=(1.0, -2.5)))
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 1, "g": [0.')
    assert read_zo_log(path).steps == 1
    again = ZOLogWriter(path)
    again.release(Release(step=1, values=(3.0, 4.0)))
    again.close()
    assert read_zo_log(path).steps == 2
    path.write_text(path.read_text().replace('"done"', "done", 1))
    with pytest.raises(InvalidEvidence, match="line 2 is not JSON"):
        read_zo_log(path)


def test_a_log_of_another_run_is_not_continued() -> None:
    writer = ZOLogWriter()
    run(Slope(), ROWS, dpzero(plan(steps=1), learning_rate=0.1, scale=0.1), log=writer)
    with pytest.raises(InvalidEvidence, match="run differs"):
        run(
            Slope(),
            ROWS,
            dpzero(plan(steps=1), learning_rate=0.1, scale=0.1),
            log=writer,
            directions=Directions(run="b"),
        )


def test_stages_of_different_claims_are_refused() -> None:
    a = ZOStage(plan=plan(), learning_rate=0.1, scale=0.1)
    b = ZOStage(plan=plan(delta=1e-6), learning_rate=0.1, scale=0.1)
    with pytest.raises(InvalidValue, match="stage 1: delta=1e-06 differs"):
        ZOPlan((a, b))


def test_a_ratio_between_the_stages_sigmas_survives_calibration() -> None:
    stages = ZOPlan(
        tuple(ZOStage(plan=plan(noise_multiplier=s), learning_rate=0.1, scale=0.1) for s in (6.0, 4.0, 3.0))
    )
    assert [s.plan.noise_multiplier for s in stages.with_noise_multiplier(3.0).stages] == [3.0, 2.0, 1.5]


def test_status_is_test_only_with_injected_randomness() -> None:
    stages = dpzero(plan(steps=1), learning_rate=0.1, scale=0.1)
    assert run(Slope(), ROWS, stages, noise=None)[0].status == "completed"
    assert run(Slope(), ROWS, stages, noise=NoNoise())[0].status == "test"
    import numpy as np

    sampler = PoissonSampler(40, 0.2, generator=np.random.default_rng(0))
    assert run(Slope(), ROWS, stages, noise=None, sampler=sampler)[0].status == "test"
