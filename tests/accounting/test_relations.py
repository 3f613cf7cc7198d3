"""From stages to what they cost: relations, groups, shuffling against a worst-case pair, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpaudit import DpauditError, InvalidValue, Ledger, Relation, Stage, UnsupportedStage
from dpaudit.accounting import account
from dpaudit.accounting.relations import charges, participations
from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon

DELTA = 1e-5


def stage(**fields: Any) -> Stage:
    base: dict[str, Any] = {
        "sampling_probability": 0.1,
        "noise_multiplier": 2.0,
        "steps": 20,
        "sampling": "poisson",
    }
    return Stage(**(base | fields))


def ledger(*stages: Stage, relation: str = "add_or_remove_one", **fields: Any) -> Ledger:
    return Ledger(stages=stages, relation=Relation.parse(relation), **fields)


def upper(made: Ledger, **options: Any) -> float:
    (found,) = account(made, delta=DELTA, **options)
    assert found.epsilon_upper is not None
    return found.epsilon_upper


def test_directions_on_one_minibatch_are_one_gaussian() -> None:
    joint = stage(releases_per_step=16, clip="joint")
    each = stage(releases_per_step=16, clip="per_direction", noise_multiplier=8.0)
    assert upper(ledger(joint)) == upper(ledger(stage()))
    assert upper(ledger(each)) == upper(ledger(stage()))
    assert upper(ledger(each)) > upper(ledger(stage(noise_multiplier=8.0, steps=16 * 20)))


def test_quantile_query_folds_into_the_same_minibatch() -> None:
    made = stage(noise_multiplier=1.0, quantile_sigma=5.0)
    assert made.combined_noise_multiplier == pytest.approx((1 + 0.01) ** -0.5)
    assert upper(ledger(made)) > upper(ledger(stage(noise_multiplier=1.0)))


def test_shuffled_stage_participates_once_an_epoch_and_restarts_count() -> None:
    assert participations(stage(sampling="shuffle", sampling_probability=0.25, steps=8)) == 2
    assert participations(stage(sampling="shuffle", sampling_probability=0.25, steps=9)) == 3
    assert participations(stage(sampling="shuffle", sampling_probability=1 / 75, steps=75)) == 1
    one = stage(sampling="shuffle", sampling_probability=0.25, steps=3)
    assert charges(ledger(one, one, relation="zero_out")).mu_squared == pytest.approx(2 * 0.25)
    assert charges(ledger(one, one, relation="replace_one")).mu_squared == pytest.approx(8 * 0.25)


def test_shuffling_under_removal_covers_the_worst_case_pair() -> None:
    made = stage(sampling="shuffle", sampling_probability=0.5, noise_multiplier=1.0, steps=2)
    with pytest.raises(UnsupportedStage, match="stage 1 is shuffled"):
        charges(ledger(made))
    bound = upper(ledger(made), assume=("shuffle_fixed_schedule",))
    assert bound == pytest.approx(gaussian_epsilon(math.sqrt(5), DELTA), rel=1e-9)
    # Two records +1 and −1, batch 1, one epoch: with both, one of two orders; without the first, the other moves in.
    # Their ε, 10.43, lies far above the 4.38 of a record that only vanishes, and below the bound.
    x = np.linspace(-12, 12, 481)
    a, b = np.meshgrid(x, x)

    def density(u: float, v: float) -> Any:
        return np.exp(-0.5 * ((a - u) ** 2 + (b - v) ** 2)) / (2 * math.pi)

    with_record = 0.5 * density(1, -1) + 0.5 * density(-1, 1)
    without = density(-1, 0)
    cell = (x[1] - x[0]) ** 2
    for epsilon in (0.0, 1.0, 3.0, 10.4, bound):
        for p, q in ((with_record, without), (without, with_record)):
            gain = float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * cell)
            assert gain <= gaussian_delta(math.sqrt(5), epsilon) * (1 + 1e-3)
    assert float(np.maximum(with_record - math.exp(10.40) * without, 0).sum() * cell) > DELTA
    assert bound > 10.43 > gaussian_epsilon(1.0, DELTA)


def test_shuffling_by_replacement_covers_the_worst_case_pair() -> None:
    # One record in a batch of its own, +1 replaced by −1: distance 2 in exactly one of two steps.
    bound = upper(ledger(stage(sampling="shuffle", sampling_probability=0.5, steps=2), relation="replace_one"))
    x = np.linspace(-12, 12, 481)
    a, b = np.meshgrid(x, x)

    def mixture(v: float) -> Any:
        one = np.exp(-((a - v) ** 2 + b**2) / 8) + np.exp(-(a**2 + (b - v) ** 2) / 8)
        return one / one.sum()

    gain = float(np.maximum(mixture(1) - math.exp(bound) * mixture(-1), 0).sum())
    assert gain <= DELTA


def test_without_replacement_is_replace_one_only_and_unamplified() -> None:
    made = stage(sampling="without_replacement", noise_multiplier=10.0)
    with pytest.raises(UnsupportedStage, match="stage 1 samples without replacement"):
        charges(ledger(made))
    assert upper(ledger(made, relation="replace_one")) == pytest.approx(gaussian_epsilon(0.2 * math.sqrt(20), DELTA))
    (found,) = account(ledger(made, relation="replace_one"), delta=DELTA)
    assert found.epsilon_lower is None and "without amplification" in found.assumption


def test_records_of_one_unit_multiply_the_group() -> None:
    plain = ledger(stage())
    users = ledger(stage(), unit="user", max_records_per_unit=3)
    assert upper(users) == upper(plain, group_size=3) > 3 * upper(plain) * 0.9
    (found,) = account(users, delta=DELTA, group_size=2)
    assert found.group_size == 6
    full = ledger(stage(sampling="none", sampling_probability=1.0))
    assert upper(full, group_size=4) == upper(
        ledger(stage(sampling="none", sampling_probability=1.0, noise_multiplier=0.5))
    )


@pytest.mark.parametrize(
    ("made", "accountant", "words"),
    [
        (ledger(stage(), relation="replace_one"), "rdp", "half of ε"),
        (ledger(stage(mechanism="laplace")), "rdp", "sampled Laplace"),
        (ledger(stage(mechanism="laplace", quantile_sigma=2.0)), "prv", "stage 1 has mechanism='laplace'"),
        (ledger(stage(sampling="truncated_poisson", max_batch=10)), "prv", "public_size"),
        (ledger(stage(mechanism="laplace")), "gdp-clt", "prv"),
    ],
)
def test_what_cannot_be_charged_is_refused_in_one_sentence(made: Ledger, accountant: str, words: str) -> None:
    with pytest.raises(UnsupportedStage, match=words):
        account(made, delta=DELTA, accountants=(accountant,))


def test_tiny_delta_is_refused_by_pld_and_answered_by_prv() -> None:
    with pytest.raises(UnsupportedStage, match="use accountant 'prv'"):
        account(ledger(stage()), delta=1e-11, accountants=("pld",))
    assert account(ledger(stage()), delta=1e-11)[0].epsilon_lower


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_outside_its_bounds_is_refused(delta: float) -> None:
    with pytest.raises(InvalidValue, match="delta="):
        account(ledger(stage()), delta=delta)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidValue, match="accountant 'moments' is unknown"):
        account(ledger(stage()), delta=DELTA, accountants=("moments",))
    with pytest.raises(InvalidValue, match="assume="):
        charges(ledger(stage()), assume=("everything",))


def test_a_broken_plug_in_warns_and_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "broken"

        def load(self) -> Any:
            raise ImportError("no such module")

    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()])
    with pytest.warns(UserWarning, match="cannot be loaded"), pytest.raises(DpauditError):
        account(ledger(stage()), delta=DELTA, accountants=("broken",))


def test_tuning_costs_more_than_one_run_and_less_than_composing_them() -> None:
    made = ledger(stage(noise_multiplier=1.0, sampling_probability=0.01, steps=1000))
    once = upper(made, accountants=("rdp",))
    tuned = upper(made, accountants=("rdp",), tuning="geometric:10")
    assert once == pytest.approx(2.101, abs=2e-3)
    assert tuned == pytest.approx(4.10, abs=0.02)
    with pytest.raises(UnsupportedStage, match="tuning"):
        upper(made, tuning="geometric:10")
    with pytest.raises(InvalidValue, match="tuning='fixed:3'"):
        upper(made, accountants=("rdp",), tuning="fixed:3")
