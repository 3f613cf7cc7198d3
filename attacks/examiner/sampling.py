"""Tests of the sampler: how often each record is drawn, sizes of minibatches, and records they share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, set_public_seeds
from dpaudit.attacks.examiner.statistics import (
    binomial_lower,
    binomial_two_sided,
    binomial_upper,
    chi2_lower,
    chi2_upper,
    normal_quantile,
    two_sided,
)
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found
from dpaudit.privacy.rounding import upper_text
from dpaudit.privacy.stage import Sampling

INCLUSIONS = 6_000
"""Participations wanted: a rate 11% off is then convicted almost surely."""

NARROWER = 1e-3
"""Chance of calling a wrong rate a wrong spread of sizes."""

Draws = list[NDArray[np.int64]]


def sampler(probe: Probe, plan: ExamPlan, alpha: float) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Tests of the minibatches against the declared sampling, with a false alarm of at most ``alpha`` together."""
    n, q = probe.size, plan.stage.sampling_probability
    if n is None:
        return [], [], []
    steps = _affordable(probe, n, q)
    if steps < 16:
        return [], [], [f"sampler: 16 minibatches do not fit its part of the budget ({probe.words(probe.part)})"]
    set_public_seeds(2)
    draws = probe.draws(steps)
    again = min(steps // 2, max(8, math.ceil(400 / max(n * q, 1e-9))))
    set_public_seeds(2)
    second = probe.draws(again)
    set_public_seeds(8)
    other = probe.draws(again)
    each = alpha / 6
    findings = list(_inside(draws))
    if plan.stage.sampling is Sampling.NONE:
        findings += _full(draws, n)
        evidence = f"{steps} minibatches of all {n} records"
        test = ExamTest(name="sampler", group="sampler", evidence=evidence, size=1.0, unit="q")
        return findings, [test], []
    rate = list(_rate(draws, n, q, each))
    shared = list(_together(draws, n, q, each, whole=not (findings or rate))) if plan.poisson else []
    uneven = list(_unequal(draws, n, q, each))
    # Unequal rates also look like a weak overlap, and the other way round, so only the clearer one is reported.
    if shared and uneven:
        overlap_is_clearer = (shared[0].p_value or 0.0) <= (uneven[0].p_value or 0.0)
        shared, uneven = (shared, []) if overlap_is_clearer else ([], uneven)
    findings += (rate and _why_rate(draws, n, each)) or rate or uneven
    findings += shared
    if plan.poisson:
        findings += _seeded(draws, (second, other), n, q, each)
        findings += [] if rate else _sizes(draws, n, q, each)
    count = steps * n * q
    off = (normal_quantile(1 - each / 2) + normal_quantile(0.99)) * math.sqrt((1 - q) / count)
    test = ExamTest(
        name="sampler", group="sampler", alpha=alpha, power=0.99,
        evidence=f"{steps} minibatches of {n} records, {sum(map(len, draws))} participations",
        excludes=f"a sampling probability above {upper_text(1 + off)} q", size=1 + off, unit="q",
    )  # fmt: skip
    return findings, [test], []


def _affordable(probe: Probe, n: int, q: float) -> int:
    begun = probe.used()
    probe.draws(8)
    cost = (probe.used() - begun) / 8
    wanted = max(240, math.ceil(INCLUSIONS / max(n * q, 1e-9)))
    return min(wanted, 20_000, probe.affordable(0.65, cost))


def _inside(draws: Draws) -> Iterator[ExamFinding]:
    for step, batch in enumerate(draws):
        if len(np.unique(batch)) < len(batch):
            values, counts = np.unique(batch, return_counts=True)
            record = int(values[counts.argmax()])
            text = f"record {record} stands {int(counts.max())} times in the minibatch of step {step}"
            yield found("sampling_repeats_in_batch", text, deterministic=True, record=record, step=step)
            return


def _full(draws: Draws, n: int) -> Iterator[ExamFinding]:
    for step, batch in enumerate(draws):
        if not np.array_equal(np.sort(batch), np.arange(n)):
            text = f"step {step} has {len(batch)} of {n} records where the plan takes all"
            yield found("sampling_rate", text, deterministic=True, step=step, measured=len(batch), bound=n)
            return


def _counts(draws: Draws, n: int) -> NDArray[np.int64]:
    counts = np.zeros(n, dtype=np.int64)
    for batch in draws:
        np.add.at(counts, batch[(batch >= 0) & (batch < n)], 1)
    return counts


def _rate(draws: Draws, n: int, q: float, alpha: float) -> Iterator[ExamFinding]:
    steps, total = len(draws), int(_counts(draws, n).sum())
    p = binomial_two_sided(total, n * steps, q)
    if p <= alpha:
        words = f"{total} participations of {n} records in {steps} steps, rate {total / (n * steps):.5f}, plan {q:.5f}"
        yield found("sampling_rate", words, p, measured=total / (n * steps), bound=q)


def _why_rate(draws: Draws, n: int, alpha: float) -> list[ExamFinding]:
    """Name why the sampling rate is off: some records are favoured, or minibatches are cut to a size."""
    realised = float(_counts(draws, n).sum()) / (n * len(draws))
    if not 0 < realised < 1:
        return []
    why = list(_unequal(draws, n, realised, alpha * 1e-3))
    # That something is wrong is decided already. The narrower of two names is given, unless chance alone would give it
    # now and then.
    return why or [f for f in _sizes(draws, n, realised, NARROWER) if f.detail["measured"] < f.detail["bound"]]


def _unequal(draws: Draws, n: int, q: float, alpha: float) -> Iterator[ExamFinding]:
    counts, steps = _counts(draws, n), len(draws)
    chances = [(binomial_two_sided(int(c), steps, q) * n, i) for i, c in enumerate(counts)]
    p, record = min(chances)
    if p <= alpha:
        words = f"record {record} takes part {int(counts[record])} times in {steps} steps, expected {steps * q:.1f}"
        yield found("sampling_unequal", words, p, measured=int(counts[record]), bound=steps * q, record=record)


def _overlap(first: Draws, second: Draws) -> int:
    return sum(len(np.intersect1d(a, b)) for a, b in zip(first, second, strict=True))


def _together(draws: Draws, n: int, q: float, alpha: float, *, whole: bool) -> Iterator[ExamFinding]:
    """Records shared by minibatches a lag apart: over disjoint pairs of steps, exactly Binomial(n·pairs, q²)."""
    steps = len(draws)
    epoch = max(1, round(1 / q))
    rate = sum(map(len, draws)) / max(n * steps, 1)
    # A wrong q is a finding of its own, so the overlap is then compared with what the realised rate gives.
    square = q * q if whole else rate * rate
    lags = sorted({lag for lag in (1, 2, 3, epoch - 1, epoch, epoch + 1, steps // 2) if 1 <= lag <= steps // 2})
    seen: list[tuple[float, int, int, float]] = []
    for lag in lags:
        starts = [t for t in range(steps - lag) if (t // lag) % 2 == 0]
        shared = _overlap([draws[t] for t in starts], [draws[t + lag] for t in starts])
        p = binomial_two_sided(shared, n * len(starts), square) * len(lags)
        seen.append((p, lag, shared, n * len(starts) * square))
    found_at = [row for row in seen if row[0] <= (alpha if whole else alpha * 1e-6)]
    if not found_at:
        return
    # Minibatches that avoid each other at one lag and return at another are epochs in a fixed order, so avoidance is
    # reported first.
    p, lag, shared, expected = min(found_at, key=lambda row: (row[2] >= row[3], row[0]))
    cause = "sampling_without_replacement" if shared < expected else "sampling_repeated_batches"
    text = f"minibatches {lag} apart share {shared} records, expected {expected:.1f}"
    yield found(cause, text, p, measured=shared, bound=expected, lag=lag)


def _seeded(draws: Draws, later: tuple[Draws, Draws], n: int, q: float, alpha: float) -> Iterator[ExamFinding]:
    """Records drawn again by a second run, under the same public seeds and under others."""
    second, other = later
    shared = _overlap(draws[: len(second)], second)
    p = binomial_upper(shared, n * len(second), q * q)
    if p <= alpha and shared > 0.5 * sum(map(len, second)):
        text = f"a second run under the same public seeds draws {shared} of {sum(map(len, second))} records again"
        witness: dict[str, Any] = {"measured": shared, "bound": n * len(second) * q * q}
        if _overlap(draws[: len(other)], other) > 0.5 * sum(map(len, other)):
            text = f"{text}, and so does one under other public seeds: the run sets its seed itself"
            yield found("sampling_public_seed", text, p, status="violated", **witness)
        else:
            yield found("sampling_public_seed", text, p, **witness)


def _sizes(draws: Draws, n: int, q: float, alpha: float) -> Iterator[ExamFinding]:
    """Dispersion of Binomial(n, q) sizes, with the chi-square law corrected for the binomial's fourth moment, and how
    many of them lie in either tail, which is exactly binomial: a size that never occurs shows there first."""
    steps, variance = len(draws), n * q * (1 - q)
    if variance < 1:
        return
    sizes = np.asarray([len(batch) for batch in draws], dtype=np.float64)
    statistic = float(np.square(sizes - n * q).sum() / variance)
    scale = 1 + (1 - 6 * q * (1 - q)) / (2 * variance)
    p = 2 * two_sided(chi2_lower(statistic / scale, steps / scale), chi2_upper(statistic / scale, steps / scale))
    if p > alpha:
        yield from _tails(sizes, n, q, alpha)
    else:
        spread = statistic / steps * variance
        text = f"the sizes of {steps} minibatches have variance {spread:.3g}, expected {variance:.3g}"
        yield found("sampling_batch_size", text, p, measured=spread, bound=variance)


def _tails(sizes: NDArray[np.float64], n: int, q: float, alpha: float) -> Iterator[ExamFinding]:
    """Minibatches smaller than sizes fixed by the plan: where a fiftieth, a tenth and so on are due."""
    below = [binomial_lower(k - 1, n, q) for k in range(1, n + 1)]
    bounds = sorted({1 + min(range(n), key=lambda k: abs(below[k] - share)) for share in (0.02, 0.1, 0.9, 0.98)})
    tried = []
    for bound in bounds:
        count, due = int((sizes < bound).sum()), below[bound - 1]
        tried.append((2 * len(bounds) * binomial_two_sided(count, len(sizes), due), bound, count, due))
    p, bound, count, due = min(tried)
    if p <= alpha:
        text = f"{count} of {len(sizes)} minibatches have fewer than {bound} records, expected {due * len(sizes):.1f}"
        yield found("sampling_batch_size", text, p, measured=count, bound=due * len(sizes))
