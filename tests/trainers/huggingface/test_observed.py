"""In-run canaries in Hugging Face's Trainer: drawn, added and scored at every step, also over a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dpaudit import InvalidEvidence, PrivacyRefusal
from dpaudit.attacks import InRunCanaries, draw_in_run_canaries
from dpaudit.trainers.huggingface.trainer import DPTrainer
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import PoissonSampler, ScriptedSampler
from dpaudit.trainers.step import trainable
from tests.trainers.huggingface.test_trainer import PLAN, RECORDS, N, arguments, collate, model


def canaries_of(net: Any) -> InRunCanaries:
    sizes = [p.numel() for p in trainable(net).values()]
    return InRunCanaries(
        draw_in_run_canaries(sum(sizes), m=200, rng=np.random.default_rng(0)),
        sizes,
        sampling_probability=PLAN.sampling_probability,
        contribution=PLAN.clipping_norm,
    )


def trainer_of(path: Path, **changes: Any) -> DPTrainer:
    net = model()
    values = dict(model=net, privacy=PLAN, train_dataset=RECORDS, data_collator=collate, in_run=canaries_of(net))
    return DPTrainer(args=arguments(path, save_steps=2, save_strategy="steps"), **{**values, **changes})


def test_only_what_was_drawn_is_added_on_its_coordinate(tmp_path: Path) -> None:
    """Without noise and without records, a step's release is C/L on the drawn canaries' coordinates and 0 elsewhere."""
    draws = [[N + 3, N + 7], [], [N + 3], [], [N]]
    sampler = ScriptedSampler(draws, n_records=N + canaries_of(model()).members)
    trainer = trainer_of(tmp_path, sampler=sampler, noise=NoNoise())
    before = torch.cat([p.detach().flatten() for p in trainable(trainer.model).values()]).clone()
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainable(trainer.model).values()])
    canaries = trainer._in_run
    assert isinstance(canaries, InRunCanaries) and canaries.steps == 5 and len(trainer.recorder or ()) == 5
    hit = canaries.design.coordinates[canaries.design.members[[0, 3, 7]]]
    moved = torch.zeros_like(after, dtype=torch.bool)
    moved[torch.from_numpy(hit)] = True
    # weight decay is 0 there: what no canary owned did not move, and all three coordinates did
    assert ((after - before).abs() > 0).equal(moved)
    assert set(np.argsort(canaries.scores())[-3:]) == set(canaries.design.members[[0, 3, 7]])


def test_a_sampler_that_leaves_canaries_out_is_refused_before_a_step_is_counted(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, sampler=PoissonSampler(N, PLAN.sampling_probability))
    with pytest.raises(PrivacyRefusal, match="in-run canaries, so that their audit would see nothing"):
        trainer.train()
    assert not trainer.ledger.steps


class _StopAtTwo(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == 2
        return control


def test_scores_are_kept_in_private_over_a_resume(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=[_StopAtTwo()]).train()
    kept = tmp_path / "_private" / "in_run-2.pt"
    assert kept.stat().st_mode & 0o777 == 0o600
    state, content = torch.load(kept, weights_only=True), kept.read_bytes()
    assert state["canaries"]["steps"] == 2 and len(state["recorder"]["step_squares"]) == 2
    kept.unlink()
    with pytest.raises(InvalidEvidence, match="what in-run canaries saw before is lost"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    kept.write_bytes(content)
    again = trainer_of(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again._in_run.steps == PLAN.steps == len(again.recorder or ())
    assert again.recorder.state()["step_squares"][:2] == state["recorder"]["step_squares"]
