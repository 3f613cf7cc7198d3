"""Guessing among 2^b secrets, the interference rules, gradient and scalar canaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit import InvalidValue
from dpaudit.attacks import draw_candidates, guess_candidates
from dpaudit.attacks.canaries.gradient import dirac_canaries, random_direction_canaries, scalar_canaries
from dpaudit.attacks.canaries.planning import (
    interference_factor,
    recommended_canaries,
    recommended_canaries_zeroth_order,
    signal_strength,
)
from dpaudit.attacks.scores.functions import projection_scores
from dpaudit.privacy.stage import Clip


@given(st.integers(1, 12), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_guesses_equal_a_loop_with_pessimistic_ties(n: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses, truth = rng.integers(5, size=(n, size)).astype(float), rng.integers(size, size=n)
    found = guess_candidates(losses, truth)
    right = [all(losses[i, truth[i]] < losses[i, j] for j in range(size) if j != truth[i]) for i in range(n)]
    tied = sum(sorted(row)[0] == sorted(row)[1] for row in losses.tolist())
    assert found.is_correct.tolist() == right and found.correct == sum(right) and found.ties == tied
    assert found.correct + found.incorrect == found.n == n and found.candidates == size
    assert found.scores.tolist() == [sorted(row)[1] - sorted(row)[0] for row in losses.tolist()]


def test_blind_guesses_are_right_once_in_two_to_the_b() -> None:
    rng = np.random.default_rng(0)
    n, bits = 4000, 3
    drawn = draw_candidates(n, bits, rng=rng, secret_length=4, generator=rng)
    found = guess_candidates(rng.normal(size=(n, 2**bits)), drawn.truth)
    assert abs(found.correct - n / 8) < 5 * math.sqrt(n * 7 / 64)
    counts = np.bincount(drawn.truth, minlength=8)
    assert (abs(counts - n / 8) < 5 * math.sqrt(n * 7 / 64)).all()
    assert all(len(set(row)) == 8 for row in drawn.candidates)
    assert drawn.inserted[5] == drawn.candidates[5][drawn.truth[5]]


def test_truth_comes_from_system_entropy_by_default() -> None:
    draws = [draw_candidates(40, 4, rng=np.random.default_rng(1)) for _ in range(2)]
    assert draws[0].candidates == draws[1].candidates and draws[0].truth != draws[1].truth


def test_extraction_mistakes_are_named() -> None:
    with pytest.raises(InvalidValue, match="bits=21"):
        draw_candidates(1, 21, rng=np.random.default_rng(0))
    with pytest.raises(InvalidValue, match="K=1"):
        guess_candidates([[1.0]], [0])
    with pytest.raises(InvalidValue, match=r"in \[0, 2\)"):
        guess_candidates([[1.0, 2.0]], [2])
    with pytest.raises(InvalidValue, match="NaN"):
        guess_candidates([[1.0, float("nan")]], [0])


def test_interference_of_random_directions_as_simulated() -> None:
    rng = np.random.default_rng(2)
    m, d, mu, runs = 1500, 500, 1.2, 8
    found = []
    for _ in range(runs):
        canaries = random_direction_canaries(m, d, clipping_norm=3.0, rng=rng)
        coins = rng.integers(2, size=m).astype(bool)
        # centred: what every run adds on average is known to the auditor
        release = mu * (canaries.contribution(coins) - canaries.contribution(np.ones(m)) / 2) + 3.0 * rng.normal(size=d)
        x = canaries.project(release)
        spread = math.sqrt((x[coins].var() + x[~coins].var()) / 2)
        found.append((x[coins].mean() - x[~coins].mean()) / spread)
    assert np.mean(found) == pytest.approx(mu * interference_factor(m, mu, d), rel=0.08)


@given(st.integers(1, 10**7), st.floats(0.05, 20), st.floats(0.01, 0.9))
def test_recommended_canaries_is_the_largest_within_tolerance(d: int, mu: float, loss: float) -> None:
    m = recommended_canaries(d, mu, tolerated_loss=loss)
    if m > 1:
        assert interference_factor(m, mu, d) >= (1 - loss) * (1 - 1e-9)
    assert interference_factor(m + 1, mu, d) < (1 - loss) * (1 + 1e-9)


def test_zeroth_order_rule_follows_the_clip() -> None:
    q = 0.02
    one = recommended_canaries_zeroth_order(0.8, q, releases_per_step=1)
    assert one == 64
    # the same step-level noise: sigma sqrt P on each direction, or a joint bound over P directions
    assert recommended_canaries_zeroth_order(1.6, q, releases_per_step=4, clip=Clip.PER_DIRECTION) == 4 * one
    assert recommended_canaries_zeroth_order(0.8, q, releases_per_step=4, clip=Clip.JOINT) == 4 * one
    with pytest.raises(InvalidValue, match="needs clip"):
        recommended_canaries_zeroth_order(0.8, q, releases_per_step=4)


def test_signal_strength_of_the_reference_configuration() -> None:
    assert signal_strength(0.0128, 1000, 0.8025) == pytest.approx(0.781, abs=5e-4)
    with pytest.raises(InvalidValue, match="sampling_probability=2"):
        signal_strength(2, 10, 1.0)


@pytest.mark.parametrize("kind", ["dirac", "random"])
def test_gradient_canaries_are_worth_the_clipping_norm(kind: str) -> None:
    rng = np.random.default_rng(3)
    make = dirac_canaries if kind == "dirac" else random_direction_canaries
    canaries = make(20, 4000, clipping_norm=0.3, rng=rng)
    assert len(canaries) == 20
    present = np.zeros(20)
    present[4] = 1
    alone = canaries.contribution(present)
    assert np.linalg.norm(alone) == pytest.approx(0.3, rel=1e-5)
    assert canaries.project(alone)[4] == pytest.approx(1.0, rel=1e-5)
    assert canaries.cosines(alone)[4] == pytest.approx(1.0, rel=1e-5)
    both = canaries.contribution(np.ones(20))
    np.testing.assert_allclose(canaries.project(both), 1.0, atol=1e-9 if kind == "dirac" else 0.3)
    absent = canaries.cosines(rng.normal(size=4000))
    assert np.abs(absent).max() < 6 / math.sqrt(4000)
    with pytest.raises(InvalidValue, match="update is zero"):
        canaries.cosines(np.zeros(4000))


def test_dirac_canaries_need_a_coordinate_each() -> None:
    with pytest.raises(InvalidValue, match="m=5 Dirac"):
        dirac_canaries(5, 4, clipping_norm=1.0, rng=np.random.default_rng(0))


@pytest.mark.parametrize("clip", [Clip.PER_DIRECTION, Clip.JOINT])
def test_scalar_canaries_through_a_zeroth_order_transcript(clip: Clip) -> None:
    rng = np.random.default_rng(4)
    m, steps, p, c, sigma, q = 40, 400, 8, 0.5, 2.0, 0.1
    canaries = scalar_canaries(m, steps, releases_per_step=p, clipping_norm=c, rng=rng, clip=clip)
    alone = np.array([canaries.contribution(t, np.arange(m) == 0) for t in range(steps)])
    if clip is Clip.JOINT:
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), c)
    else:
        assert set(np.abs(alone).ravel()) == {c}
    np.testing.assert_allclose(canaries.projections(alone)[0], 1.0)

    silent = canaries.projections(sigma * c * rng.normal(size=(steps, p)))
    effective = canaries.noise_multiplier(sigma)
    assert effective == pytest.approx(sigma if clip is Clip.JOINT else sigma / math.sqrt(p))
    assert silent.std() == pytest.approx(effective, rel=0.03)

    coins = rng.integers(2, size=m).astype(bool)
    took_part = (rng.random((steps, m)) < q) & coins
    y = np.array([canaries.contribution(t, took_part[t]) for t in range(steps)]) + sigma * c * rng.normal(
        size=(steps, p)
    )
    scores = projection_scores(canaries.projections(y), sampling_probability=q, noise_multiplier=effective)
    mu = signal_strength(q, steps, effective)
    spread = math.sqrt((scores[coins].var() + scores[~coins].var()) / 2)
    assert (scores[coins].mean() - scores[~coins].mean()) / spread == pytest.approx(mu, abs=0.35 + 0.35 * mu)
    with pytest.raises(InvalidValue, match="needs clip"):
        scalar_canaries(m, steps, releases_per_step=p, clipping_norm=c, rng=rng)
