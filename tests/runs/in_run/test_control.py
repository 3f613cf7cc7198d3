"""The simulated control is the trainer's own loop: right scores without a fault, and a fault that shows."""

from __future__ import annotations

import dataclasses

import joblib
import numpy as np
import pytest

from dpaudit.auditing.in_run.plan import ControlDesign
from dpaudit.auditing.in_run.visible import canary_rates
from dpaudit.runs.in_run.control import WeakerNoise, simulate, simulate_control
from dpaudit.trainers import PrivacyPlan
from tests.auditing.in_run.cases import plan_of

PLAN = PrivacyPlan(
    delta=1e-5,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    max_records_per_unit=1,
    public_size=100,
    expected_batch_size=8,
    steps=60,
    clipping_norm=0.5,
    noise_multiplier=1.5,
)


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_scores_have_the_rates_of_the_declared_steps_with_that_noise(factor: float) -> None:
    scores, coins = simulate(PLAN, 8_000, noise=None if factor == 1 else WeakerNoise(factor))
    cuts, inside, outside = canary_rates([PLAN.stage()], factor)
    for cut in (-0.5, 0.0, 0.5):
        at = int(np.argmin(np.abs(cuts - cut)))
        for rate, kind in ((inside[at], coins), (outside[at], ~coins)):
            assert float((scores[kind] > cuts[at]).mean()) == pytest.approx(rate, abs=5 * (0.25 / 4_000) ** 0.5)


@pytest.mark.parametrize("engine", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_repetitions_are_spread_over_joblibs_backend_and_are_all_there(engine: str) -> None:
    """Each has coins, draws and noise of its own, also in a worker: two alike would count one run twice."""
    control = ControlDesign(noise_factor=0.5, canaries=400, repeats=6)
    plan = plan_of(400, control=control)
    short, told = dataclasses.replace(PLAN, steps=3), []
    deltas = [1e-5] * len(plan.epsilons)
    with joblib.parallel_config(engine, n_jobs=2):
        runs = simulate_control(plan, short, deltas, advance=told.append)
    assert len({run.sha256 for run in runs}) == 6 == sum(told)
    assert all(run.guesses == 2 * plan.guesses for run in runs)
