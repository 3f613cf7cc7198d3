"""Simulated runs: canaries whose coordinates hold nothing but their own draws and the noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.auditing.energy import ReleaseEnergy
from dpaudit.auditing.in_run.plan import COORDINATES, ControlDesign, InRunPlan, guesses_in_run, split_alpha
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Relation, Stage

M = 20_000
Q, SIGMA, STEPS = 0.08, 1.4717, 110
STAGE = Stage(sampling="poisson", sampling_probability=Q, noise_multiplier=SIGMA, steps=STEPS)
LEDGER = Ledger(relation="add_or_remove_one", unit="record", max_records_per_unit=1, stages=(STAGE,))
DELTAS = (0.243363, 0.199783, 0.160798, 0.0979897, 0.0284050, 0.00595328, 0.000921313, 9.90554e-06)
"""Certified δ of LEDGER at the points of a plan; compared with the accountant in a test."""


def plan_of(
    m: int = M,
    *,
    dimension: int | None = None,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    unit: str = "record",
    commitment: str = "0" * 64,
    control: ControlDesign | None = None,
) -> InRunPlan:
    """The plan of m canaries under a claim of 3 at δ = 1e-5."""
    levels = split_alpha(0.05)[1]
    return InRunPlan(
        kind=COORDINATES,
        m=m,
        dimension=dimension or 10 * m,
        claimed_epsilon=3.0,
        delta=1e-5,
        relation=relation,
        unit=unit,
        guesses=guesses_in_run(m, 3.0, 1e-5, levels),
        alpha=0.05,
        alpha_split=levels,
        commitment=commitment,
        control=control,
    )


def simulated(
    rng: np.random.Generator, m: int, *, noise_factor: float = 1.0, q: float = Q
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores under the declared mechanism, and coins, of a run with its noise and sampling as given."""
    coins = rng.random(m) < 0.5
    scores = np.zeros(m)
    for _ in range(STEPS):
        x = noise_factor * SIGMA * rng.standard_normal(m) + ((rng.random(m) < q) & coins)
        scores += np.log1p(Q * np.expm1((2 * x - 1) / (2 * SIGMA**2)))
    return scores, coins


def quiet_energy(steps: int) -> ReleaseEnergy:
    """A record of releases that carry exactly the declared energy."""
    return ReleaseEnergy(
        blocks=("w",),
        sizes=np.array([1000]),
        probe=np.array([1000]),
        step_squares=np.full(steps, 1000.0),
        block_squares=np.array([1000.0 * steps]),
        probe_squares=np.full(steps, 1000.0),
        lagged=np.zeros(steps),
        within=np.zeros((steps, 2)),
    )
