"""Estimators agree with their functions, and behave as scikit-learn expects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import QuantileRegressor

from dpaudit import InvalidValue
from dpaudit.attacks.scores import estimators
from dpaudit.attacks.scores.estimators import (
    CalibratedAttack,
    GradientNormAttack,
    LiraAttack,
    LossAttack,
    MinKAttack,
    NeighbourhoodAttack,
    ProjectionAttack,
    RmiaAttack,
    ZlibAttack,
)
from dpaudit.attacks.scores.functions import (
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    projection_scores,
    residual_scores,
    zlib_scores,
)
from dpaudit.attacks.scores.losses import TokenStatistics
from dpaudit.attacks.scores.quantile import QuantileAttack
from dpaudit.attacks.scores.shadow import (
    ShadowSignals,
    lira_offline_scores,
    lira_online_scores,
    rmia_scores,
    shadow_memberships,
)

RNG = np.random.default_rng(0)
LOSSES, BASE = RNG.exponential(size=6), RNG.exponential(size=6)
SHADOW, MEMBERS = RNG.normal(size=(8, 6)), shadow_memberships(8, 6, rng=RNG)
TOKENS = TokenStatistics(-RNG.exponential(size=(6, 5)), -RNG.exponential(size=(6, 5)), RNG.exponential(size=(6, 5)))
LOG_P, Z = -RNG.exponential(size=(3, 6)), -RNG.exponential(size=(4, 9))
TEXTS = [f"text {i}" * i for i in range(1, 7)]

CASES: list[tuple[Any, tuple[Any, ...], tuple[Any, ...], Any]] = [
    (LossAttack(), (), (LOSSES,), loss_scores(LOSSES)),
    (CalibratedAttack(), (BASE,), (LOSSES,), BASE - LOSSES),
    (CalibratedAttack(), (np.stack([BASE, LOSSES]),), (LOSSES,), (BASE - LOSSES) / 2),
    (CalibratedAttack(slope="fitted"), (BASE,), (LOSSES,), residual_scores(LOSSES, BASE)),
    (ZlibAttack(), (TEXTS,), (LOSSES,), zlib_scores(LOSSES, TEXTS)),
    (MinKAttack(k=0.4), (), (TOKENS,), min_k_scores(TOKENS.log_probs, k=0.4)),
    (
        MinKAttack(k=0.4, standardise=True),
        (),
        (TOKENS,),
        min_k_plus_plus_scores(TOKENS.log_probs, TOKENS.means, TOKENS.deviations, k=0.4),
    ),
    (NeighbourhoodAttack(), (), (SHADOW.T,), SHADOW.T[:, 1:].mean(1) - SHADOW[0]),
    (GradientNormAttack(), (), (LOSSES,), -(LOSSES**2)),
    (GradientNormAttack(), (BASE,), (LOSSES,), BASE**2 - LOSSES**2),
    (
        LiraAttack(),
        (SHADOW, MEMBERS),
        (LOSSES,),
        lira_online_scores(LOSSES, ShadowSignals(SHADOW, MEMBERS)),
    ),
    (
        LiraAttack(mode="offline", fixed_variance=False),
        (SHADOW, MEMBERS),
        (LOSSES,),
        lira_offline_scores(LOSSES, ShadowSignals(SHADOW, MEMBERS), fixed_variance=False),
    ),
    (
        RmiaAttack(offline_a=0.4),
        (LOG_P, Z[1:]),
        (-LOSSES, Z[0]),
        rmia_scores(-LOSSES, LOG_P, Z[0], Z[1:], offline_a=0.4),
    ),
    (
        ProjectionAttack(sampling_probability=0.2, noise_multiplier=1.5),
        (),
        (SHADOW.T,),
        projection_scores(SHADOW.T, sampling_probability=0.2, noise_multiplier=1.5),
    ),
]


@pytest.mark.parametrize(("estimator", "fit", "given", "expected"), CASES, ids=lambda v: type(v).__name__[:24])
def test_estimator_equals_its_function(
    estimator: Any, fit: tuple[Any, ...], given: tuple[Any, ...], expected: Any
) -> None:
    fresh = clone(estimator)
    assert fresh is not estimator and fresh.get_params() == estimator.get_params()
    before = fresh.get_params()
    assert fresh.fit(*fit) is fresh
    scores = fresh.score_samples(*given)
    assert scores.shape == (6,) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert fresh.get_params() == before and type(fresh).__name__ in repr(fresh)


def test_every_attack_is_covered_here() -> None:
    public = {name for name in dir(estimators) if name.endswith("Attack")}
    assert public == {type(case[0]).__name__ for case in CASES} - {"QuantileAttack"}


@pytest.mark.parametrize("estimator", [CalibratedAttack(), ZlibAttack(), LiraAttack(), QuantileAttack()], ids=repr)
def test_scoring_before_fit_is_refused(estimator: Any) -> None:
    arguments = (LOSSES[:, None], LOSSES) if isinstance(estimator, QuantileAttack) else (LOSSES,)
    with pytest.raises(InvalidValue, match="not fitted"):
        estimator.score_samples(*arguments)


def test_parameters_are_checked_by_name() -> None:
    with pytest.raises(InvalidValue, match="gama=2 is no parameter of RmiaAttack"):
        RmiaAttack().set_params(gama=2)
    assert RmiaAttack().set_params(gamma=2.0).gamma == 2.0
    with pytest.raises(InvalidValue, match="mode='both'"):
        LiraAttack(mode="both").fit(SHADOW, MEMBERS)


def test_quantile_attack_holds_its_false_positive_rate_everywhere() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, size=(6000, 1))
    scores = 3 * x[:, 0] + (1 + (x[:, 0] > 0)) * rng.normal(size=6000)
    attack = QuantileAttack(fpr=0.1).fit(x[:4000], scores[:4000])
    called = attack.score_samples(x[4000:], scores[4000:]) > 0
    for side in (x[4000:, 0] < 0, x[4000:, 0] > 0):
        # one threshold for all records would call almost only the right side
        assert called[side].mean() == pytest.approx(0.1, abs=0.035)


def test_quantile_attack_takes_another_regressor() -> None:
    x, scores = np.zeros((100, 1)), np.arange(100.0)
    attack = QuantileAttack(fpr=0.2, regressor=QuantileRegressor(quantile=0.8, alpha=0.0))
    found = clone(attack).fit(x, scores).score_samples(x, scores)
    assert (found > 1e-6).sum() == pytest.approx(20, abs=1)
    with pytest.raises(InvalidValue, match="give at least 100"):
        QuantileAttack(fpr=0.05).fit(x[:50], scores[:50])
