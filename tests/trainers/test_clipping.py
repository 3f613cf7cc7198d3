"""Clipping rules: factors by definition, bounds, and the adaptive rule's book-keeping."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.clipping import AdaptiveFlat, Automatic, Flat, PerLayer, sum_noise_multiplier

NORMS = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=6)


@settings(deadline=None)
@given(norms=NORMS, bound=st.floats(1e-3, 1e3))
def test_flat_is_exactly_the_minimum(norms: list[float], bound: float) -> None:
    factors = Flat(bound).factors(torch.tensor(norms, dtype=torch.float64))
    for n, c in zip(norms, factors.tolist(), strict=True):
        assert c == (1.0 if n <= bound else bound / n)


@settings(deadline=None)
@given(norms=NORMS, bound=st.floats(1e-3, 1e3))
def test_every_rule_keeps_its_bound(norms: list[float], bound: float) -> None:
    n = torch.tensor(norms, dtype=torch.float64)
    for rule in (Flat(bound), Automatic(bound), AdaptiveFlat(bound)):
        assert (rule.factors(n) * n <= bound * (1 + 1e-12)).all() and rule.sensitivity == bound
    layers = torch.stack([n, n.flip(0), n / 2])
    assert ((PerLayer(bound).factors(layers) * layers).square().sum(0).sqrt() <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("rule", [Flat(1.0), Automatic(1.0), AdaptiveFlat(1.0)])
def test_what_is_not_finite_contributes_nothing(rule: Flat | Automatic | AdaptiveFlat) -> None:
    bad = torch.tensor([math.nan, math.inf, 0.5])
    assert rule.factors(bad).tolist()[:2] == [0.0, 0.0]
    assert rule.factors(bad)[2] > 0


def test_per_layer_silences_an_example_in_every_layer() -> None:
    norms = torch.tensor([[1.0, math.nan], [1.0, 2.0]])
    assert PerLayer(1.0).factors(norms)[:, 1].tolist() == [0.0, 0.0]
    assert torch.allclose(PerLayer(1.0).factors(norms)[:, 0], torch.tensor(0.5**0.5))


def test_per_layer_takes_bounds_that_add_up() -> None:
    rule = PerLayer(1.0, (0.6, 0.8))
    torch.testing.assert_close(rule.factors(torch.tensor([[2.0], [0.4]])), torch.tensor([[0.3], [1.0]]))
    with pytest.raises(InvalidValue, match="stay within"):
        PerLayer(1.0, (0.9, 0.9))
    with pytest.raises(InvalidValue, match="one bound for each of 3"):
        rule.factors(torch.ones(3, 2))


def test_adaptive_count_has_sensitivity_one_half() -> None:
    rule = AdaptiveFlat(1.0)
    norms = torch.tensor([0.2, 1.0, 3.0, math.nan])
    assert rule.count(norms) == 2 - 2
    for i in range(4):
        rest = torch.cat([norms[:i], norms[i + 1 :]])
        assert abs(rule.count(norms) - rule.count(rest)) == 0.5


def test_adaptive_update_moves_towards_the_quantile() -> None:
    rule = AdaptiveFlat(1.0, quantile=0.5, learning_rate=0.2)
    assert rule.updated(0.0, 100).clipping_norm == 1.0  # exactly half lie below
    assert rule.updated(50.0, 100).clipping_norm == pytest.approx(math.exp(-0.1))  # all below: C shrinks
    assert rule.updated(-50.0, 100).clipping_norm == pytest.approx(math.exp(0.1))
    norms = torch.linspace(0, 10, 1001)
    for _ in range(200):
        rule = rule.updated(rule.count(norms), len(norms))
    assert rule.clipping_norm == pytest.approx(5.0, rel=0.02)


def test_the_count_takes_its_share_of_the_noise() -> None:
    left = sum_noise_multiplier(1.0, 2.0)
    assert 1 / left**2 + 1 / (2 * 2.0) ** 2 == pytest.approx(1.0)
    with pytest.raises(InvalidValue, match=r"quantile_sigma=0\.5"):
        sum_noise_multiplier(1.0, 0.5)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bounds_must_be_positive(value: float) -> None:
    for rule in (Flat, PerLayer, Automatic, AdaptiveFlat):
        with pytest.raises(InvalidValue, match="clipping_norm"):
            rule(value)
