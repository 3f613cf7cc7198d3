"""The energy witness: exact under the declared noise whatever the gradients do, and sharp against less noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpaudit import InvalidEvidence
from dpaudit.auditing.energy import (
    ReleaseEnergy,
    chi_square_lower_tail,
    energy_test,
    finding_from_energy,
    smallest_visible_shortfall,
)

Array = NDArray[np.float64]
SIZES = np.array([7000, 3000, 10000])


def record(releases: Array, sizes: NDArray[np.int64] = SIZES) -> ReleaseEnergy:
    """Energy record of releases (T, d) in units of σC."""
    parts = np.split(releases, np.cumsum(sizes)[:-1], axis=1)
    lagged = np.r_[0.0, (releases[1:] * releases[:-1]).sum(axis=1)]
    near = np.zeros(len(releases))
    for a, b in itertools.pairwise(parts):
        m = min(a.shape[1], b.shape[1])
        near += (a[:, :m] * b[:, :m]).sum(axis=1)
    half = releases.shape[1] // 2
    folded = (releases[:, :half] * releases[:, half : 2 * half]).sum(axis=1)
    steps = (releases**2).sum(axis=1)
    return ReleaseEnergy(
        blocks=tuple("abc"),
        sizes=sizes,
        step_squares=steps,
        block_squares=np.array([(part**2).sum() for part in parts]),
        probe=sizes,
        probe_squares=steps,
        lagged=lagged,
        within=np.stack([near, folded], axis=1),
    )


def run(rng: np.random.Generator, *, steps: int = 20, noise: Callable[[int, Array], Array] | None = None) -> Array:
    """Releases of an adaptive run: its gradients undo what was released before, and drift."""
    released, position = [], np.zeros(SIZES.sum())
    for t in range(steps):
        z = rng.standard_normal(SIZES.sum())
        z = z if noise is None else noise(t, z)
        gradient = -0.3 * position + 0.05
        gradient *= min(1.0, 12.0 / np.linalg.norm(gradient))
        released.append(gradient + z)
        position = position + 0.2 * released[-1]
    return np.array(released)


@pytest.mark.parametrize("degrees", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("z", [-0.5, -2.0, -5.0])
def test_tail_is_that_of_the_incomplete_gamma_function(degrees: int, z: float) -> None:
    value = degrees + z * math.sqrt(2 * degrees)
    if value <= 0:
        return
    truth = float(mpmath.gammainc(degrees / 2, 0, value / 2, regularized=True))
    assert truth <= chi_square_lower_tail(value, degrees) <= truth * (1 + 2e-6)


@pytest.mark.parametrize("degrees", [2 * 10**6, 16 * 10**7])
@pytest.mark.parametrize("z", [-0.001, -0.5, -2.0, -6.0, -12.0])
def test_tail_of_many_degrees_is_above_the_truth_and_close(degrees: int, z: float) -> None:
    value = degrees + z * math.sqrt(2 * degrees)
    # the lower incomplete gamma function by its series, in logarithms: an oracle that needs no asymptotics
    a, x = degrees / 2, value / 2
    ks = np.arange(1, int(40 * math.sqrt(a)) + 1, dtype=np.float64)
    logs = np.cumsum(math.log(x) - np.log(a + ks))
    log_head = float(a * mpmath.log(x) - x - mpmath.loggamma(a + 1))
    truth = math.exp(log_head) * (1 + float(np.exp(logs).sum()))
    assert truth * (1 - 1e-6) <= chi_square_lower_tail(value, degrees) <= truth * 1.0025


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_tail_is_a_distribution_function(degrees: int, u: float, v: float) -> None:
    low, high = sorted((2 * u * degrees, 2 * v * degrees))
    assert 0 <= chi_square_lower_tail(low, degrees) <= chi_square_lower_tail(high, degrees) * (1 + 2e-3) <= 1.01


def test_correct_adaptive_runs_are_not_refuted() -> None:
    rng = np.random.default_rng(0)
    refuted = sum(energy_test(record(run(rng, steps=8))).p_value <= 0.2 for _ in range(60))
    assert refuted <= 0.2 * 60 + 2 * math.sqrt(0.2 * 0.8 * 60)


def test_pure_noise_is_refuted_at_its_level_and_no_more() -> None:
    rng = np.random.default_rng(1)
    p = [energy_test(record(rng.standard_normal((4, SIZES.sum())))).p_value for _ in range(200)]
    assert np.mean(np.array(p) <= 0.25) <= 0.25 + 2 * math.sqrt(0.25 * 0.75 / 200)


def _weaker(t: int, z: Array) -> Array:
    return 0.97 * z


def _step_without(t: int, z: Array) -> Array:
    return 0 * z if t == 7 else z


def _block_without(t: int, z: Array) -> Array:
    return np.r_[z[:7000], 0 * z[7000:10000], z[10000:]]


def _halves_alike(t: int, z: Array) -> Array:
    return np.r_[z[:10000], z[:10000]]


def _blocks_from_one_seed(t: int, z: Array) -> Array:
    return np.r_[z[:7000], z[:3000], z[10000:]]


@pytest.mark.parametrize(
    "noise, where",
    [
        (_weaker, "run"),
        (_step_without, "step"),
        (_block_without, "block"),
        (_halves_alike, "within"),
        (_blocks_from_one_seed, "within"),
    ],
)
def test_planted_faults_are_refuted_and_located(noise: Callable[[int, Array], Array], where: str) -> None:
    for seed in range(3):
        releases = run(np.random.default_rng(seed), noise=noise)
        test = energy_test(record(releases))
        assert test.p_value < 1e-3 and test.where == where
    finding = finding_from_energy(test, 0.01, shortfall=0.01)
    assert finding.status == "violated" and finding.claim == "declared mechanism"


def test_noise_used_twice_is_refuted() -> None:
    rng = np.random.default_rng(3)
    held = rng.standard_normal(SIZES.sum())
    releases = run(rng, noise=lambda t, z: held if t in (4, 5) else z)
    test = energy_test(record(releases))
    assert test.p_value < 1e-6 and test.where in ("lag", "step")


def test_stated_shortfall_is_what_the_test_sees() -> None:
    rng = np.random.default_rng(5)
    energy = record(run(rng))
    shortfall = smallest_visible_shortfall(energy, 0.05)
    assert 0.002 < shortfall < 0.2
    seen = [energy_test(record(run(rng, noise=lambda t, z: (1 - shortfall) * z))).p_value <= 0.05 for _ in range(25)]
    unseen = [
        energy_test(record(run(rng, noise=lambda t, z: (1 - shortfall / 8) * z))).p_value <= 0.05 for _ in range(25)
    ]
    assert np.mean(seen) >= 0.9 and np.mean(unseen) <= 0.5


@pytest.mark.parametrize(
    "change, word",
    [
        ({"blocks": ("a",)}, "shape"),
        ({"lagged": np.zeros(3)}, "lagged"),
        ({"step_squares": np.full(4, np.nan)}, "finite"),
        ({"block_squares": np.ones(3)}, "add up"),
        ({"probe": np.array([8000, 3000, 10000])}, "part"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, Any], word: str) -> None:
    energy = record(np.random.default_rng(0).standard_normal((4, SIZES.sum())))
    with pytest.raises(InvalidEvidence, match=word):
        dataclasses.replace(energy, **change)
