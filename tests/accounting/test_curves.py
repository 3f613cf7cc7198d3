"""Trade-off bands, budget curves, Gaussian DP, calibration, comparison."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from dpaudit import InvalidValue, Ledger, Relation, Stage
from dpaudit.accounting import account, calibrate, compare, gaussian_dp, tradeoff_curve
from dpaudit.accounting.calibrate import (
    StageTarget,
    budget,
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_split,
    calibrate_steps,
)
from dpaudit.accounting.clt import clt_mu
from dpaudit.accounting.relations import charges
from dpaudit.accounting.tradeoff import advantage, delta_at, epsilon_curve, tradeoff
from dpaudit.privacy.gaussian import gaussian_epsilon, gaussian_tpr
from dpaudit.privacy.stage import Clip

DELTA = 1e-5


def make(*stages: tuple[float, float, int], relation: str = "add_or_remove_one") -> Ledger:
    made = [
        Stage(sampling_probability=q, noise_multiplier=s, steps=t, sampling="poisson")  # type: ignore[arg-type]
        for q, s, t in stages
    ]
    return Ledger(stages=tuple(made), relation=Relation.parse(relation))


def test_one_step_rates_are_exact_into_the_far_corner() -> None:
    q, sigma = 0.01, 0.8
    fpr = np.array([1e-7, 1e-5, 1e-3, 1e-2, 0.1])
    band = tradeoff_curve(make((q, sigma, 1)), fpr)
    exact = (1 - q) * fpr + q * ndtr(1 / sigma + ndtri(fpr))
    assert np.all(band.tpr_lower <= exact * (1 + 1e-3))
    assert np.all(band.tpr_upper >= exact)
    assert np.all(band.tpr_upper - band.tpr_lower <= 1e-3 * band.tpr_upper)


def test_many_steps_keep_the_corner_that_others_lose() -> None:
    # Taking FPR from the other direction's lower tail gives 1.08e-5 here; the truth is 2.2186e-3.
    band = tradeoff_curve(make((0.01, 0.8, 5000)), [1e-5, 1e-3])
    assert band.tpr_lower[0] >= 2.0e-3
    assert band.tpr_lower[0] <= 2.2197e-3 and band.tpr_upper[0] >= 2.2181e-3
    assert band.tpr_lower[1] <= 0.04366 and band.tpr_upper[1] >= 0.0436


def test_declared_curve_is_a_trade_off_function_and_agrees_with_epsilon() -> None:
    made = make((0.02, 1.0, 300), (1.0, 20.0, 3))
    curve = tradeoff(made)
    lower, upper = curve(0.05)
    assert 0 <= lower <= upper <= 0.95
    fpr = np.linspace(0.001, 0.999, 60)
    band = tradeoff_curve(made, fpr)
    assert np.all(np.diff(band.tpr_upper) >= -1e-9)
    (found,) = account(made, delta=DELTA)
    assert found.epsilon_upper is not None
    assert np.all(band.tpr_lower <= DELTA + math.exp(found.epsilon_upper) * fpr + 1e-9)
    best = advantage(made)
    assert float((band.tpr_lower - fpr).max()) <= best.upper
    assert float((band.tpr_upper - fpr).max()) >= best.lower - 1e-3


def test_full_batch_curve_is_gaussian() -> None:
    band = tradeoff_curve(make((1.0, 2.0, 4)), [1e-6, 0.01, 0.5])
    exact = [gaussian_tpr(1.0, a) for a in (1e-6, 0.01, 0.5)]
    assert band.tpr_lower == pytest.approx(exact, rel=1e-9)
    assert band.tpr_upper == pytest.approx(exact, rel=1e-9)
    with pytest.raises(InvalidValue, match="fpr"):
        tradeoff_curve(make((1.0, 2.0, 4)), [1.5])


def test_delta_at_epsilon_inverts_epsilon_at_delta() -> None:
    made = make((0.01, 1.0, 1000))
    (found,) = account(made, delta=DELTA)
    assert found.epsilon_upper is not None and found.epsilon_lower is not None
    assert delta_at(made, found.epsilon_upper).lower <= DELTA <= delta_at(made, found.epsilon_lower).upper


def test_budget_curve_rises_to_the_whole_ledger() -> None:
    made = make((0.01, 1.2, 300), (0.02, 1.5, 200))
    curve = epsilon_curve(made, DELTA, points=8)
    assert 300 in curve.steps and curve.steps[-1] == 500
    assert list(curve.upper) == sorted(curve.upper) and list(curve.lower) == sorted(curve.lower)
    (found,) = account(made, delta=DELTA)
    assert curve.upper[-1] == found.epsilon_upper


def test_gaussian_dp_is_exact_for_full_batches_with_shares_that_add_up() -> None:
    found = gaussian_dp(make((1.0, 2.0, 4), (1.0, 1.0, 3)), delta_min=1e-6)
    assert found.exact and found.mu == pytest.approx(2.0)
    assert found.shares == pytest.approx((0.25, 0.75))


def test_certified_mu_grows_as_delta_falls_and_covers_the_curve() -> None:
    made = make((0.01, 0.8, 5000))
    wide = gaussian_dp(made, delta_min=1e-2, with_regret=False)
    fine = gaussian_dp(made, delta_min=1e-5)
    assert wide.mu <= fine.mu
    assert fine.mu_lower <= 1.4626 * 1.001 and fine.mu >= 1.4626 * 0.999
    assert fine.mu <= 1.005 * fine.mu_lower
    assert fine.mu > clt_mu(charges(made))
    assert fine.regret is not None and 0 < fine.regret < 0.05
    for delta in (1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        (found,) = account(made, delta=delta)
        assert found.epsilon_lower is not None
        assert found.epsilon_lower <= gaussian_epsilon(fine.mu, delta)


def test_the_central_limit_is_never_a_bound() -> None:
    (found,) = account(make((5e-4, 0.5, 2000)), delta=1e-7, accountants=("gdp-clt",))
    assert not found.rigorous and found.epsilon_upper is None and found.epsilon_lower is None
    assert found.epsilon_estimate == pytest.approx(0.7533, abs=1e-4)


@dataclasses.dataclass(frozen=True)
class Plan:
    target_epsilon: float | None
    delta: float = DELTA
    noise_multiplier: float = 1.0

    def with_noise_multiplier(self, noise_multiplier: float) -> Plan:
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)

    def ledger(self) -> Ledger:
        return make((0.01, self.noise_multiplier, 2000))


def test_calibration_meets_the_target_with_its_upper_bound() -> None:
    plan = calibrate(Plan(3.0))
    (found,) = account(plan.ledger(), delta=DELTA)
    assert found.epsilon_upper is not None
    assert 3.0 * (1 - 2e-4) <= found.epsilon_upper <= 3.0
    assert plan.noise_multiplier == pytest.approx(0.9305, rel=2e-3)
    assert calibrate(Plan(1.0)).noise_multiplier > plan.noise_multiplier
    with pytest.raises(InvalidValue, match="target_epsilon=None"):
        calibrate(Plan(None))


def test_calibration_of_steps_and_of_sampling() -> None:
    stage = make((0.01, 1.0, 1)).stages[0]
    target = StageTarget(epsilon=2.0, delta=DELTA, relation=Relation.ADD_OR_REMOVE_ONE)
    steps = calibrate_steps(stage, target)

    def upper(q: float, t: int) -> float:
        (found,) = account(make((q, 1.0, t)), delta=DELTA)
        assert found.epsilon_upper is not None
        return found.epsilon_upper

    assert upper(0.01, steps) <= 2.0 < upper(0.01, steps + max(1, steps // 100))
    more = dataclasses.replace(stage, steps=1000)
    q = calibrate_sampling_probability(more, target)
    assert 2.0 * (1 - 2e-4) <= upper(q, 1000) <= 2.0
    with pytest.raises(InvalidValue, match="not met by a single step"):
        calibrate_steps(stage, dataclasses.replace(target, epsilon=1e-4, delta=1e-12))


def test_a_laplace_stage_and_a_full_batch_can_be_calibrated() -> None:
    stage = Stage(sampling_probability=1.0, noise_multiplier=1.0, steps=100, sampling="none")  # type: ignore[arg-type]
    sigma = calibrate_noise_multiplier(
        stage, StageTarget(epsilon=1.0, delta=DELTA, relation=Relation.ADD_OR_REMOVE_ONE)
    )
    assert gaussian_epsilon(10 / sigma, DELTA) == pytest.approx(1.0, rel=2e-4)


def test_a_budget_is_split_over_stages() -> None:
    made = make((0.02, 1.0, 500), (0.01, 1.0, 1000))
    made = dataclasses.replace(
        made,
        stages=(made.stages[0], dataclasses.replace(made.stages[1], releases_per_step=4, clip=Clip.PER_DIRECTION)),
    )
    found = calibrate_split(target_epsilon=2.0, delta=DELTA, ledger=made, shares=(3, 1))
    (answer,) = account(found, delta=DELTA)
    assert answer.epsilon_upper is not None and 2.0 * (1 - 2e-4) <= answer.epsilon_upper <= 2.0
    parts = [clt_mu(charges(dataclasses.replace(found, stages=(s,)))) ** 2 for s in found.stages]
    assert parts[0] / parts[1] == pytest.approx(3.0, rel=1e-6)
    with pytest.raises(InvalidValue, match="shares="):
        calibrate_split(target_epsilon=2.0, delta=DELTA, ledger=made, shares=(1,))


def test_budget_goes_negative_when_overspent() -> None:
    left = budget(2.0, DELTA)
    assert left(make((0.01, 1.0, 10))) > 0 > left(make((0.01, 1.0, 5000)))


def test_comparison_says_which_accountant_is_wrong() -> None:
    found = compare(make((5e-4, 0.5, 2000)), delta=1e-7, accountants=("prv", "gdp-clt", "pld"))
    remarks = {row.accountant: row.remark for row in found.rows}
    assert "certified" in remarks["prv"]
    assert "below the certified lower bound by 8" in remarks["gdp-clt"]
    replaced = compare(make((0.05, 2.0, 20), relation="replace_one"), delta=1e-12, accountants=("prv", "rdp", "pld"))
    remarks = {row.accountant: row.remark for row in replaced.rows}
    assert "refuses" in remarks["rdp"] and "refuses" in remarks["pld"]
    assert replaced.to_dict()["schema"] == "dpaudit.compare/1"


def test_comparison_curves_are_plain_and_complete() -> None:
    made = make((0.02, 2.0, 50), (0.04, 3.0, 30))
    found = compare(made, delta=DELTA, curves=True, empirical=[(0.1, 0.2)]).to_dict()
    steps, over_delta, rates = found["epsilon_over_steps"], found["epsilon_over_delta"], found["tradeoff"]
    assert steps["boundaries"] == [50] and steps["steps"][-1] == 80
    assert not found["not_drawn"]
    for series, grid in ((steps, "steps"), (over_delta, "delta")):
        assert [c["accountant"] for c in series["curves"]] == ["prv", "rdp", "pld", "gdp", "gdp-clt"]
        certified = dict(zip(series[grid], series["curves"][0]["epsilon_lower"], strict=True))
        for curve in series["curves"][:-1]:
            places = curve.get(grid, series[grid])
            values = curve["epsilon_upper"]
            assert len(values) == len(places) >= 8
            # No rigorous accountant lies below the certified lower bound, wherever it answered.
            assert all(v is None or v >= certified[x] * (1 - 1e-9) for x, v in zip(places, values, strict=True))
    assert over_delta["asked"] == DELTA and DELTA in over_delta["delta"]
    assert all(low <= high for low, high in zip(rates["lower"], rates["upper"]))
    # Bounds on ε allow an attacker more than the certified curve does.
    for name in ("rdp", "pld", "gdp"):
        assert all(r <= high + 1e-9 for r, high in zip(rates[name], rates["upper"], strict=True)), name
    assert rates["points"] == [{"fpr": 0.1, "fnr": pytest.approx(0.8)}]


def test_an_accountant_that_refuses_is_not_drawn() -> None:
    made = dataclasses.replace(make((0.02, 2.0, 50)), relation=Relation.REPLACE_ONE)
    found = compare(made, delta=DELTA, accountants=("prv", "rdp"), curves=True).to_dict()
    assert [c["accountant"] for c in found["epsilon_over_steps"]["curves"]] == ["prv"]
    (refused,) = (r for r in found["results"] if r["accountant"] == "rdp")
    assert not refused["rigorous"] and "replace_one" in refused["remark"]


def test_the_asked_delta_is_drawn_however_small() -> None:
    found = compare(make((0.02, 2.0, 50)), delta=1e-40, accountants=("prv", "pld"), curves=True).to_dict()
    over = found["epsilon_over_delta"]
    assert over["asked"] == 1e-40 and 1e-40 in over["delta"]
    assert [c["accountant"] for c in over["curves"]] == ["prv"]  # pld refuses so small a δ


def test_a_slow_accountant_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpaudit.accounting.comparison_curves.SLOW", -1.0)
    found = compare(make((0.02, 2.0, 50)), delta=DELTA, accountants=("prv", "rdp"), curves=True).to_dict()
    assert "seconds" in found["not_drawn"]["rdp"]
    assert [c["accountant"] for c in found["epsilon_over_delta"]["curves"]] == ["prv"]


def test_segments_of_one_stage_are_one_stage() -> None:
    found = compare(make(*[(0.02, 2.0, 5)] * 10), delta=DELTA, accountants=("prv",), curves=True).to_dict()
    assert [stage["steps"] for stage in found["stages"]] == [50]
    assert found["epsilon_over_steps"]["boundaries"] == []


def test_nothing_is_called_tight_or_true_without_a_lower_bound() -> None:
    shuffled = Stage(sampling_probability=0.02, noise_multiplier=4.0, steps=100, sampling="shuffle")
    made = Ledger(stages=(shuffled,), relation=Relation.ADD_OR_REMOVE_ONE)
    found = compare(made, delta=DELTA, accountants=("prv", "pld", "gdp"), assume=("shuffle_fixed_schedule",))
    for row in found.rows[1:]:
        assert "tight" not in row.remark and "close to the truth" not in row.remark, row
