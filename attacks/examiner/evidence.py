"""Residuals that show the noise: on empty minibatches, or on ordinary ones where the step takes no empty one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, set_public_seeds
from dpaudit.attacks.examiner.statistics import autocorrelation

COORDINATES = 20_000
"""Noise values wanted: a 5% shortfall is then convicted almost surely."""

LOADED = 3_000
"""Noise values wanted from minibatches of each size tried."""

WIDE = 300_000
"""Coordinates from which fewer steps are taken, for the memory's sake."""

LATER = 14
"""Steps kept back for the test of what one step leaves to the next."""

FEWEST = 10
"""Steps without which nothing is said about noise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Standard normal under the null: noise over its planned deviation (through its law, for Laplace).

    Attributes
    ----------
    rows : array of shape (steps, d)
        One run.
    again : array of shape (steps', d)
        A second run under the same public seeds, steps' <= steps.
    other : array of shape (steps'', d)
        A third run under other public seeds.
    loaded : mapping of int to array of shape (repetitions, d)
        Residuals by the size of the minibatch.
    empty : bool
        Whether the runs are on empty minibatches.
    records : int
        Size of the minibatches of the runs.
    lattice : float
        Rounding of a released value over the noise's deviation.
    """

    rows: Vector
    again: Vector
    other: Vector
    loaded: dict[int, Vector]
    empty: bool
    records: int
    lattice: float


def collect(probe: Probe, plan: ExamPlan, base: Footing, d: int, untested: list[str]) -> Evidence | None:
    """Runs of the noise within its part of the budget; None where a few steps do not fit.

    What cannot be told from the runs is added to ``untested``.
    """
    empty = base.empty == "usable"
    if not empty and base.repeats in ("random", "unknown"):
        return _pairs(probe, plan, base, d, untested)
    cost = _measure(probe, base, d)
    wanted = max(32 if d < WIDE else 12, math.ceil(COORDINATES / d))
    steps = min(wanted, 4000, probe.affordable(0.4 if empty else 0.6, cost))
    again = max(2, min(steps, max(16, math.ceil(400 / d)), probe.affordable(0.1, cost)))
    if steps + again < FEWEST:
        return None
    if not empty and not probe.has("load"):
        untested.append(
            "noise of one step against another's: residuals on ordinary minibatches start a run of their own each;"
            " give the adapter load(), or a step that takes an empty minibatch"
        )
    seeds = None if base.repeats in ("exact", "unknown") else 1
    quiet = probe.clean(()) if empty and probe.has("clean") else np.zeros(d)

    def ran(count: int, public: int) -> Vector:
        set_public_seeds(public)
        if empty:
            return _to_first_bound(probe, plan, probe.run([()] * count) - quiet, 1)
        rows = probe.residuals(base.usual, count, seeds=None if seeds is None else public)
        return _to_first_bound(probe, plan, rows, 2)

    rows = ran(steps, 1)
    second, third = ran(again, 1), ran(min(again, max(8, math.ceil(64 / d))), 7)
    return Evidence(
        rows=normal(plan, rows), again=normal(plan, second), other=normal(plan, third),
        loaded=dict(_with_records(probe, plan, base, d, cost, untested)), empty=empty,
        records=0 if empty else len(base.usual), lattice=_lattice(base, plan, d),
    )  # fmt: skip


def _to_first_bound(probe: Probe, plan: ExamPlan, rows: Vector, each: int) -> Vector:
    """Noise of a run whose clipping bound adapts, as the plan states it, brought to the plan's bound.

    Parameters
    ----------
    each : int
        Steps run for every row; the last of them is the row's.
    """
    if plan.stage.quantile_sigma is None or not probe.has("bounds"):
        return rows
    bounds = np.asarray(probe.called("bounds"), dtype=np.float64)[-each * len(rows) :][each - 1 :: each]
    return rows * (plan.clipping_norm / bounds)[:, None] if len(bounds) == len(rows) else rows


def _lattice(base: Footing, plan: ExamPlan, d: int) -> float:
    """Rounding of one released value over the noise's deviation, from the error of a whole vector."""
    each = 2 * base.rounding * plan.sensitivity / plan.normaliser / math.sqrt(max(d, 1))
    return each / plan.noise_std


