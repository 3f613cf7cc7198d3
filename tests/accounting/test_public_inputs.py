"""Inputs that public reports say break other accountants, and what ours answers.

Oracles of other origin: the closed form of the Gaussian mechanism to 50 digits, and Rényi bounds from above. The table
stands in docs/explanation/peers.md, which is read here, so that its numbers stay those that are computed.
"""

from __future__ import annotations

import math
import re

import pytest

from dpaudit import Ledger, Relation, Stage
from dpaudit.accounting import account
from dpaudit.accounting.calibrate import StageTarget, calibrate_noise_multiplier
from tests import ROOT

PAGE = (ROOT / "docs" / "explanation" / "peers.md").read_text(encoding="utf-8")


def interval(q: float, sigma: float, steps: int, delta: float) -> tuple[float, float]:
    sampling = "none" if q == 1 else "poisson"
    stage = Stage(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling=sampling)
    ledger = Ledger(stages=(stage,), relation=Relation.ADD_OR_REMOVE_ONE)
    (found,) = account(ledger, delta=delta)
    assert found.epsilon_lower is not None and found.epsilon_upper is not None
    assert 0 <= found.epsilon_lower <= found.epsilon_upper < math.inf
    return found.epsilon_lower, found.epsilon_upper


ROWS = [
    # report, q, sigma, steps, delta
    ("prv_accountant 42", 0.2, 1.0, 10, 1e-5),
    ("prv_accountant 17", 0.00034, 4.0, 10_000, 1.13e-18),
    ("NeMo 204 and 351", 0.1, 0.3, 1000, 1e-5),
    ("opacus 604", 0.5, 0.2, 2000, 1e-5),
    ("opacus 844", 0.0001, 50.0, 10, 1e-5),
    ("tensorflow privacy 166", 0.0001, 0.5, 1, 1e-5),
]


@pytest.mark.parametrize(
    ("report", "q", "sigma", "steps", "delta"), ROWS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_answer_is_an_interval_below_rdp_and_the_page_has_it(
    report: str, q: float, sigma: float, steps: int, delta: float
) -> None:
    lower, upper = interval(q, sigma, steps, delta)
    stage = Stage(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling="poisson")
    (rdp,) = account(Ledger(stages=(stage,), relation=Relation.ADD_OR_REMOVE_ONE), delta=delta, accountants=("rdp",))
    assert rdp.epsilon_upper is not None and lower <= rdp.epsilon_upper * (1 + 1e-9)
    row = re.search(rf"\| {re.escape(report)} \|[^\n]*\| ([\d.e-]+) to ([\d.e-]+) \|", PAGE)
    assert row, f"{report} is not on the page: {lower:.6g} to {upper:.6g}"
    told_lower, told_upper = float(row[1]), float(row[2])
    # Both are certified, so both hold the true value: they overlap, whatever became better in between.
    assert told_lower <= upper * (1 + 1e-9) and lower <= told_upper * (1 + 1e-9)
    assert told_upper - told_lower <= 0.005 * told_upper and upper - lower <= 0.005 * upper


def hockey_stick(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian mechanism (Balle and Wang 1805.06530, theorem 8), by mpmath to 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        a, b = mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu, -mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu
        return float(mpmath.ncdf(a) - mpmath.exp(epsilon) * mpmath.ncdf(b))


@pytest.mark.parametrize(("sigma", "steps", "delta"), [(1.0, 10, 1e-18), (0.01, 100, 1e-5), (4.0, 10_000, 1e-30)])
def test_without_sampling_the_interval_holds_the_closed_form(sigma: float, steps: int, delta: float) -> None:
    lower, upper = interval(1.0, sigma, steps, delta)
    mu = math.sqrt(steps) / sigma
    assert hockey_stick(mu, lower * (1 - 1e-9)) >= delta * (1 - 1e-6)
    assert hockey_stick(mu, upper * (1 + 1e-9)) <= delta * (1 + 1e-6)


@pytest.mark.parametrize("target", [20.0, 500.0])
def test_calibration_to_a_large_epsilon_meets_it(target: float) -> None:
    stage = Stage(sampling_probability=0.25, noise_multiplier=1.0, steps=40, sampling="poisson")
    sigma = calibrate_noise_multiplier(
        stage, StageTarget(epsilon=target, delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE)
    )
    _, upper = interval(0.25, sigma, 40, 1e-5)
    assert 0.99 * target <= upper <= target
