"""Composition by few Fourier coefficients, against direct convolution, full transforms and a slow accountant."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfcx

from dpaudit import Ledger, Relation, Stage
from dpaudit.accounting.prv import inverse
from dpaudit.accounting.prv.compose import Law, weigh
from dpaudit.accounting.prv.curves import epsilon_interval
from dpaudit.accounting.prv.pair import chernoff
from dpaudit.accounting.prv.refine import refine
from dpaudit.accounting.prv.saddle import aim_at_delta
from dpaudit.accounting.prv.sides import with_gaussian
from dpaudit.accounting.prv.spectrum import LEAST_DECAY, Spectrum, _coefficients, spectra
from dpaudit.accounting.relations import charges
from dpaudit.privacy.stage import Sampling
from tests.accounting.test_extremes import agrees

few = settings(max_examples=15, deadline=None, derandomize=True)


def ledger(*stages: tuple[float, float, int], relation: str = "add_or_remove_one") -> Ledger:
    made = [Stage(sampling_probability=q, noise_multiplier=s, steps=t, sampling=Sampling.POISSON) for q, s, t in stages]
    return Ledger(stages=tuple(made), relation=Relation.parse(relation))


def spectrum(law: Law, times: int, theta: float, h: float, first: int, size: int, slope: float) -> Spectrum | None:
    """The composed law under one tilt."""
    slopes = (2.0, slope)
    weighed = [[weigh(law, theta, h)]]
    found = spectra(weighed, [(0.0, times)], thetas=(theta,), h=h, first=first, size=size, slopes=slopes)
    return None if found is None else found[0]


def composed(mass: np.ndarray, times: int, theta: float, h: float, size: int) -> tuple[Spectrum | None, np.ndarray]:
    """A law composed with itself, and the same by convolution in extended precision."""
    law = Law(np.arange(len(mass)), np.log(mass), np.zeros(len(mass)), 0.0)
    direct = np.array([1.0], dtype=np.longdouble)
    for _ in range(times):
        direct = np.convolve(direct, mass.astype(np.longdouble))
    return spectrum(law, times, theta, h, -8, size, 6.0), direct


@pytest.mark.parametrize("theta", [0.2, 3.0])
def test_sums_of_the_composed_law_lie_within_their_errors(theta: float) -> None:
    h, times = 0.01, 200
    mass = np.random.default_rng(0).dirichlet(np.ones(9))
    found, direct = composed(mass, times, theta, h, 4096)
    assert found is not None and len(found.value) < 300
    losses = h * np.arange(len(direct))
    places = np.arange(500, 1100, 37)
    for powers in ((theta,), (theta, theta + 1)):
        values, errors = inverse._sums(found, inverse._series(found, powers), places, 1.0, exact=False)
        scales, off = inverse._log_scale(found, places)
        for place, value, error, scale in zip(places, values, errors, scales + off):
            above = direct[place:].astype(float)
            truth = above @ (-np.expm1(losses[place] - losses[place:]) if len(powers) == 2 else np.ones(len(above)))
            own = truth / math.exp(scale)
            assert abs(value - own) <= error + 1e-9 * own
            assert error <= 1e-6


@few
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(100, 5000))
def test_every_coefficient_left_out_is_as_small_as_proven(seed: int, atoms: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.full(atoms, rng.choice([0.05, 0.5, 5.0]))) + 1e-30
    law = Law(np.arange(atoms) * int(rng.choice([1, 1, 3])), np.log(mass / mass.sum()), np.zeros(atoms), 0.0)
    size = 2**15
    found = spectrum(law, times, 0.5, 0.01, 0, size, 1.0)
    if found is None:
        return
    weight = np.exp(law.log_mass + 0.5 * 0.01 * law.index)
    whole = np.fft.rfft(np.bincount(law.index, weight / weight.sum(), minlength=size))
    with np.errstate(divide="ignore"):
        decay = -times * np.log(np.abs(whole))
    assert decay[len(found.value) :].min() >= LEAST_DECAY - 1e-6


@few
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(0, 700))
def test_coefficients_are_as_accurate_as_charged(seed: int, atoms: int, last: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.choice([4097, 2**20, 2**40 + 7]))
    place = np.sort(rng.integers(-size // 3, size // 3, atoms)) if seed % 2 else np.arange(atoms) - atoms // 2
    weights = np.array([rng.dirichlet(np.full(atoms, 0.3)) + 1e-21 for _ in range(2)])
    found, error = _coefficients(place, weights, last, size)
    assert found.shape == error.shape == (2, last + 1)
    turns = (np.multiply.outer(np.arange(last + 1), place) + size // 2) % size - size // 2
    y = (2 * np.longdouble("3.14159265358979323846264338327950288") / np.longdouble(size)) * turns
    wide = weights.T.astype(np.longdouble)
    real, imaginary = -2 * np.square(np.sin(y / 2)) @ wide, -np.sin(y) @ wide
    assert np.all(np.hypot(found.real - real.T, found.imag - imaginary.T) <= error)
    distance = np.multiply.outer(weights @ np.abs(place), (2 * math.pi / size) * np.arange(last + 1))
    assert np.all(error <= 1e-12 * distance + 1e-20)


@few
@given(st.integers(0, 10**6), st.integers(1, 250))
def test_series_are_as_accurate_as_charged(seed: int, number: int) -> None:
    """The sum over the window, each mass from all coefficients in extended precision."""
    rng = np.random.default_rng(seed)
    size, h, theta = 1024, 0.01, float(rng.choice([0.3, 4.0, 40.0]))
    value = np.exp(-5 * np.arange(number) / number) * np.exp(1j * rng.uniform(0, 2 * math.pi, number))
    value[0] = 1.0
    first, shift = int(rng.integers(-(10**6), 10**6)), int(rng.integers(-(10**6), 10**6))
    law = Spectrum(theta, h, first, size, 0.0, 0.0, 0.0, value, np.zeros(number), 0.0, shift, 0.0, 0.0)
    pi, extended = np.longdouble("3.14159265358979323846264338327950288"), np.longdouble
    offsets = np.arange(size)
    turns = np.multiply.outer(first + offsets - shift, np.arange(number)) % size
    y = 2 * pi / extended(size) * turns
    weight = np.full(number, 2.0)
    weight[0] = 1.0
    mass = (np.cos(y) @ (weight * value.real) - np.sin(y) @ (weight * value.imag)) / size
    places = first + rng.integers(0, size, 7)
    for powers in ((theta,), (theta, theta + 1)):
        values, errors = inverse._sums(law, inverse._series(law, powers), places, 0.0, exact=False)
        for place, found, error in zip(places, values, errors):
            left = extended(h) * np.arange(size - (place - first))
            kernel = np.exp(-extended(theta) * left) * (-np.expm1(-left) if len(powers) == 2 else 1)
            truth = mass[place - first :] @ kernel
            assert abs(found - truth) <= error
            assert error <= 1e-9


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("stages", [[(0.01, 1.0, 1000)], [(0.01, 0.9, 500), (0.01, 1.4, 500)], [(1e-3, 0.7, 10**5)]])
def test_one_moment_bounds_a_direction_from_above(stages: list[tuple[float, float, int]], direction: int) -> None:
    runs, log_delta = with_gaussian(charges(ledger(*stages))), math.log(1e-5)
    aim = aim_at_delta(runs, direction, log_delta)
    low, high = refine((runs, runs), aim, (log_delta, log_delta), 1e-3, 1e-6, 0.0)
    one, many = (chernoff(runs, aim, 1e-3 * aim.spread, 0.01, log_delta, tilts) for tilts in ((1.0,), (0.7, 1.0, 1.4)))
    assert low <= many <= one <= 1.4 * high


def test_a_lattice_within_the_lattice_is_not_taken_for_smooth() -> None:
    # Only every second point has mass, so the coefficient at ω = π has modulus one however many steps there are.
    law = Law(np.arange(0, 20, 2), np.log(np.full(10, 0.1)), np.zeros(10), 0.0)
    assert spectrum(law, 10**6, 0.1, 1e-3, 0, 2**20, 1.0) is None


def saddle_point(stages: list[tuple[float, float, int]], delta: float) -> float:
    """ε of so many steps that the tilted loss is Gaussian to four digits, from cumulants by the trapezium rule."""

    def cumulants(theta: float) -> tuple[float, float, float]:
        value = mean = variance = 0.0
        for q, sigma, times in stages:
            x = np.linspace(-14 * sigma, 2 + 40 * sigma, 4001)
            loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
            density = np.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) * (x[1] - x[0])
            weight = density * np.expm1((1 + theta) * loss)  # E_Q e^{(1 + θ)·loss} − 1: small, and so kept apart
            total = 1 + weight.sum()
            tilted = density * np.exp((1 + theta) * loss) / total
            first = tilted @ loss
            value += times * math.log1p(weight.sum())
            mean += times * first
            variance += times * (tilted @ np.square(loss - first))
        return value, mean, variance

    best = 0.0
    for reverse in (False, True):  # the reverse pair's cumulants are those at −1 − θ, with the loss's sign turned
        low, high = 1e-4, 1e4
        for _ in range(36):
            theta = math.sqrt(low * high)
            value, mean, variance = cumulants(-1 - theta if reverse else theta)
            root, epsilon = math.sqrt(variance / 2), -mean if reverse else mean
            now = value - theta * epsilon + math.log((erfcx(theta * root) - erfcx((1 + theta) * root)) / 2)
            low, high = (theta, high) if now > math.log(delta) else (low, theta)
        best = max(best, epsilon)
    return best


@pytest.mark.parametrize(
    ("stages", "delta"),
    [
        ([(0.001, 1.0, 10**9)], 1e-6),
        ([(0.01, 2.0, 10**7), (0.02, 4.0, 10**8)], 1e-5),
        ([(0.3, 50.0, 10**9)], 1e-9),
    ],
)
def test_a_billion_steps_within_half_a_percent(stages: list[tuple[float, float, int]], delta: float) -> None:
    found, truth = epsilon_interval(charges(ledger(*stages)), delta), saddle_point(stages, delta)
    assert found.lower <= truth * (1 + 2e-4) and found.upper >= truth * (1 - 2e-4)
    assert found.upper - found.lower <= 2e-3 * found.upper


def test_rare_jumps_of_a_billion_steps_are_as_narrow() -> None:
    # Beside many small losses there are some large ones with a chance near δ. A window found [0.949, 1.090].
    found = epsilon_interval(charges(ledger((1e-6, 0.5, 10**9))), 1e-6)
    assert 0.949 < found.lower <= found.upper < 1.090
    assert found.upper - found.lower <= 5e-3 * found.upper


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("stages", [[(0.01, 1.0, 1000)], [(0.064, 4.0, 300), (0.004, 0.9, 1500)], [(1e-3, 0.7, 10**5)]])
def test_few_coefficients_and_a_whole_window_say_the_same(
    stages: list[tuple[float, float, int]], direction: int
) -> None:
    from dpaudit.accounting.prv.pair import dominated, dominating, spacing
    from dpaudit.accounting.prv.readings import epsilon_above, epsilon_below

    runs, log_delta = with_gaussian(charges(ledger(*stages))), math.log(1e-5)
    aim = aim_at_delta(runs, direction, log_delta)
    h = spacing(runs, aim, 1e-3 * aim.epsilon)
    above, below = inverse.above(runs, aim, h, 0.01), inverse.below(runs, aim, h, 0.01)
    assert above is not None and below is not None
    assert above.upper(log_delta) == pytest.approx(epsilon_above(dominating(runs, aim, h, 0.01), log_delta), rel=1e-6)
    assert below.lower(log_delta) == pytest.approx(epsilon_below(dominated(runs, aim, h, 0.01), log_delta), rel=1e-6)
    assert above.upper(log_delta, exact=True) <= above.upper(log_delta)
    assert below.lower(log_delta, exact=True) >= below.lower(log_delta)


def test_where_too_many_coefficients_matter_the_window_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epsilon_interval(charges(ledger((0.01, 1.0, 1000))), 1e-5)
    monkeypatch.setattr(inverse, "above", lambda *_: None)
    window = epsilon_interval(charges(ledger((0.01, 1.0, 1000))), 1e-5)
    assert window.lower <= whole.upper and whole.lower <= window.upper
    assert window.upper == pytest.approx(whole.upper, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_long_ledgers_contain_the_truth(seed: int) -> None:
    draw = random.Random(seed)

    def spread(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    stages = [
        (draw.choice([spread(1e-6, 1), spread(1e-3, 0.3), 1.0]), spread(0.3, 20), int(spread(50, 1e9)))
        for _ in range(draw.choice([1, 1, 2, 3]))
    ]
    if sum(q * q * t / s**2 for q, s, t in stages) > 1e5:
        return
    cost = charges(ledger(*stages, relation=draw.choice(["add_or_remove_one", "replace_one"])))
    agrees(cost, 10 ** draw.uniform(-14, -2))
