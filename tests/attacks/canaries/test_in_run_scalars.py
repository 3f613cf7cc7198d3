"""In-run canaries of zeroth-order steps: bounded differences, scores that tell members, and the trainer's own path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue, PrivacyRefusal
from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries, draw_scalar_coins
from dpaudit.privacy.stage import Clip
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.witness import ReleaseRecorder
from dpaudit.trainers.zeroth_order.stages import ZOStage
from dpaudit.trainers.zeroth_order.watched import Watched
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, seeded_noise, tiny_gpt, token_records


def make(m: int = 60, *, p: int = 4, clip: Clip = Clip.PER_DIRECTION, q: float = 0.2, seed: int = 0):  # type: ignore[no-untyped-def]
    coins = np.random.default_rng(seed).random(m) < 0.5
    return ScalarInRunCanaries(coins, 7, sampling_probability=q, noise_multiplier=1.0, releases_per_step=p, clip=clip)


@pytest.mark.parametrize("clip, norm", [(Clip.PER_DIRECTION, 2.0), (Clip.JOINT, 1.0)])
def test_differences_stand_at_their_bound(clip: Clip, norm: float) -> None:
    found = make(clip=clip).differences(3, [0, 2], 0.5)
    assert found.shape == (4, 2)
    assert torch.allclose(found.norm(dim=0), torch.full((2,), 0.5 * norm, dtype=torch.float64))
    if clip is Clip.PER_DIRECTION:
        assert torch.equal(found.abs(), torch.full((4, 2), 0.5, dtype=torch.float64))


def test_signs_follow_from_key_and_step_alone_and_are_fair() -> None:
    first, second = make(), make(seed=1)
    assert np.array_equal(first.signs(5), second.signs(5)) and not np.array_equal(first.signs(5), first.signs(6))
    many = np.concatenate([first.signs(t).ravel() for t in range(200)]).astype(float)
    assert abs(many.mean()) < 4 / np.sqrt(many.size)


@pytest.mark.parametrize("clip", [Clip.PER_DIRECTION, Clip.JOINT])
def test_members_score_higher(clip: Clip) -> None:
    canaries, rng = make(clip=clip), np.random.default_rng(3)
    for step in range(300):
        drawn = np.flatnonzero(rng.random(canaries.members) < 0.2).tolist()
        sums = canaries.differences(step, drawn, 0.5).sum(dim=1).numpy() + 0.5 * rng.standard_normal(4)
        canaries.observe(step, (sums / 8).tolist(), clipping_norm=0.5, normaliser=8)
    scores = canaries.scores()
    spread = scores.std() * np.sqrt(1 / canaries.coins.sum() + 1 / (~canaries.coins).sum())
    assert scores[canaries.coins].mean() - scores[~canaries.coins].mean() > 4 * spread
    again = make(clip=clip)
    again.resume(canaries.state())
    assert np.array_equal(again.scores(), scores) and again.steps == 300


def test_the_trainer_draws_them_and_shows_them_every_release() -> None:
    stage = ZOStage(plan=plan(steps=2, releases_per_step=4, clip="per_direction"), learning_rate=0.01, scale=1e-3)
    released = []
    for draws in ([[1, 2], []], [[1, 2, 41], [40]]):
        canaries, recorder = make(6, seed=2), ReleaseRecorder({"scalars": 4})
        result, _ = run(
            tiny_gpt(), token_records(40), [stage], loss_fn=gpt_losses, noise=NoNoise(),
            sampler=ScriptedSampler(draws, n_records=40 + canaries.members), canaries=canaries, recorder=recorder,
        )  # fmt: skip
        assert canaries.steps == len(recorder) == 2
        released.append([np.array(e.values) for e in result.log.entries if hasattr(e, "values")])
    bound, divisor = stage.plan.clipping_norm, stage.plan.normaliser
    expected = make(6, seed=2).differences(0, [1], bound)[:, 0].numpy() / divisor
    assert np.allclose(released[1][0] - released[0][0], expected)
    assert np.allclose(released[1][1], make(6, seed=2).differences(1, [0], bound)[:, 0].numpy() / divisor)


def test_energy_of_scalars_is_recorded_at_the_declared_noise() -> None:
    stage = ZOStage(plan=plan(steps=40, releases_per_step=4, clip="per_direction"), learning_rate=0.0, scale=1e-3)
    recorder = ReleaseRecorder({"scalars": 4})
    run(
        tiny_gpt(), token_records(40), [stage], loss_fn=gpt_losses, noise=seeded_noise(1),
        sampler=ScriptedSampler([[]] * 40), recorder=recorder,
    )  # fmt: skip
    assert 100 < sum(recorder.state()["step_squares"]) < 230  # 160 scalars of pure noise


def test_laplace_and_coupled_draws_are_refused() -> None:
    laplace = ZOStage(plan=plan(mechanism="laplace", releases_per_step=1), learning_rate=0.1, scale=1e-3)
    with pytest.raises(PrivacyRefusal, match="laplace"):
        Watched(laplace, 40, recorder=ReleaseRecorder({"scalars": 1}))
    with pytest.raises(InvalidValue, match="released"):
        make().observe(0, [0.0], clipping_norm=1.0, normaliser=1.0)


def test_coins_and_keys_are_fresh() -> None:
    (first, key), (second, other) = draw_scalar_coins(500), draw_scalar_coins(500)
    assert key != other and not np.array_equal(first, second) and 150 < first.sum() < 350
