"""Attacks that learn from shadow models, LiRA and RMIA, and the training of the shadows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.scores.fan_out import run_each
from dpaudit.attacks.scores.functions import BoolArray, FloatArray, as_booleans, as_finite, same_shape
from dpaudit.attacks.scores.shadow_folder import ShadowFolder, ShadowTask, draw_shadows
from dpaudit.attacks.scores.shadow_folder import shadow_memberships as shadow_memberships
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import probability

ENOUGH_FOR_OWN_VARIANCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class ShadowSignals:
    """Signals of the shadow models, with who was in whose training set.

    Attributes
    ----------
    signals : float64 array (S, m)
        Signal of each record under each shadow model.
    members : bool array (S, m)
        Whether the shadow was trained on the record.
    """

    signals: FloatArray
    members: BoolArray

    def __post_init__(self) -> None:
        as_finite("signals", self.signals, ndim=2)
        same_shape("members", self.members, self.signals.shape)
        object.__setattr__(self, "members", as_booleans("members", self.members))


def train_shadows(
    task: ShadowTask,
    m: int,
    *,
    n_shadows: int,
    rng: np.random.Generator,
    n_jobs: int | None = None,
    folder: str | Path | None = None,
) -> ShadowSignals:
    """Train shadow models in parallel and collect their signals; a folder keeps every one that is finished.

    A worker that is lost costs the shadows that it was training: they are trained again. What the folder holds stands,
    also when this process is killed and the same call is made again.

    Parameters
    ----------
    task : callable (members: bool (m,), seed: int) -> array (m,)
        Trains one model on the records marked True and returns every record's signal. It must be picklable for
        process backends.
    m : int
        Number of records.
    n_shadows : int
        At least 2; 16 to 256 are usual.
    rng : numpy.random.Generator
        Draws the memberships and one seed per shadow: the result does not depend on ``n_jobs``. In a folder that has
        memberships and seeds already, those hold.
    n_jobs : int, optional
        joblib's; None takes the surrounding ``joblib.parallel_config``, so that dask or ray clusters serve too.
    folder : path, optional
        Where this process keeps memberships, seeds and each shadow's signal, which is written once. It tells members
        apart, so it is private.

    Returns
    -------
    ShadowSignals
        Signals (n_shadows, m), and the memberships that they were trained with.

    Raises
    ------
    InvalidValue
        If the folder belongs to another task, number of records or number of shadows, or a signal is not m numbers.
    """
    drawn = draw_shadows(n_shadows, m, rng=rng)
    kept = None if folder is None else ShadowFolder(Path(folder), task)
    if kept is not None:
        drawn = kept.design(drawn)
    rows: dict[int, FloatArray] = {} if kept is None else kept.signals(drawn)

    def done(number: int, row: Any) -> None:
        signal = np.asarray(row, dtype=np.float64)
        same_shape(f"the signal of shadow {number}", signal, (m,))
        if kept is not None:
            kept.keep(number, signal)
        rows[number] = signal

    left = {i: (drawn.members[i], drawn.seeds[i]) for i in range(n_shadows) if i not in rows}
    run_each(task, left, done, n_jobs=n_jobs)
    return ShadowSignals(np.stack([rows[i] for i in range(n_shadows)]), drawn.members)


def lira_online_scores(signals: object, shadows: ShadowSignals, *, fixed_variance: bool | None = None) -> FloatArray:
    """LiRA, online (Carlini et al. 2022, arXiv:2112.03570): log N(phi; in) - log N(phi; out).

    Parameters
    ----------
    signals : array (m,)
        The target model's signal, such as ``logit_confidence`` or minus the loss.
    shadows : ShadowSignals
        Shadow models with and without each record.
    fixed_variance : bool, optional
        One variance for all records instead of one each; by default when a record has fewer than 64 shadows on
        either side.

    Returns
    -------
    float64 array (m,), in nats
    """
    phi = _signal(signals, shadows)
    mean_in, sd_in = _moments(shadows, True, fixed_variance)
    mean_out, sd_out = _moments(shadows, False, fixed_variance)
    z_in, z_out = (phi - mean_in) / sd_in, (phi - mean_out) / sd_out
    return np.asarray(0.5 * (z_out**2 - z_in**2) + np.log(sd_out / sd_in))


def lira_offline_scores(signals: object, shadows: ShadowSignals, *, fixed_variance: bool | None = None) -> FloatArray:
    """LiRA, offline: (phi - mean_out) / sd_out from shadows that never saw the record, (m,).

    The paper's score is Phi of this value; the standardised value itself orders the same and does not saturate into
    ties. One normalisation serves members and non-members alike, so that membership cannot leak into the score.

    Parameters
    ----------
    signals : array (m,)
        Signal φ of each record under the audited model, such as the logit of its probability.
    shadows : ShadowSignals
        Signals (n, m) of the shadow models, and which records each was trained on.
    fixed_variance : bool, optional
        One variance for all records; by default where few shadows left a record out.

    Returns
    -------
    array (m,)
        Higher = member.

    Raises
    ------
    InvalidValue
        If shapes differ, a signal is not finite, or a record was in every shadow.
    """
    phi = _signal(signals, shadows)
    mean, sd = _moments(shadows, False, fixed_variance)
    return np.asarray((phi - mean) / sd)


def rmia_scores(
    log_probs: object,
    reference_log_probs: object,
    population_log_probs: object,
    population_reference_log_probs: object,
    *,
    gamma: float = 1.0,
    offline_a: float | None = None,
) -> FloatArray:
    """RMIA (Zarifzadeh et al. 2024, arXiv:2312.03262): share of population records z that x dominates.

    The score of x is the share of z with (p(x) / p_ref(x)) / (p(z) / p_ref(z)) >= gamma; at one gamma it orders as
    the ratio of x does, with ties at the resolution 1/Z.

    Parameters
    ----------
    log_probs : array (m,)
        log p of each record under the target model, <= 0; for language models minus the mean token loss.
    reference_log_probs : array (S, m)
        The same under reference models.
    population_log_probs, population_reference_log_probs : arrays (Z,) and (S, Z)
        The same for records of the population, outside the audit.
    gamma : float
        At least 1.
    offline_a : float in [0, 1], optional
        None (online): half the references were trained on each record and p_ref is their mean probability. A number
        (offline): no reference was, and p_ref = ((1 + a) p_out + 1 - a) / 2.

    Returns
    -------
    float64 array (m,), in [0, 1]
    """
    if not gamma >= 1:
        raise InvalidValue(f"gamma={gamma} must be >= 1; 1 or 2 is usual.")
    target, references = (
        as_finite("log_probs", log_probs),
        as_finite("reference_log_probs", reference_log_probs, ndim=2),
    )
    z_target = as_finite("population_log_probs", population_log_probs)
    z_references = as_finite("population_reference_log_probs", population_reference_log_probs, ndim=2)
    same_shape("reference_log_probs", references, (len(references), len(target)))
    same_shape("population_reference_log_probs", z_references, (len(references), len(z_target)))
    own = target - _reference(references, offline_a)
    others = np.sort(z_target - _reference(z_references, offline_a))
    return np.asarray(np.searchsorted(others, own - np.log(gamma), side="right") / len(others))


def choose_offline_a(
    reference_log_probs: object,
    members: object,
    population_reference_log_probs: object,
    *,
    gamma: float = 1.0,
) -> float:
    """RMIA's offline ``a`` in steps of 0.1, by the mean AUC with each reference model once in the target's place.

    Parameters
    ----------
    reference_log_probs, members : arrays (S, m)
        Signals of S >= 2 reference models and whether each was trained on the record.
    population_reference_log_probs : array (S, Z)

    Notes
    -----
    Uses reference models only, never the audited model, so that choosing ``a`` costs no multiplicity.
    """
    signals = as_finite("reference_log_probs", reference_log_probs, ndim=2)
    population = as_finite("population_reference_log_probs", population_reference_log_probs, ndim=2)
    inside = as_booleans("members", members)
    same_shape("members", inside, signals.shape)
    if len(signals) < 2:
        raise InvalidValue(f"choosing a needs at least 2 reference models and {len(signals)} was given.")
    best, best_auc = 0.0, -1.0
    for a in np.arange(11) / 10:
        aucs = []
        for s in range(len(signals)):
            others = np.delete(np.arange(len(signals)), s)
            # Offline attacks compare with references that did not see the record alone, so the others get -inf, which
            # drops them from the mean.
            out = np.where(inside[others], -np.inf, signals[others])
            usable = np.isfinite(out).any(axis=0)
            if not inside[s, usable].any() or inside[s, usable].all():
                continue
            own = signals[s, usable] - _reference(out[:, usable], float(a))
            rest = np.sort(population[s] - _reference(population[others], float(a)))
            aucs.append(_auc(np.searchsorted(rest, own - np.log(gamma), side="right"), inside[s, usable]))
        if aucs and float(np.mean(aucs)) > best_auc + 1e-12:
            best, best_auc = float(a), float(np.mean(aucs))
    if best_auc < 0:
        raise InvalidValue("choosing a needs references that differ in membership; no usable pair was given.")
    return best


def _auc(scores: NDArray[np.generic], inside: BoolArray) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    n_in = int(inside.sum())
    return float((ranks[inside].sum() - n_in * (n_in + 1) / 2) / (n_in * (len(ranks) - n_in)))


def _reference(log_probs: FloatArray, offline_a: float | None) -> FloatArray:
    """log p_ref from (S, n) log-probabilities; -inf entries are left out of the mean."""
    if (log_probs > 1e-9).any():
        raise InvalidValue("log-probabilities must be <= 0; give minus the loss in nats.")
    mean = np.logaddexp.reduce(log_probs, axis=0) - np.log(np.isfinite(log_probs).sum(axis=0))
    if offline_a is None:
        return np.asarray(mean)
    probability(offline_a=offline_a)
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp(np.log1p(offline_a) + mean, np.log1p(-offline_a)) - np.log(2))


def _signal(signals: object, shadows: ShadowSignals) -> FloatArray:
    phi = as_finite("signals", signals)
    same_shape("signals", phi, shadows.signals.shape[1:])
    return phi


def _moments(shadows: ShadowSignals, inside: bool, fixed_variance: bool | None) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation (m,) of each record's signals on one side."""
    side = "with" if inside else "without"
    chosen = shadows.members if inside else ~shadows.members
    counts = chosen.sum(axis=0)
    if counts.min() < 1:
        raise InvalidValue(f"record {int(counts.argmin())} has no shadow model {side} it; train more shadows.")
    own_variance = counts.min() >= ENOUGH_FOR_OWN_VARIANCE if fixed_variance is None else not fixed_variance
    mean = np.where(chosen, shadows.signals, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, (shadows.signals - mean) ** 2, 0.0).sum(axis=0)
    freedom = counts - 1 if own_variance else np.full(len(counts), (counts - 1).sum())
    total = squares if own_variance else np.full(len(counts), squares.sum())
    if (freedom < 1).any() or (total <= 0).any():
        raise InvalidValue(f"the shadow models {side} a record show no spread; train at least two on each side.")
    return mean, np.sqrt(total / freedom)
