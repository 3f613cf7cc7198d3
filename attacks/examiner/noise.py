"""Tests of the noise: scale, law, independence over coordinates, parameters, steps and batches, and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.empty import ask_empty
from dpaudit.attacks.examiner.evidence import FEWEST, Evidence, collect, normal
from dpaudit.attacks.examiner.few_values import few_values
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe
from dpaudit.attacks.examiner.seeding import own_seeds
from dpaudit.attacks.examiner.statistics import (
    autocorrelation,
    binomial_lower,
    binomial_upper,
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

LAW = 200_000
"""Noise values whose law is looked at."""

LATTICE = 0.01
"""Rounding of what the noise is read from, over its deviation, above which its law is not looked at."""

FREE = 12
"""Steps whose noise must come back where its coordinates are not independent: a few may do so by chance."""

TAILS = (2.5, 3.0, 3.5)
"""Deviations from the middle beyond which values are counted."""

MISSING = 1e-4
"""Mean square below this share of the plan's (deviation below 1% of it) is called missing."""


def noise(
    probe: Probe, plan: ExamPlan, base: Footing, alpha: float
) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Statistical tests of the noise, with a false alarm of at most ``alpha`` together."""
    findings = ask_empty(probe, plan, base)
    untested: list[str] = []
    if base.empty == "dead":
        why = "the step does not run any more after an empty minibatch; hand in remake= to make it anew"
        return findings, [], [f"noise: {why}"]
    d = probe.release(base.usual).size
    if d != plan.stage.releases_per_step and plan.stage.clip is not None:
        return findings, [], ["noise: the step releases another number of values than the plan says"]
    seeded = own_seeds(probe, base)
    evidence = collect(probe, plan, base, d, untested)
    if evidence is None:
        findings += seeded
        return findings, [], [*untested, f"noise: {FEWEST} steps do not fit its part ({probe.words(probe.part)})"]
    each = alpha / 12
    findings += _judged(probe, plan, base, evidence, each, untested)
    findings += seeded  # judged before, since a run under public seeds says the same of more steps
    return findings, _tests(evidence, each), untested


def _judged(
    probe: Probe, plan: ExamPlan, base: Footing, evidence: Evidence, each: float, untested: list[str]
) -> list[ExamFinding]:
    """The findings of all tests, the root cause before its consequences."""
    worth = _worth(evidence.rows, each)
    findings = list(_scale(probe, evidence, each, worth))
    if any(finding.name == "noise_missing" for finding in findings):
        return findings
    rows = _standard(evidence.rows, probe.blocks(evidence.rows.shape[1]))
    level = _level(rows)
    joint = list(_coordinates(level, each))
    steps_too = list(_steps(rows, level, each))
    if joint and steps_too and steps_too[0].name == "noise_correlated_steps":
        # Correlated steps also look like weakly correlated coordinates, and the other way round, so only the cause is
        # reported: the steps where they are nearly parallel, otherwise the coordinates.
        joint = steps_too if abs(steps_too[0].detail["measured"]) > 0.9 else joint
    else:
        joint += steps_too
    joint += _public(evidence, each, clear=0.9 if joint else 0.0)
    if joint:  # dependent noise has no chi-square scale, so what the scale tests said does not count
        return joint
    findings += few_values(evidence, plan)
    findings += _loaded(evidence, plan, each, worth, untested)
    if evidence.empty and base.exact and plan.stage.quantile_sigma is None:
        findings += _carried(probe, plan, each, untested, math.sqrt(max(_mean_square(evidence.rows), 1.0)))
    if not any(finding.status == "violated" for finding in findings):
        findings += _law(evidence, rows, each, plan.laplace, untested)
    return findings


def _tests(evidence: Evidence, each: float) -> list[ExamTest]:
    steps, d = evidence.rows.shape
    count = steps * d
    shrink = excluded_shrink(count, each)
    where = "empty minibatches" if evidence.empty else f"minibatches of {evidence.records} records"
    tests = [
        ExamTest(
            name="noise_scale", group="noise", evidence=f"{count} values of {steps} steps on {where}",
            alpha=3 * each, excludes=f"noise below {lower_text(shrink, 3)} of the plan's", power=0.99,
            size=shrink, unit="sigma",
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
        least = excluded_shrink(fewest, each / len(evidence.loaded))
        tests.append(
            ExamTest(
                name="noise_with_records", group="noise", alpha=3 * each,
                evidence=f"at least {fewest} values on minibatches of {sizes} records",
                excludes=f"noise below {lower_text(least, 3)} of the plan's", power=0.99,
            )
        )  # fmt: skip
    return tests


def _mean_square(values: Vector) -> float:
    return float(np.mean(np.square(values)))


def _worth(rows: Vector, alpha: float) -> float:
    """Effective number of observations per value for a mean square: 1, less where the law has heavier tails.

    The variance of a mean square grows with the fourth moment. Only noise whose shape is convicted is corrected, so
    that for Gaussian noise the laws of the tests are exact.
    """
    # The shape alone is judged here, so every step is brought to its own scale where it has coordinates enough to tell
    # it.
    level = _level(rows) if rows.shape[1] >= 16 else rows / max(math.sqrt(_mean_square(rows)), 1e-300)
    values = level.ravel()[:LAW]
    if not values.any() or kolmogorov(values)[1] > alpha:
        return 1.0
    fourth = float(np.mean(values**4)) / _mean_square(values) ** 2
    return min(1.0, 2 / max(fourth - 1, 1e-9))


def _scale(probe: Probe, evidence: Evidence, alpha: float, worth: float) -> Iterator[ExamFinding]:
    """Test the mean square of the noise: over everything, by parameter, and by step."""
    rows = evidence.rows
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
    # Noise that is too small everywhere must not look like missing steps, so each step is compared with the run's own
    # level.
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
        # Where steps differ in scale, few of them decide the scale of a parameter, so that only missing noise is then
        # reported of a parameter.
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
    """Rows whose every part has mean square 1, or is 0 where it has no noise: dependence is looked for at any scale."""
    parts = [rows[:, part] for _, part in blocks]
    sizes = [_mean_square(part) if part.size else 0.0 for part in parts]
    kept = [part / math.sqrt(size) for part, size in zip(parts, sizes, strict=True) if size > MISSING]
    return np.concatenate(kept, axis=1) if kept else rows[:, :0]


def _level(rows: Vector) -> Vector:
    """Scale every step to one length, so that a scale that changes over time does not look like dependence.

    With n the length of a Gaussian row and u its direction, E exp(λ n² u'Au) ≥ exp(λ E[n²] u'Au): a bound on a
    quadratic form's exponential moments for Gaussian rows holds for rows of one length. Where a row has few
    coordinates, its own length says too little, and rows stay as they are.
    """
    if rows.shape[1] < 16:
        return rows
    sizes = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    return np.asarray(np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > MISSING), dtype=np.float64)


def _public(evidence: Evidence, alpha: float, *, clear: float) -> Iterator[ExamFinding]:
    """Two runs under the same public seeds must not share their noise; beside other dependence, a correlation above
    ``clear`` is asked for, since such noise has few values that are free to differ."""
    first, second = evidence.rows[: len(evidence.again)].ravel(), evidence.again.ravel()
    if (length := float(np.linalg.norm(second))) == 0 or (clear and len(evidence.again) < FREE):
        return
    first = first / max(1.0, math.sqrt(_mean_square(first)))
    p = gaussian_two_sided(float(first @ second) / length)
    cosine = float(first @ second) / length / max(float(np.linalg.norm(first)), 1e-300)
    if p <= alpha and cosine >= clear:
        text = f"a second run under the same public seeds has noise of correlation {cosine:.4f} with the first's"
        witness: dict[str, Any] = {"measured": cosine, "bound": 0.0, "records": (), "without": ()}
        if _same(first, evidence.other.ravel(), alpha, clear):
            text = f"{text}, and so has a run under other public seeds: the step sets its seed itself"
            yield found("noise_public_seed", text, p, status="violated", **witness)
        else:
            yield found("noise_public_seed", text, p, **witness)


def _same(first: Vector, other: Vector, alpha: float, clear: float) -> bool:
    """Whether a run under other public seeds has the same noise as well."""
    length = float(np.linalg.norm(other))
    if not length:
        return False
    dot = float(first[: other.size] @ other)
    cosine = dot / length / max(float(np.linalg.norm(first[: other.size])), 1e-300)
    return gaussian_two_sided(dot / length) <= alpha and cosine >= max(clear, 0.5)


def _steps(rows: Vector, level: Vector, alpha: float) -> Iterator[ExamFinding]:
    """Test that the noise of different steps is independent: every pair of steps, and every lag in time."""
    steps, d = rows.shape
    if d >= 16:
        kept = rows[: min(steps, 400)]
        gram = kept @ kept.T
        lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        # A scale that changes from step to step is no dependence, so the cosine of two directions is taken, whatever
        # their length.
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
    """Test that the coordinates of one step are independent: their sum, and every lag along the vector."""
    steps, d = rows.shape
    if d < 2:
        return
    total = float(np.square(rows.sum(axis=1)).sum() / d)
    others = float(np.square(rows).sum()) - total  # what is orthogonal to the sum: d − 1 of d directions
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


def _loaded(
    evidence: Evidence, plan: ExamPlan, alpha: float, worth: float, untested: list[str]
) -> Iterator[ExamFinding]:
    """Test that minibatches with records get the same noise as empty ones."""
    base, count = _mean_square(evidence.rows), evidence.rows.size
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
        if ratio > base > 0.9 and plan.stage.clip is not None:
            untested.append(
                f"noise on minibatches with records: with {n} records residuals spread {math.sqrt(ratio / base):.3g}"
                " times as much as without, as where clean() and release() take other directions; make directions a"
                " function of the step, or give the adapter fix()"
            )
            return
        text = f"with {n} records the deviation is {math.sqrt(ratio):.3g} of the plan's, without {math.sqrt(base):.3g}"
        missing = ratio < MISSING and low <= alpha
        yield found("noise_missing_on_steps" if missing else "noise_depends_on_batch", text, apart, **detail)
        return


def _carried(probe: Probe, plan: ExamPlan, alpha: float, untested: list[str], scale: float) -> Iterator[ExamFinding]:
    """Test that a step on an empty minibatch shows nothing of the record in the minibatch before it."""
    if not probe.has("clean"):
        return
    record = probe.adversaries.get("large loss", 0)
    # A step that waits for a whole micro-batch shows nothing of one record, so five are tried as well.
    for batch in ((record,), (record,) * 5):
        direction = probe.clean(batch)
        length = float(np.linalg.norm(direction))
        if length > 0.1 * plan.sensitivity / plan.normaliser:
            break
    if not (math.isfinite(length) and length > 0.1 * plan.sensitivity / plan.normaliser):
        return
    if probe.affordable(1.0, 2.2 * probe.cost) < 4:
        untested.append("noise after a step with a record: 8 steps do not fit the budget")
        return
    # Vectors may be long, so only sums over pairs of steps are kept: later on direction, own on later, own on own,
    # shift.
    sums, repeats = np.zeros(4), 0
    while repeats < 200 and (repeats < 4 or probe.left() > 2.2 * probe.cost):
        pair = probe.run([batch, ()])
        own, later = normal(plan, pair[0] - direction), normal(plan, pair[1])
        sums += later @ direction, own @ later, own @ own, pair[1] @ direction
        repeats += 1
    # Noise may be larger than planned, so the correlation is taken in units of the noise's own scale.
    along = float(sums[0]) / (length * math.sqrt(repeats)) / scale
    noise_kept = float(sums[1]) / max(math.sqrt(sums[2]), 1e-300) / scale
    p = 2 * min(gaussian_two_sided(along), gaussian_two_sided(noise_kept))
    if p <= alpha:
        share = float(sums[3]) / repeats / length * plan.normaliser / plan.sensitivity
        words = f"a step after record {record} still moves the sum by {share:.3g} C along it, with the old noise"
        yield found("carried_over", words, p, records=(batch, ()), without=((), ()), measured=share, bound=0.0)


def _law(evidence: Evidence, rows: Vector, alpha: float, laplace: bool, untested: list[str]) -> Iterator[ExamFinding]:
    """Test the law by Kolmogorov's distance from the standard normal one (to which Laplace noise was mapped).

    Values are brought to the plan's scale where they are larger: more noise than planned is no other law. The distance
    from a law whose scale was taken from the values is smaller than from one given beforehand, so p-values hold.
    """
    if evidence.lattice > LATTICE:
        untested.append(
            f"law of the noise: the weights that it is read from are rounded to {evidence.lattice:.2g} of its deviation"
        )
        return
    loud = _mean_square(evidence.rows) > 1 + 4 * math.sqrt(2 / evidence.rows.size)
    if laplace:  # the map to the normal law is of the plan's own scale
        values = evidence.rows.ravel()[:LAW]
        distance, p = kolmogorov(_rescaled_laplace(values) if loud else values)
    else:
        values = (_even(rows) if loud else evidence.rows).ravel()[:LAW]
        distance, p = kolmogorov(values)
    law = "Laplace" if laplace else "Gaussian"
    if p > alpha / 2:
        yield from _tails(values, law, alpha / 2)
    else:
        text = f"distance {distance:.4f} from the {law} law over {values.size} values"
        yield found("noise_not_gaussian", text, p, measured=distance, bound=0.0, values=values.size)


def _tails(values: Vector, law: str, alpha: float) -> Iterator[ExamFinding]:
    """Test how many values lie beyond a few standard deviations: a truncated law has none."""
    spread = math.sqrt(_mean_square(values))
    # The scale that values were brought to is known to within an error only, so neither tail is judged within that
    # error.
    slack = 4 / math.sqrt(2 * values.size)
    for bound in TAILS:
        beyond = int((np.abs(values) > bound * max(spread, 1e-300)).sum())
        few = binomial_lower(beyond, values.size, 2 * float(ndtr(-bound * (1 + slack))))
        many = binomial_upper(beyond, values.size, 2 * float(ndtr(-bound * (1 - slack))))
        p = 2 * min(few, many) * len(TAILS)
        if p <= alpha:
            text = f"{beyond} of {values.size} values are more than {bound:g} deviations out, unlike the {law} law"
            yield found("noise_not_gaussian", text, p, measured=beyond, bound=0.0, values=values.size)
            return


def _even(rows: Vector) -> Vector:
    """Rows of one scale where steps differ in scale and none falls short of the plan's."""
    if rows.shape[1] < 64:
        return rows
    squares = np.square(rows).mean(axis=1)
    spread = float(np.std(squares)) / math.sqrt(2 / rows.shape[1])
    return _level(rows) if spread > 3 else rows


def _rescaled_laplace(values: Vector) -> Vector:
    """Normal values of Laplace noise, brought to scale 1 in the Laplace domain and mapped again."""
    tail = np.maximum(ndtr(-np.abs(values)), 1e-300)
    size = -np.log(2 * tail)
    size /= max(float(size.mean()), 1e-300)
    return np.asarray(np.sign(values) * -ndtri(np.clip(0.5 * np.exp(-size), 1e-300, 0.5)), dtype=np.float64)
