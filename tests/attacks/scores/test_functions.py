"""Membership scores against naive loops and closed forms; laws that every score obeys."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dpaudit import InvalidValue
from dpaudit.attacks import residual_scores
from dpaudit.attacks.scores.functions import (
    gradient_norm_scores,
    logit_confidence,
    loss_drop_scores,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    neighbourhood_scores,
    projection_scores,
    zlib_scores,
)

NAN = float("nan")


def test_loss_and_loss_drop_are_higher_for_members() -> None:
    assert loss_scores([1.0, 2.0]).tolist() == [-1.0, -2.0]
    assert loss_drop_scores([1.0, 2.0], [3.0, 2.5]).tolist() == [2.0, 0.5]


def test_residual_is_what_least_squares_leaves() -> None:
    rng = np.random.default_rng(0)
    base = rng.exponential(10, size=50)
    target = 0.1 * base + rng.normal(size=50)
    slope, intercept = np.polyfit(base, target, 1)
    np.testing.assert_allclose(residual_scores(target, base), intercept + slope * base - target, rtol=1e-9, atol=1e-12)
    assert residual_scores([1.0, 2.0, 6.0], [5.0] * 3).tolist() == [2.0, 1.0, -3.0]
    with pytest.raises(InvalidValue, match="at least 3"):
        residual_scores([1.0, 2.0], [1.0, 2.0])


def test_residual_sees_members_that_the_drop_ranks_by_difficulty() -> None:
    # what differential privacy does to rare tokens: a tenth of the base loss is left, members half a nat lower
    rng = np.random.default_rng(1)
    base = rng.normal(57, 8, size=4000)
    coins = rng.integers(2, size=4000)
    target = 0.1 * base + rng.normal(size=4000) - 0.8 * coins

    def auc(scores: np.ndarray) -> float:
        ranks = scores.argsort().argsort() + 1
        inside = coins == 1
        n = int(inside.sum())
        return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * (4000 - n)))

    assert auc(residual_scores(target, base)) == pytest.approx(0.714, abs=0.03)  # Phi(.8 / sqrt 2)
    assert auc(loss_drop_scores(target, base)) < 0.56


def test_zlib_divides_by_compressed_bytes() -> None:
    texts = ["aaaa" * 50, "q8#kz!", "é"]
    expected = [-7.0 / len(zlib.compress(t.encode())) for t in texts]
    assert zlib_scores([7.0] * 3, texts).tolist() == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1))
def test_min_k_equals_a_loop_over_tokens(lengths: list[int], k: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.full((len(lengths), max(lengths)), NAN)
    mean, sd = table.copy(), table.copy()
    for i, n in enumerate(lengths):
        # scored tokens may stand anywhere in the row
        places = rng.choice(max(lengths), size=n, replace=False)
        table[i, places], mean[i, places], sd[i, places] = -rng.exponential(size=n), -1.5, rng.uniform(0.5, 2, n)
    for plus in (False, True):
        found = min_k_plus_plus_scores(table, mean, sd, k=k) if plus else min_k_scores(table, k=k)
        for i, n in enumerate(lengths):
            there = ~np.isnan(table[i])
            values = ((table[i] - mean[i]) / sd[i])[there] if plus else table[i][there]
            count = max(1, int(k * n + 1e-9))
            assert found[i] == pytest.approx(sum(sorted(values)[:count]) / count, rel=1e-12)


def test_min_k_plus_plus_of_a_certain_token_is_neutral() -> None:
    assert min_k_plus_plus_scores([[0.0, -2.0]], [[0.0, -1.0]], [[0.0, 0.5]], k=1.0).tolist() == [-1.0]


def test_neighbourhood_and_gradient_norm() -> None:
    assert neighbourhood_scores([1.0, 4.0], [[2.0, 4.0], [4.0, 4.0]]).tolist() == [2.0, 0.0]
    assert gradient_norm_scores([1.0, 2.0]).tolist() == [-1.0, -4.0]
    assert gradient_norm_scores([1.0, 2.0], [3.0, 2.0]).tolist() == [8.0, 0.0]


@pytest.mark.parametrize("p", [1e-12, 0.2, 0.5, 0.9, 1 - 1e-12])
def test_logit_confidence_is_the_logit(p: float) -> None:
    # log1p keeps the exact complement where 1 - p would round
    expected = math.log(p) - math.log1p(-p)
    assert float(logit_confidence([-math.log(p)])[0]) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_logit_confidence_stays_finite_at_both_ends() -> None:
    ends = logit_confidence([0.0, 1e-300, 1e-3, 800.0])
    assert np.isfinite(ends).all() and (np.diff(ends) <= 0).all() and ends[-1] == pytest.approx(-800.0)


def test_projection_scores_are_the_log_likelihood_ratio() -> None:
    rng = np.random.default_rng(0)
    q, s = rng.uniform(0.01, 1, 7), rng.uniform(0.5, 3, 7)
    q[3] = 1.0
    x = rng.normal(size=(5, 7))
    p_in = (1 - q) * norm.pdf(x, 0, s) + q * norm.pdf(x, 1, s)
    expected = np.log(p_in / norm.pdf(x, 0, s)).sum(axis=1)
    found = projection_scores(x, sampling_probability=q, noise_multiplier=s)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_projection_scores_beat_the_plain_sum() -> None:
    # the reference configuration: mu of the sum .504, of the ratio about .78
    rng = np.random.default_rng(1)
    q, s, steps, m = 0.0128, 0.8025, 1000, 600
    member = rng.integers(2, size=m).astype(bool)
    took_part = (rng.random((m, steps)) < q) & member[:, None]
    x = took_part + s * rng.standard_normal((m, steps))
    ratio = projection_scores(x, sampling_probability=q, noise_multiplier=s)
    plain = x.sum(axis=1)

    def separation(score: np.ndarray) -> float:
        spread = math.sqrt((score[member].var() + score[~member].var()) / 2)
        return float((score[member].mean() - score[~member].mean()) / spread)

    assert separation(plain) == pytest.approx(0.504, abs=0.2) and separation(ratio) > separation(plain) + 0.1
    assert ratio.max() < 800 and np.isfinite(ratio).all()


def test_bad_arrays_are_named() -> None:
    with pytest.raises(InvalidValue, match=r"losses holds 1 NaN .* \[1\]"):
        loss_scores([1.0, NAN])
    with pytest.raises(InvalidValue, match=r"base_losses has shape \(1,\)"):
        loss_drop_scores([1.0, 2.0], [1.0])
    with pytest.raises(InvalidValue, match="k=0 must be in"):
        min_k_scores([[1.0]], k=0)
    with pytest.raises(InvalidValue, match="without a scored token"):
        min_k_scores([[NAN, NAN], [1.0, 2.0]])
    with pytest.raises(InvalidValue, match="finite and >= 0"):
        logit_confidence([-0.1])
    with pytest.raises(InvalidValue, match="sampling_probability=0"):
        projection_scores([[1.0]], sampling_probability=0, noise_multiplier=1)
