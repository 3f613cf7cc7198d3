"""Noise: its scale, law and independence over coordinates, parameters, steps and batches, and who could know it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import ndtri

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised, set_public_seeds
from dpaudit.attacks.examiner.statistics import (
    autocorrelation,
    chi2_lower,
    chi2_upper,
    cosine_two_sided,
    excluded_shrink,
    gaussian_two_sided,
    kolmogorov,
    lag_p_values,
    variance_ratio,
)
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found
from dpaudit.privacy.rounding import lower_text

COORDINATES = 20_000
"""Noise values wanted from empty minibatches: a 5% shortfall is then convicted almost surely."""

LOADED = 3_000
"""Noise values wanted from minibatches of each size tried."""

LAW = 200_000
"""Noise values whose law is looked at."""

WIDE = 300_000
"""Coordinates from which fewer steps are taken, for the memory's sake."""

FEWEST = 10
"""Steps without which nothing is said about noise."""

MISSING = 1e-4
"""Mean square below this share of the plan's (deviation below 1% of it) is called missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Evidence:
    """Standard normal under the null: noise over its planned deviation (through its law, for Laplace)."""

    empty: Vector
    """(steps, d): one run on empty minibatches."""
    again: Vector
    """(steps', d): a second run under the same public seeds, steps' <= steps."""
    loaded: dict[int, Vector]
    """Batch size to (repetitions, d)."""


def noise(probe: Probe, plan: ExamPlan, alpha: float) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Statistical tests of the noise, with a false alarm of at most ``alpha`` together."""
    try:
        first = probe.release(())
    except StepRaised as error:
        return [found("empty_batch", f"it raised {error}")], [], []
    if first.size == 0 or not np.isfinite(first).all():
        return [found("empty_batch", "its release is empty or not finite", deterministic=True)], [], []
    if not first.any() and probe.size and (probe.release((0,)) != probe.release((0,))).any():
        return [found("empty_batch", "the weights stand still, without noise, where no record was drawn")], [], []
    if first.size != plan.stage.releases_per_step and plan.stage.clip is not None:
        return [], [], ["noise: the step releases another number of values than the plan says"]
    if probe.has("clean"):
        moved = float(np.linalg.norm(probe.clean(()))) * plan.normaliser / plan.sensitivity
        if not moved <= 1e-3:
            return [found("empty_batch", f"without noise it moves the sum by {moved:.3g} C", measured=moved)], [], []
    untested: list[str] = []
    evidence = _collect(probe, plan, first, untested)
    if evidence is None:
        return [], [], [f"noise: {FEWEST} steps do not fit its part of the budget ({probe.words(probe.part)})"]
    each = alpha / 12
    worth = _worth(evidence.empty, each)
    findings = list(_scale(probe, evidence, each, worth))
    fatal = any(f.name == "noise_missing" for f in findings)
    if not fatal:
        rows = _standard(evidence.empty, probe.blocks(first.size))
        level = _level(rows)
        joint = list(_coordinates(level, each))
        steps_too = list(_steps(rows, level, each))
        if joint and steps_too and steps_too[0].name == "noise_correlated_steps":
            # each brings the other with it, faintly: steps that are all but parallel are the cause
            joint = steps_too if abs(steps_too[0].detail["measured"]) > 0.9 else joint
        else:
            joint += steps_too
        joint += _public(evidence, each, clear=0.9 if joint else 0.0)
        if joint:  # dependent noise has no chi-square scale, so what the scale tests said does not count
            findings = joint
        else:
            findings += _loaded(evidence, each, worth)
            findings += _carried(probe, plan, each, untested)
            clear = not any(f.status == "violated" for f in findings)
            findings += list(_law(evidence, each, plan.laplace)) if clear else []
    steps, d = evidence.empty.shape
    count = steps * d
    shrink = excluded_shrink(count, each)
    tests = [
        ExamTest(
            name="noise_scale", group="noise", evidence=f"{count} values of {steps} steps on empty minibatches",
            alpha=3 * each, excludes=f"noise below {lower_text(shrink, 3)} of the plan's", power=0.99,
        ),
        ExamTest(
            name="noise_law_and_independence", group="noise", alpha=6 * each,
            evidence=f"{count} values: {d} coordinates, {steps} steps, {len(evidence.again)} steps run again",
            excludes="noise repeated, shared or seeded in public", power=0.99,
        ),
    ]  # fmt: skip
    if evidence.loaded:
        fewest = min(v.size for v in evidence.loaded.values())
        sizes = ", ".join(map(str, evidence.loaded))
        tests.append(
            ExamTest(
                name="noise_with_records", group="noise", alpha=3 * each,
                evidence=f"at least {fewest} values on minibatches of {sizes} records",
                excludes=(
                    f"noise below {lower_text(excluded_shrink(fewest, each / len(evidence.loaded)), 3)} of the"
                    " plan's"
                ),
                power=0.99,
            )
        )  # fmt: skip
    return findings, tests, untested


def _collect(probe: Probe, plan: ExamPlan, first: Vector, untested: list[str]) -> _Evidence | None:
    d = first.size
    cost = _measure(probe, first)
    wanted = max(32 if d < WIDE else 12, math.ceil(COORDINATES / d))
    steps = min(wanted, 4000, probe.affordable(0.4, cost))
    again = max(2, min(steps, math.ceil(400 / d), probe.affordable(0.1, cost)))
    if steps + again < FEWEST:
        return None
    quiet = probe.clean(()) if probe.has("clean") else np.zeros(d)
    set_public_seeds(1)
    empty = probe.run([()] * steps) - quiet
    set_public_seeds(1)
    second = probe.run([()] * again) - quiet
    return _Evidence(
        empty=_normal(plan, empty), again=_normal(plan, second),
        loaded=dict(_with_records(probe, plan, d, cost, untested)),
    )  # fmt: skip


def _measure(probe: Probe, first: Vector) -> float:
    """Budget of one step on an empty minibatch, and of looking at what it releases."""
    begun = probe.used()
    probe.run([()] * 2)
    ran = probe.used() - begun
    autocorrelation(first[None, :])  # the dearest part of the look, of which there are about three like it
    return ran / 2 + 3 * (probe.used() - begun - ran)


def _with_records(
    probe: Probe, plan: ExamPlan, d: int, cost: float, untested: list[str]
) -> Iterator[tuple[int, Vector]]:
    """Residuals on usual, small and large minibatches: against the clean step, or of two releases."""
    size, known = probe.size or 0, probe.has("clean")
    usual = max(2, round(plan.normaliser)) if plan.normaliser < size else max(2, size // 4)
    sizes = [n for n in dict.fromkeys((usual, 1, min(size, 4 * usual))) if 0 < n <= size]
    wanted = max(6 if d < WIDE else 2, math.ceil(LOADED / d))
    for number, n in enumerate(sizes):
        batch = tuple(range(n))
        if probe.left() < 2 * probe.expected(n):
            untested.append(f"noise on minibatches of {n} records: the noise's part of the budget does not reach")
            continue
        begun = probe.used()
        steady = probe.clean(batch) if known else probe.release(batch)
        each = (probe.used() - begun) * (1 if known else 2)
        share = 0.8 / (len(sizes) - number)  # of what is left, so that the last test of the group has its part
        repeats = max(1, min(wanted, int(share * probe.left() / max(each, cost / 2, 1e-6))))
        rows = []
        for _ in range(repeats):
            if known:
                rows.append(probe.release(batch) - steady)
            else:
                rows.append((probe.release(batch) - probe.release(batch)) / math.sqrt(2))
        yield n, _normal(plan, np.stack(rows))


def _normal(plan: ExamPlan, residual: Vector) -> Vector:
    scaled = residual / plan.noise_std
    if not plan.laplace:
        return scaled
    tail = 0.5 * np.exp(-math.sqrt(2) * np.abs(scaled))
    return np.asarray(-np.sign(scaled) * ndtri(np.clip(tail, 1e-300, 0.5)), dtype=np.float64)


def _mean_square(values: Vector) -> float:
    return float(np.mean(np.square(values)))


def _worth(rows: Vector, alpha: float) -> float:
    """What a value is worth for a mean square: 1, and less where the law has heavier tails than the Gaussian one.

    The variance of a mean square grows with the fourth moment. Only noise whose shape is convicted is corrected, so
    that for Gaussian noise the laws of the tests are exact.
    """
    # every step at its own scale where it has the coordinates to tell it: the shape alone is judged
    level = _level(rows) if rows.shape[1] >= 16 else rows / max(math.sqrt(_mean_square(rows)), 1e-300)
    values = level.ravel()[:LAW]
    if not values.any() or kolmogorov(values)[1] > alpha:
        return 1.0
    fourth = float(np.mean(values**4)) / _mean_square(values) ** 2
    return min(1.0, 2 / max(fourth - 1, 1e-9))


def _scale(probe: Probe, evidence: _Evidence, alpha: float, worth: float) -> Iterator[ExamFinding]:
    """Mean squares: all in all, by parameter, and by step."""
    rows = evidence.empty
    steps, d = rows.shape
    ratio = _mean_square(rows)
    p = chi2_lower(ratio * rows.size * worth, rows.size * worth)
    detail: dict[str, Any] = {
        "measured": math.sqrt(ratio),
        "bound": 1.0,
        "values": rows.size,
        "records": (),
        "without": (),
    }
    if ratio < MISSING:
        yield found("noise_missing", f"deviation {math.sqrt(ratio):.3g} of the plan's", p, **detail)
        return
    # held against the run's own level, so that noise too small everywhere does not look like missing steps
    squares = np.square(rows).sum(axis=1)
    chances = np.asarray([chi2_lower(square / ratio * worth, d * worth) * steps for square in squares])
    weak = np.flatnonzero(chances <= alpha)
    everywhere = True
    blocks = probe.blocks(d)
    for name, part in blocks if len(blocks) > 1 else ():
        own, count = float(np.square(rows[:, part]).sum()), rows[:, part].size
        other = (ratio * rows.size - own) / max(rows.size - count, 1)
        if not count:
            continue
        chance = chi2_lower(own * worth, count * worth) * len(blocks)
        apart = variance_ratio(own / count, count * worth, other, (rows.size - count) * worth) * len(blocks)
        share = math.sqrt(own / count)
        # where steps differ in scale, few of them decide a parameter's, and only its silence says something of its own
        if chance <= alpha and apart <= alpha and (share**2 < MISSING or not weak.size):
            everywhere = False
            cause = "noise_missing_on_parameter" if share**2 < MISSING else "noise_scale_parameter"
            words = f"{name} has deviation {share:.3g} of the plan's"
            yield found(cause, words, chance, **(detail | {"parameter": name, "measured": share}))
    if weak.size and everywhere:
        everywhere = False
        share = math.sqrt(float(squares[weak].mean()) / d)
        words = f"{weak.size} of {steps} steps have deviation {share:.3g} of the plan's, the first at step {weak[0]}"
        yield found(
            "noise_missing_on_steps", words, float(chances.min()), **(detail | {"steps": weak[:20].tolist()})
        )  # fmt: skip
    if not everywhere:
        return
    if p <= alpha:
        yield found("noise_scale", f"deviation {math.sqrt(ratio):.4g} of the plan's", p, **detail)
    high = chi2_upper(ratio * rows.size * worth, rows.size * worth)
    if high <= alpha and ratio > 1:
        yield found(
            "noise_scale_high", f"deviation {math.sqrt(ratio):.4g} of the plan's", high, status="note", **detail
        )


def _standard(rows: Vector, blocks: list[tuple[str, slice]]) -> Vector:
    """Rows whose every part has mean square 1: dependence is looked for whatever the scale; silent parts left out."""
    parts = [rows[:, part] for _, part in blocks]
    sizes = [_mean_square(part) if part.size else 0.0 for part in parts]
    kept = [part / math.sqrt(size) for part, size in zip(parts, sizes, strict=True) if size > MISSING]
    return np.concatenate(kept, axis=1) if kept else rows[:, :0]


def _level(rows: Vector) -> Vector:
    """Steps brought to one length, so that a scale that changes over time is no dependence.

    With n the length of a Gaussian row and u its direction, E exp(λ n² u'Au) ≥ exp(λ E[n²] u'Au): a bound on a
    quadratic form's exponential moments for Gaussian rows holds for rows of one length. Where a row has few
    coordinates, its own length says too little, and rows stay as they are.
    """
    if rows.shape[1] < 16:
        return rows
    sizes = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    return np.asarray(np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > MISSING), dtype=np.float64)


def _public(evidence: _Evidence, alpha: float, *, clear: float) -> Iterator[ExamFinding]:
    """Two runs under the same public seeds must not share their noise; beside other dependence, a correlation above
    ``clear`` is asked for, since such noise has few values that are free to differ."""
    first, second = evidence.empty[: len(evidence.again)].ravel(), evidence.again.ravel()
    if (length := float(np.linalg.norm(second))) == 0:
        return
    first = first / max(1.0, math.sqrt(_mean_square(first)))
    p = gaussian_two_sided(float(first @ second) / length)
    cosine = float(first @ second) / length / max(float(np.linalg.norm(first)), 1e-300)
    if p <= alpha and cosine >= clear:
        text = f"a second run under the same public seeds has noise of correlation {cosine:.4f} with the first's"
        yield found("noise_public_seed", text, p, measured=cosine, bound=0.0, records=(), without=())


def _steps(rows: Vector, level: Vector, alpha: float) -> Iterator[ExamFinding]:
    """Noise of different steps is independent: every pair of steps, and every lag in time."""
    steps, d = rows.shape
    if d >= 16:
        kept = rows[: min(steps, 400)]
        gram = kept @ kept.T
        lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        # of two independent directions, however long the steps are: a scale that changes is no dependence
        cosines = np.triu(gram / np.outer(lengths, lengths), 1)
        pairs = len(kept) * (len(kept) - 1) // 2
        a, b = np.unravel_index(int(np.argmax(np.abs(cosines))), cosines.shape)
        cosine = float(cosines[a, b])
        p = cosine_two_sided(cosine, d) * pairs
        if p <= alpha:
            text = f"noise of steps {int(a)} and {int(b)} has correlation {cosine:.4f}"
            cause = "noise_repeated" if _repeated(gram, lengths) else _low_rank(gram, lengths)
            yield found(cause, text, min(p, 1.0), measured=cosine, bound=0.0, steps=(int(a), int(b)))
            return
    if not d:
        return
    lagged = autocorrelation(np.ascontiguousarray(level.T))
    lags = np.arange(1, min(steps - 1, 2000) + 1)
    if not lags.size:
        return
    chances = lag_p_values(lagged[lags], (steps - lags) * d, len(lags))
    p, lag = float(chances.min()), int(lags[chances.argmin()])
    if p <= alpha:
        rho = float(lagged[lag] / ((steps - lag) * d))
        cause = "noise_repeated" if rho > 0.4 else "noise_correlated_steps"
        yield found(cause, f"noise {lag} steps apart has correlation {rho:.3f}", p, measured=rho, bound=0.0, lag=lag)


def _repeated(gram: Vector, lengths: Vector) -> bool:
    """Whether steps that are parallel are mostly the same: parallel steps of many lengths share one direction."""
    upper = np.triu_indices(len(gram), 1)
    cosines = (gram / np.outer(lengths, lengths))[upper]
    ratios = (lengths[:, None] / lengths[None, :])[upper]
    same = (cosines > 0.9) & (0.95 < ratios) & (ratios < 1 / 0.95)
    return bool(same.any() and 2 * same.sum() > (np.abs(cosines) > 0.9).sum())


def _low_rank(gram: Vector, lengths: Vector) -> str:
    """Steps that all lie on few common directions share noise among coordinates rather than among steps."""
    cosines = np.abs(np.triu(gram / np.outer(lengths, lengths), 1))
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    return "noise_correlated_coordinates" if float(np.mean(pairs > 0.5)) > 0.2 else "noise_correlated_steps"


def _coordinates(rows: Vector, alpha: float) -> Iterator[ExamFinding]:
    """Coordinates of one step are independent: their sum, and every lag along the vector."""
    steps, d = rows.shape
    if d < 2:
        return
    total = float(np.square(rows.sum(axis=1)).sum() / d)
    others = float(np.square(rows).sum()) - total  # what is orthogonal to the sum, d − 1 directions of d
    p = variance_ratio(total / steps, steps, max(others, 1e-300) / (steps * (d - 1)), steps * (d - 1))
    if p <= alpha:
        text = f"the sum of all coordinates has variance {total / steps:.3g} times that of independent ones"
        yield found("noise_correlated_coordinates", text, p, measured=total / steps, bound=1.0)
        return
    lagged = autocorrelation(rows)
    lags = np.arange(1, d)
    chances = lag_p_values(lagged[lags], steps * (d - lags), d - 1)
    p, lag = float(chances.min()), int(lags[chances.argmin()])
    if p <= alpha:
        rho = float(lagged[lag] / (steps * (d - lag)))
        text = f"coordinates {lag} places apart have correlation {rho:.3f}"
        yield found("noise_correlated_coordinates", text, p, measured=rho, bound=0.0, lag=lag)


def _loaded(evidence: _Evidence, alpha: float, worth: float) -> Iterator[ExamFinding]:
    """The noise on minibatches with records is that on empty ones."""
    base, count = _mean_square(evidence.empty), evidence.empty.size
    tries = max(len(evidence.loaded), 1)
    for n, rows in evidence.loaded.items():
        ratio = _mean_square(rows)
        low = chi2_lower(ratio * rows.size * worth, rows.size * worth) * tries
        apart = variance_ratio(ratio, rows.size * worth, base, count * worth) * tries
        detail: dict[str, Any] = {
            "records": tuple(range(n)),
            "without": (),
            "measured": math.sqrt(ratio),
            "bound": math.sqrt(base),
        }
        if apart > alpha:
            continue
        text = f"with {n} records the deviation is {math.sqrt(ratio):.3g} of the plan's, without {math.sqrt(base):.3g}"
        missing = ratio < MISSING and low <= alpha
        yield found("noise_missing_on_steps" if missing else "noise_depends_on_batch", text, apart, **detail)
        return


def _carried(probe: Probe, plan: ExamPlan, alpha: float, untested: list[str]) -> Iterator[ExamFinding]:
    """A step on an empty minibatch, after one with a record, shows nothing of that record."""
    if not probe.has("clean"):
        return
    record = probe.adversaries.get("large loss", 0)
    for batch in ((record,), (record,) * 5):  # a step that waits for a whole micro-batch shows nothing of one record
        direction = probe.clean(batch)
        length = float(np.linalg.norm(direction))
        if length > 0.1 * plan.sensitivity / plan.normaliser:
            break
    if not (math.isfinite(length) and length > 0.1 * plan.sensitivity / plan.normaliser):
        return
    if probe.affordable(1.0, 2.2 * probe.cost) < 4:
        untested.append("noise after a step with a record: 8 steps do not fit the budget")
        return
    # sums over pairs of steps, so that a long vector is not kept: later on direction, own on later, own on own, shift
    sums, repeats = np.zeros(4), 0
    while repeats < 200 and (repeats < 4 or probe.left() > 2.2 * probe.cost):
        pair = probe.run([batch, ()])
        own, later = _normal(plan, pair[0] - direction), _normal(plan, pair[1])
        sums += later @ direction, own @ later, own @ own, pair[1] @ direction
        repeats += 1
    along = float(sums[0]) / (length * math.sqrt(repeats))
    noise_kept = float(sums[1]) / max(math.sqrt(sums[2]), 1e-300)
    p = 2 * min(gaussian_two_sided(along), gaussian_two_sided(noise_kept))
    if p <= alpha:
        share = float(sums[3]) / repeats / length * plan.normaliser / plan.sensitivity
        words = f"a step after record {record} still moves the sum by {share:.3g} C along it, with the old noise"
        yield found("carried_over", words, p, records=(batch, ()), without=((), ()), measured=share, bound=0.0)


def _law(evidence: _Evidence, alpha: float, laplace: bool) -> Iterator[ExamFinding]:
    """Kolmogorov's distance from the standard normal law (Laplace noise was mapped to it)."""
    values = evidence.empty.ravel()[:LAW]
    distance, p = kolmogorov(values)
    if p <= alpha:
        law = "Laplace" if laplace else "Gaussian"
        text = f"distance {distance:.4f} from the {law} law over {values.size} values"
        yield found("noise_not_gaussian", text, p, measured=distance, bound=0.0, values=values.size)
