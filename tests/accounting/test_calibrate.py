"""Calibration never returns what misses its target: every result is evaluated again, and limits are told."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import DpauditError, InvalidValue, Relation, Stage, UnsupportedStage
from dpaudit.accounting import epsilon_upper
from dpaudit.accounting.calibrate import (
    LARGEST_STEPS,
    StageTarget,
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
    smallest_meeting,
    stage_ledger,
)
from dpaudit.cli import run

HOW: dict[str, Any] = {"relation": Relation.ADD_OR_REMOVE_ONE}


def stage(q: float = 0.01, sigma: float = 1.0, steps: int = 100, **more: Any) -> Stage:
    return Stage(sampling_probability=q, noise_multiplier=sigma, steps=steps, **({"sampling": "poisson"} | more))


def epsilon(made: Stage, delta: float, accountant: str) -> float:
    return epsilon_upper(stage_ledger(made, "add_or_remove_one"), delta, accountant)


@pytest.mark.parametrize(
    ("target", "delta", "made", "accountant"),
    [
        (3.0, 1e-5, stage(q=0.0005, sigma=20.0), "rdp"),  # 2²⁹ steps meet it and a billion do not
        (2.0, 1e-6, stage(q=1.0, sigma=65_000.0, sampling="none"), "prv"),
        (2.0, 1e-6, stage(q=1.0, sigma=65_000.0, sampling="none"), "gdp"),
    ],
)
def test_steps_near_the_largest_number_meet_the_target(
    target: float, delta: float, made: Stage, accountant: str
) -> None:
    steps = calibrate_steps(made, StageTarget(epsilon=target, delta=delta, accountant=accountant, **HOW))
    assert 2**29 < steps < LARGEST_STEPS

    assert epsilon(dataclasses.replace(made, steps=steps), delta, accountant) <= target
    assert epsilon(dataclasses.replace(made, steps=steps + steps // 50), delta, accountant) > target


def test_the_largest_number_is_told_where_it_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["calibrate", "--epsilon", "100", "--delta", "1e-5", "--noise-multiplier", "5000", "--sampling", "none"]
    asked += ["--sampling-probability", "1"]
    with pytest.raises(SystemExit):
        run([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == LARGEST_STEPS and "largest number of steps" in found["limit"]
    with pytest.raises(SystemExit):
        run(asked)
    assert "more may meet the target too" in capsys.readouterr().out


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.floats(1e-6, 50.0),
    st.sampled_from([1e-3, 1e-6, 1e-10]),
    st.sampled_from(["prv", "rdp"]),
    st.tuples(st.floats(1e-4, 1.0), st.floats(0.4, 60.0), st.integers(1, 500)),
)
def test_what_is_returned_meets_its_target(
    target: float, delta: float, accountant: str, parts: tuple[float, float, int]
) -> None:

    made = stage(*parts)
    asked = StageTarget(epsilon=target, delta=delta, accountant=accountant, **HOW)
    for field, solve in (
        ("noise_multiplier", calibrate_noise_multiplier),
        ("steps", calibrate_steps),
        ("sampling_probability", calibrate_sampling_probability),
    ):
        if field == "steps" and target > 2:
            continue
        try:
            value = solve(made, asked)
        except DpauditError as error:
            assert str(error).endswith(".")
            continue
        assert epsilon(dataclasses.replace(made, **{field: value}), delta, accountant) <= target


@pytest.mark.slow
def test_a_small_target_is_met_by_much_noise() -> None:
    sigma = calibrate_noise_multiplier(stage(steps=1000), StageTarget(epsilon=1e-6, delta=1e-9, **HOW))
    assert 5e5 < sigma < 2e6


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_targets_out_of_bounds_are_refused(target: float) -> None:
    for solve in (calibrate_noise_multiplier, calibrate_steps, calibrate_sampling_probability):
        with pytest.raises(InvalidValue, match="target_epsilon="):
            solve(stage(), StageTarget(epsilon=target, delta=1e-5, **HOW))


def test_a_refusal_on_the_way_counts_as_unmet_and_is_told_where_nothing_is_met() -> None:
    # At σ = 1 the accountant refuses so wide a loss; at the answer it does not.
    wide = stage(q=0.2, steps=100_000)
    sigma = calibrate_noise_multiplier(wide, StageTarget(epsilon=8.0, delta=1e-5, accountant="pld", **HOW))
    assert 30 < sigma < 50
    unmet = StageTarget(epsilon=8.0, delta=1e-5, accountant="rdp", relation=Relation.REPLACE_ONE)
    with pytest.raises(UnsupportedStage, match="refuses relation"):
        calibrate_noise_multiplier(stage(), unmet)


def test_a_value_that_misses_its_target_when_evaluated_again_is_refused() -> None:
    calls: list[float] = []

    def fickle(value: float) -> float:
        calls.append(value)
        return 0.5 / value if calls.count(value) == 1 else 9.0

    with pytest.raises(InvalidValue, match="when it is evaluated again"):
        smallest_meeting(fickle, 1.0, start=1.0, largest=100.0)
