"""Observers of a training run: canaries join the sum by the run's own draws, and the record sees what left the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit import InvalidValue, MemoryJournal, PrivacyRefusal
from dpaudit.attacks.canaries.in_run import InRunCanaries, InRunDesign, draw_in_run_canaries
from dpaudit.auditing.energy import ReleaseEnergy, energy_test
from dpaudit.trainers import GhostClipping, OptimizerSettings, PrivacyPlan, train
from dpaudit.trainers.clipping import Flat, PerLayer
from dpaudit.trainers.distributed.replicated import ShardSampler
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.observer import Observers, contribution_of
from dpaudit.trainers.sampling import PoissonSampler, Sampler, ScriptedSampler
from dpaudit.trainers.witness import ReleaseRecorder

SGD = OptimizerSettings(algorithm="sgd", learning_rate=0.01)
D = 40 * 30 + 30 + 30 * 2 + 2


def plan_of(**changes: object) -> PrivacyPlan:
    values: dict[str, object] = dict(
        delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=60,
        expected_batch_size=12, steps=30, clipping_norm=0.5, noise_multiplier=1.0,
    )  # fmt: skip
    return PrivacyPlan(**{**values, **changes})  # type: ignore[arg-type]


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, int]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2))
    return model, [(torch.randn(40), i % 2) for i in range(60)]


def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([r[0] for r in rows]), "y": torch.tensor([r[1] for r in rows])}


def losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def sizes_of(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters()}


def canaries_of(model: nn.Module, design: InRunDesign, plan: PrivacyPlan) -> InRunCanaries:
    return InRunCanaries(
        design,
        tuple(sizes_of(model).values()),
        sampling_probability=plan.sampling_probability,
        contribution=plan.clipping_norm,
    )


def run(model: nn.Module, records: list[tuple[torch.Tensor, int]], plan: PrivacyPlan, **options: object) -> None:
    train(
        model, records, plan, collate=collate, loss_fn=losses, journal=MemoryJournal(), optimizer=SGD, **options
    )  # type: ignore[arg-type]  # fmt: skip


def test_only_drawn_canaries_enter_the_sum_and_records_are_untouched() -> None:
    plan = plan_of(steps=1)
    design = InRunDesign(np.array([3, 1225, 1290]), np.array([True, False, True]), D)
    sums = []
    for draw in ([1, 2], [1, 2, 61]):  # 61 is the second member canary
        model, records = problem()
        run(
            model,
            records,
            plan,
            canaries=canaries_of(model, design, plan),
            sampler=ScriptedSampler([draw], n_records=62),
            noise=NoNoise(),
            callback=lambda report: sums.append(torch.cat([r.reshape(-1) for r in report.released])),
        )
    change = ((sums[1] - sums[0]) * plan.normaliser).numpy()
    assert np.flatnonzero(np.abs(change) > 1e-6).tolist() == [1290]
    assert change[1290] == pytest.approx(0.5, rel=1e-5)


def test_a_run_is_watched_from_its_own_draws_to_a_verdict_on_its_noise() -> None:
    plan = plan_of()
    model, records = problem()
    design = draw_in_run_canaries(D, m=120, rng=np.random.default_rng(0))
    canaries, recorder = canaries_of(model, design, plan), ReleaseRecorder(sizes_of(model))
    run(model, records, plan, canaries=canaries, recorder=recorder)
    assert canaries.steps == len(recorder) == 30
    scores = canaries.scores()
    assert scores[design.coins].mean() > scores[~design.coins].mean()
    assert energy_test(energy(recorder)).p_value > 1e-3


def test_a_run_without_noise_is_refuted_by_its_energy() -> None:
    plan = plan_of()
    model, records = problem()
    recorder = ReleaseRecorder(sizes_of(model))
    run(model, records, plan, recorder=recorder, noise=NoNoise())
    assert energy_test(energy(recorder)).p_value < 1e-12


def energy(recorder: ReleaseRecorder) -> ReleaseEnergy:
    state = recorder.state()
    return ReleaseEnergy(
        blocks=tuple(state.pop("blocks")), **{name: np.asarray(values) for name, values in state.items()}
    )


def test_contribution_is_the_rule_s_bound() -> None:
    model, _ = problem()
    with GhostClipping(model, 0.5, clipping=Flat(0.5)) as clipper:
        assert contribution_of(clipper, 0.5) == 0.5
    with GhostClipping(model, 0.5, clipping=PerLayer(0.5)) as clipper:
        assert contribution_of(clipper, 0.5) == pytest.approx(0.5 / np.sqrt(2))


def test_a_sampling_that_couples_records_is_refused() -> None:
    plan = plan_of(sampling="truncated_poisson", max_batch=20)
    model, _ = problem()
    design = InRunDesign(np.array([3]), np.array([True]), D)
    with pytest.raises(PrivacyRefusal, match="take the place of records"):
        Observers(plan, 60, canaries=canaries_of(model, design, plan))


def test_a_rule_without_one_bound_is_refused_before_a_step_is_counted() -> None:
    plan, journal = plan_of(), MemoryJournal()
    model, records = problem()
    design = InRunDesign(np.array([3]), np.array([True]), D)
    with GhostClipping(model, 0.5, clipping=PerLayer(0.5, bounds=(0.3, 0.4))) as clipper:
        with pytest.raises(InvalidValue, match="equal bounds"):
            train(
                model, records, plan, collate=collate, loss_fn=losses, journal=journal, optimizer=SGD, clipper=clipper,
                canaries=canaries_of(model, design, plan),
            )  # fmt: skip
    assert not journal.ledger_stages()


@pytest.mark.parametrize(
    "sampler",
    [PoissonSampler(60, 0.2), ShardSampler(60, 0.2, rank=0, world=1)],
    ids=["of one process", "of several processes"],
)
def test_a_sampler_that_leaves_canaries_out_is_refused_before_a_step_is_counted(sampler: Sampler) -> None:
    plan, journal = plan_of(), MemoryJournal()
    model, records = problem()
    design = InRunDesign(np.array([3]), np.array([True]), D)
    with pytest.raises(PrivacyRefusal, match="leaves out 1 in-run canaries"):
        train(
            model, records, plan, collate=collate, loss_fn=losses, journal=journal, optimizer=SGD, sampler=sampler,
            canaries=canaries_of(model, design, plan),
        )  # fmt: skip
    assert not journal.ledger_stages()
