"""LiRA and RMIA against loops over records and scipy; the shadow fan-out; nulls that stay null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from dpaudit import InvalidValue
from dpaudit.attacks import lira_offline_scores, train_shadows
from dpaudit.attacks.scores.shadow import (
    ShadowSignals,
    choose_offline_a,
    lira_online_scores,
    rmia_scores,
    shadow_memberships,
)


def world(
    rng: np.random.Generator, *, n_shadows: int, m: int, effect: float = 2.0
) -> tuple[ShadowSignals, np.ndarray, np.ndarray]:
    """Signals N(hardness + effect * member, 1) of shadows and of one target model with fair coins."""
    hardness = rng.normal(0, 5, size=m)
    members = shadow_memberships(n_shadows, m, rng=rng)
    signals = hardness + effect * members + rng.normal(size=(n_shadows, m))
    coins = rng.integers(2, size=m).astype(bool)
    return ShadowSignals(signals, members), hardness + effect * coins + rng.normal(size=m), coins


@pytest.mark.parametrize("fixed", [True, False])
def test_lira_equals_a_loop_over_records(fixed: bool) -> None:
    rng = np.random.default_rng(0)
    shadows, phi, _ = world(rng, n_shadows=12, m=9)
    online = lira_online_scores(phi, shadows, fixed_variance=fixed)
    offline = lira_offline_scores(phi, shadows, fixed_variance=fixed)
    residuals: dict[bool, list[float]] = {True: [], False: []}
    for i in range(9):
        for side in (True, False):
            values = shadows.signals[shadows.members[:, i] == side, i]
            residuals[side] += list(values - values.mean())
    for i in range(9):
        mean, sd = {}, {}
        for side in (True, False):
            values = shadows.signals[shadows.members[:, i] == side, i]
            mean[side] = values.mean()
            pooled = np.sqrt(np.sum(np.square(residuals[side])) / (len(residuals[side]) - 9))
            sd[side] = pooled if fixed else values.std(ddof=1)
        expected = norm.logpdf(phi[i], mean[True], sd[True]) - norm.logpdf(phi[i], mean[False], sd[False])
        assert online[i] == pytest.approx(expected, rel=1e-9)
        assert offline[i] == pytest.approx((phi[i] - mean[False]) / sd[False], rel=1e-12)


def test_one_variance_for_all_below_64_shadows() -> None:
    rng = np.random.default_rng(1)
    few, phi, _ = world(rng, n_shadows=126, m=5)
    assert np.array_equal(lira_online_scores(phi, few), lira_online_scores(phi, few, fixed_variance=True))
    many, phi, _ = world(rng, n_shadows=128, m=5)
    assert np.array_equal(lira_online_scores(phi, many), lira_online_scores(phi, many, fixed_variance=False))


def test_calibrated_attacks_see_what_the_raw_signal_hides() -> None:
    rng = np.random.default_rng(2)
    shadows, phi, coins = world(rng, n_shadows=16, m=2000)
    # two unit Gaussians 2 apart: AUC Phi(sqrt 2) = .921 with known means, a little less with estimated ones
    assert roc_auc_score(coins, phi) < 0.65
    for scores in (lira_online_scores(phi, shadows), lira_offline_scores(phi, shadows)):
        assert 0.88 < roc_auc_score(coins, scores) < 0.935


def test_scores_of_a_model_without_leakage_are_null() -> None:
    rng = np.random.default_rng(3)
    shadows, phi, coins = world(rng, n_shadows=16, m=3000, effect=0.0)
    for scores in (lira_online_scores(phi, shadows), lira_offline_scores(phi, shadows)):
        assert abs(roc_auc_score(coins, scores) - 0.5) < 4 * 0.0106  # sd of a null AUC at 1500 against 1500


def naive_rmia(
    target: np.ndarray, refs: np.ndarray, z: np.ndarray, z_refs: np.ndarray, gamma: float, a: float | None
) -> list[float]:
    def ratio(log_p: float, log_refs: np.ndarray) -> float:
        mean = float(np.mean(np.exp(log_refs)))
        return float(np.exp(log_p)) / (mean if a is None else ((1 + a) * mean + 1 - a) / 2)

    others = [ratio(z[j], z_refs[:, j]) for j in range(len(z))]
    return [float(np.mean([ratio(x, refs[:, i]) / o >= gamma for o in others])) for i, x in enumerate(target)]


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
def test_rmia_equals_a_loop_over_pairs(gamma: float, a: float | None) -> None:
    rng = np.random.default_rng(4)
    target, refs = -rng.exponential(size=11), -rng.exponential(size=(3, 11))
    z, z_refs = -rng.exponential(size=17), -rng.exponential(size=(3, 17))
    found = rmia_scores(target, refs, z, z_refs, gamma=gamma, offline_a=a)
    np.testing.assert_allclose(found, naive_rmia(target, refs, z, z_refs, gamma, a), rtol=1e-12)


def test_offline_a_is_chosen_by_auc_over_references() -> None:
    rng = np.random.default_rng(5)
    m, z, shadows = 40, 15, 4
    hardness, z_hardness = -rng.exponential(2.0, size=m), -rng.exponential(2.0, size=z)
    members = shadow_memberships(shadows, m, rng=rng)
    signals = np.minimum(0.0, hardness * np.where(members, 0.5, 1.0) + 0.1 * rng.normal(size=(shadows, m)))
    population = np.minimum(0.0, z_hardness + 0.1 * rng.normal(size=(shadows, z)))

    def mean_auc(a: float) -> float:
        aucs = []
        for s in range(shadows):
            others = [t for t in range(shadows) if t != s]
            scores, truth = [], []
            for i in range(m):
                out = [t for t in others if not members[t, i]]
                if out:
                    own = (signals[s, i : i + 1], signals[out, i][:, None])
                    scores += naive_rmia(*own, population[s], population[others], 1.0, a)
                    truth.append(bool(members[s, i]))
            aucs.append(roc_auc_score(truth, scores))
        return float(np.mean(aucs))

    curve = [mean_auc(a / 10) for a in range(11)]
    assert choose_offline_a(signals, members, population) == np.argmax(curve) / 10
    assert max(curve) > min(curve) + 0.01  # the choice matters here


def task(members: np.ndarray, seed: int) -> np.ndarray:
    return np.where(members, 1.0, -1.0) * np.arange(len(members)) + np.random.default_rng(seed).normal()


def test_shadows_fan_out_and_do_not_depend_on_n_jobs() -> None:
    import joblib

    runs = [train_shadows(task, 7, n_shadows=6, rng=np.random.default_rng(6), n_jobs=jobs) for jobs in (None, 1)]
    with joblib.parallel_config(backend="threading"):
        runs.append(train_shadows(task, 7, n_shadows=6, rng=np.random.default_rng(6), n_jobs=3))
    for run in runs[1:]:
        assert np.array_equal(run.signals, runs[0].signals) and np.array_equal(run.members, runs[0].members)
    assert (runs[0].members.sum(axis=0) == 3).all() and len(np.unique(runs[0].signals[:, 0])) == 6


@pytest.mark.slow
def test_shadows_fan_out_to_processes() -> None:
    plain, fanned = (train_shadows(task, 7, n_shadows=6, rng=np.random.default_rng(6), n_jobs=jobs) for jobs in (1, 2))
    assert np.array_equal(plain.signals, fanned.signals)


def test_shadows_use_the_surrounding_joblib_backend() -> None:
    import joblib

    class Counting(joblib.parallel.SequentialBackend):
        calls = 0

        def submit(self, func: object, callback: object = None) -> object:
            Counting.calls += 1
            return super().submit(func, callback)

        def apply_async(self, func: object, callback: object = None) -> object:
            Counting.calls += 1
            return super().apply_async(func, callback)

        def effective_n_jobs(self, n_jobs: int) -> int:
            Counting.calls += 1
            return 1

    joblib.register_parallel_backend("counting", Counting)
    with joblib.parallel_config(backend="counting", n_jobs=2):
        train_shadows(task, 3, n_shadows=2, rng=np.random.default_rng(0))
    assert Counting.calls > 0


def test_shadow_mistakes_are_named() -> None:
    rng = np.random.default_rng(7)
    shadows, phi, _ = world(rng, n_shadows=4, m=5)
    never = ShadowSignals(shadows.signals, np.zeros((4, 5), dtype=bool))
    with pytest.raises(InvalidValue, match="record 0 has no shadow model with it"):
        lira_online_scores(phi, never)
    assert np.isfinite(lira_offline_scores(phi, never)).all()
    flat = ShadowSignals(np.ones((4, 5)), shadows.members)
    with pytest.raises(InvalidValue, match="show no spread"):
        lira_offline_scores(phi, flat)
    with pytest.raises(InvalidValue, match=r"signals has shape \(4,\)"):
        lira_offline_scores(phi[:4], shadows)
    with pytest.raises(InvalidValue, match="gamma=0"):
        rmia_scores([-1.0], [[-1.0]], [-1.0], [[-1.0]], gamma=0)
    with pytest.raises(InvalidValue, match="must be <= 0"):
        rmia_scores([-1.0], [[1.0]], [-1.0], [[-1.0]])
    with pytest.raises(InvalidValue, match="n_shadows=1"):
        shadow_memberships(1, 3, rng=rng)
    with pytest.raises(InvalidValue, match="signal of shadow 0"):
        train_shadows(lambda members, seed: members[1:], 3, n_shadows=2, rng=rng)


@pytest.mark.parametrize("odd", [0.5, 2, -1, np.nan])
def test_memberships_are_yes_or_no(odd: float) -> None:
    """A membership of 0.5 was read as True without a word."""
    from dpaudit.attacks.scores.estimators import LiraAttack

    members = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, odd], [0.0, 0.0]])
    signals = np.random.default_rng(0).normal(size=(4, 2))
    for call in (
        lambda: ShadowSignals(signals, members),
        lambda: LiraAttack().fit(signals, members),
        lambda: choose_offline_a(-abs(signals), members, -abs(signals)),
    ):
        with pytest.raises(InvalidValue, match="must hold booleans or 0 and 1"):
            call()
    members[2, 1] = 1
    as_numbers, as_flags = ShadowSignals(signals, members), ShadowSignals(signals, members == 1)
    assert as_numbers.members.dtype == np.bool_ and (as_numbers.members == as_flags.members).all()
    with pytest.raises(InvalidValue, match="booleans"):
        ShadowSignals(signals, np.array([["yes", "no"]] * 4))
