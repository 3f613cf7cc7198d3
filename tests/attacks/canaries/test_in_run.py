"""In-run canaries: what they add, what an observer reads, and the bound that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.attacks.canaries.in_run import InRunCanaries, InRunDesign, draw_in_run_canaries
from dpaudit.attacks.scores.functions import projection_scores
from dpaudit.auditing import snj_epsilon_lower

SIZES = (300, 50, 150)


def simulate(
    canaries: InRunCanaries, *, steps: int, sigma: float, q: float, seed: int, shrink: float = 1.0
) -> list[list[torch.Tensor]]:
    """Noisy sums of a run without records, whose members are drawn with probability q."""
    rng, generator, kept = np.random.default_rng(seed), torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        sums = [torch.zeros(n) for n in SIZES]
        canaries.add_to(sums, np.flatnonzero(rng.random(canaries.members) < q).tolist())
        noisy = [s + 0.5 * sigma * shrink * torch.randn(s.shape, generator=generator) for s in sums]
        canaries.observe(noisy, deviation=0.5 * sigma)
        kept.append(noisy)
    return kept


def make(m: int, seed: int = 0, q: float = 0.2) -> InRunCanaries:
    design = draw_in_run_canaries(sum(SIZES), m=m, rng=np.random.default_rng(seed))
    return InRunCanaries(design, SIZES, sampling_probability=q, contribution=0.5)


def test_a_drawn_canary_adds_the_clipping_norm_to_its_coordinate() -> None:
    canaries = make(40)
    sums = [torch.zeros(n) for n in SIZES]
    canaries.add_to(sums, [0, 3])
    flat = torch.cat(sums).numpy()
    where = canaries.design.coordinates[canaries.design.members[[0, 3]]]
    assert set(np.flatnonzero(flat)) == set(where.tolist()) and (flat[where] == 0.5).all()


def test_scores_are_the_likelihood_ratio_of_the_projections() -> None:
    canaries = make(60)
    kept = simulate(canaries, steps=7, sigma=0.8, q=0.2, seed=1)
    flat = np.array([torch.cat(step).double().numpy() for step in kept])
    expected = projection_scores(
        flat[:, canaries.design.coordinates].T / 0.5, sampling_probability=0.2, noise_multiplier=0.8
    )
    assert np.allclose(canaries.scores(), expected)


def test_means_and_sums_give_the_same_scores_and_a_resume_changes_nothing() -> None:
    canaries, again, means = make(60), make(60), make(60)
    kept = simulate(canaries, steps=6, sigma=0.8, q=0.2, seed=2)
    for number, step in enumerate(kept):
        if number == 3:
            state = again.state()
            again = make(60)
            again.resume(state)
        again.observe(step, deviation=0.4)
        means.observe([s / 16 for s in step], deviation=0.4, normaliser=16)
    assert np.array_equal(canaries.scores(), again.scores()) and again.steps == 6
    assert np.allclose(canaries.scores(), means.scores())


def test_contributions_may_differ_between_parameters() -> None:
    design = InRunDesign(np.array([10, 320]), np.array([True, True]), 500)
    canaries = InRunCanaries(design, SIZES, sampling_probability=1.0, contribution=(0.3, 0.1, 0.2))
    sums = [torch.zeros(n) for n in SIZES]
    canaries.add_to(sums, [0, 1])
    assert sums[0][10] == pytest.approx(0.3) and sums[1][20] == pytest.approx(0.1)


def test_members_stand_out_and_a_bound_follows_that_the_mechanism_keeps() -> None:
    canaries = make(400, seed=3, q=1.0)
    simulate(canaries, steps=1, sigma=0.5, q=1.0, seed=3)
    scores, coins = canaries.scores(), canaries.design.coins
    order = np.argsort(-scores)
    correct = int(coins[order[:40]].sum() + (~coins[order[-40:]]).sum())
    bound = snj_epsilon_lower(400, 80, correct, 1e-5)
    assert 1.0 < bound < 9.8  # one Gaussian release at noise multiplier 0.5 has epsilon 9.8 at 1e-5


def test_coins_come_from_the_operating_system() -> None:
    first, second = draw_in_run_canaries(5000, m=500), draw_in_run_canaries(5000, m=500)
    assert not np.array_equal(first.coins, second.coins) and not np.array_equal(first.coordinates, second.coordinates)
    assert 150 < first.coins.sum() < 350


@pytest.mark.parametrize("m, dimension", [(0, 5), (6, 5)])
def test_impossible_numbers_are_refused(m: int, dimension: int) -> None:
    with pytest.raises(InvalidValue):
        draw_in_run_canaries(dimension, m=m)


def test_designs_that_collide_are_refused() -> None:
    with pytest.raises(InvalidValue, match="coordinate of their own"):
        InRunDesign(np.array([1, 1]), np.array([True, False]), 5)
    with pytest.raises(InvalidValue, match="add up"):
        InRunCanaries(InRunDesign(np.array([1]), np.array([True]), 5), (3,), sampling_probability=0.5, contribution=1.0)