def _pairs(probe: Probe, plan: ExamPlan, base: Footing, d: int, untested: list[str]) -> Evidence | None:
    """Differences of two releases of one minibatch, where there is no clean step to take off."""
    if base.repeats == "random":
        untested.append(
            "noise: the step takes no empty minibatch, and what it releases without noise is random, so that its noise"
            " cannot be told apart; give the adapter fix(), or a step that takes an empty minibatch"
        )
        return None
    cost = 2 * probe.expected(len(base.usual))
    count = min(max(32, math.ceil(COORDINATES / d)), 4000, probe.affordable(0.7, cost))
    if count < FEWEST:
        return None
    untested.append("noise of one step against another's: without clean() every residual is of two runs")
    set_public_seeds(1)
    rows = np.stack([probe.release(base.usual) - probe.release(base.usual) for _ in range(count)]) / math.sqrt(2)
    few = min(count, 8)
    twins = []
    for seed in (1, 7):
        set_public_seeds(seed)
        pairs = [probe.release(base.usual) - probe.release(base.usual) for _ in range(few)]
        twins.append(np.stack(pairs) / math.sqrt(2))
    return Evidence(
        rows=normal(plan, rows), again=normal(plan, twins[0]), other=normal(plan, twins[1]), loaded={}, empty=False,
        records=len(base.usual), lattice=_lattice(base, plan, d),
    )  # fmt: skip


def _measure(probe: Probe, base: Footing, d: int) -> float:
    """Budget of one step, and of looking at what it releases."""
    begun = probe.used()
    if base.empty == "usable":
        rows = probe.run([()] * 2)
    else:
        rows = probe.residuals(base.usual, 2)
    ran = probe.used() - begun
    autocorrelation(rows[:1])  # the most expensive of the tests; all together take about three times as long
    return ran / 2 + 3 * (probe.used() - begun - ran)


def _with_records(
    probe: Probe, plan: ExamPlan, base: Footing, d: int, cost: float, untested: list[str]
) -> Iterator[tuple[int, Vector]]:
    """Residuals on usual, small and large minibatches: against the clean step, or of two releases."""
    if base.repeats == "random":
        untested.append("noise on minibatches with records: what the step releases without noise is random")
        return
    size, known, usual = probe.size or 0, probe.has("clean"), len(base.usual)
    sizes = [usual] if base.fixed else [usual, *([1] if base.single else []), min(size, 4 * usual)]
    sizes = [n for n in dict.fromkeys(sizes) if 0 < n <= size]
    wanted = max(6 if d < WIDE else 2, math.ceil(LOADED / d))
    for number, n in enumerate(sizes):
        batch = tuple(range(n))
        if probe.left() < 2 * probe.expected(n):
            untested.append(f"noise on minibatches of {n} records: the noise's part of the budget does not reach")
            continue
        begun = probe.used()
        steady = probe.clean(batch) if known else probe.release(batch)
        each = (probe.used() - begun) * (1 if known and base.exact else 2)
        # The last test of the group takes a few pairs of steps, so their time is left out of what may be spent here.
        room = max(probe.left() - (LATER * probe.cost if base.empty == "usable" else 0.0), 0.0)
        repeats = max(1, min(wanted, int(room / (len(sizes) - number) / max(each, cost / 2, 1e-6))))
        rows = []
        for place in range(repeats):
            if known and base.exact:
                rows.append(probe.release(batch) - steady)
            elif known:
                set_public_seeds(5000 + place)
                steady = probe.clean(batch)
                set_public_seeds(5000 + place)
                rows.append(probe.release(batch) - steady)
            else:
                rows.append((probe.release(batch) - probe.release(batch)) / math.sqrt(2))
        yield n, normal(plan, np.stack(rows))


def normal(plan: ExamPlan, residual: Vector) -> Vector:
    """A residual over the planned deviation, through the law where that is Laplace's."""
    scaled = residual / plan.noise_std
    if not plan.laplace:
        return scaled
    tail = 0.5 * np.exp(-math.sqrt(2) * np.abs(scaled))
    return np.asarray(-np.sign(scaled) * ndtri(np.clip(tail, 1e-300, 0.5)), dtype=np.float64)
