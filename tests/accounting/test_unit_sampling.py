"""Units of several records: the certified interval against dp-accounting's mixture of Gaussians; the two designs."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binom

from dpaudit import InvalidValue, Ledger, Stage, account
from dpaudit.accounting import compare_unit_sampling
from dpaudit.trainers import PrivacyPlan

#: ε(1e-6) of dp-accounting 0.6's PLD accountant for MixtureOfGaussiansDpEvent, on its default grid of 1e-4.
GOLDEN = {  # (q, σ, T, k)
    (0.01, 1.0, 300, 1): 1.3088797847198934,
    (0.02, 2.0, 200, 2): 1.4181076231882592,
    (0.01, 4.0, 200, 8): 1.2836732650570886,
    (0.005, 8.0, 400, 32): 1.7989126496669252,
    (0.03, 6.0, 100, 64): 20.84990191258198,
    (0.005, 20.0, 300, 128): 2.543703660487903,
}


def mixture_epsilon(q: float, sigma: float, steps: int, k: int, delta: float) -> float:
    """ε of dp-accounting's PLD accountant for the event itself: Binomial(k, q) of a unit's records in a step."""
    import dp_accounting as dp

    event = dp.dp_event.MixtureOfGaussiansDpEvent(sigma, list(range(k + 1)), binom.pmf(range(k + 1), k, q).tolist())
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))


def user_ledger(q: float, sigma: float, steps: int, k: int) -> Ledger:
    stage = Stage(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling="poisson")
    return Ledger(stages=(stage,), relation="add_or_remove_one", unit="user", max_records_per_unit=k)


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_records_of_a_unit_are_the_mixture_of_gaussians(case: tuple[float, float, int, int]) -> None:
    (found,) = account(user_ledger(*case), delta=1e-6)
    theirs = GOLDEN[case]
    assert found.epsilon_lower is not None and found.epsilon_upper is not None
    # Theirs is pessimistic by its grid alone; ours certifies both sides within its own tolerance.
    assert found.epsilon_lower <= theirs <= found.epsilon_upper
    assert found.epsilon_upper - found.epsilon_lower <= 3e-3 * found.epsilon_upper
    assert found.group_size == case[3]


@pytest.mark.slow
@pytest.mark.parametrize("case", [(0.01, 4.0, 200, 8), (0.005, 20.0, 300, 128)], ids=str)
def test_the_golden_values_are_dp_accountings(case: tuple[float, float, int, int]) -> None:
    assert mixture_epsilon(*case, delta=1e-6) == pytest.approx(GOLDEN[case], rel=1e-6)


def test_whole_units_are_the_plain_sampled_gaussian() -> None:
    plan = PrivacyPlan(
        delta=1e-6, relation="add_or_remove_one", sampling="poisson", unit="user", public_size=500, clipping_norm=1.0,
        expected_batch_size=10, steps=200, noise_multiplier=2.0, sampling_unit="unit", records_per_unit=16,
    )  # fmt: skip
    (found,) = account(plan.ledger(), delta=1e-6)
    assert found.epsilon_upper == account(user_ledger(0.02, 2.0, 200, 1), delta=1e-6)[0].epsilon_upper


def test_the_designs_meet_the_target_and_are_compared_by_their_noise() -> None:
    found = compare_unit_sampling(
        target_epsilon=2, delta=1e-6, relation="add_or_remove_one", steps=100, units=1000, records=8000,
        max_records_per_unit=16, cohort=50, records_per_unit=4,
    )  # fmt: skip
    assert found.records.contributions == 200 and found.units.contributions == 50
    assert found.records.sampling_probability == 200 / 8000 and found.units.sampling_probability == 0.05
    for design, k in ((found.records, 16), (found.units, 1)):
        ledger = user_ledger(design.sampling_probability, design.noise_multiplier, 100, k)
        (priced,) = account(ledger, delta=1e-6)
        assert priced.epsilon_upper is not None and 1.98 <= priced.epsilon_upper <= 2
    assert found.break_even == pytest.approx(
        found.records.noise_multiplier / (4 * found.units.noise_multiplier), rel=1e-12
    )


def test_single_records_make_both_designs_one() -> None:
    found = compare_unit_sampling(
        target_epsilon=3, delta=1e-5, relation="zero_out", steps=50, units=400, records=400, max_records_per_unit=1,
        cohort=40, records_per_unit=1,
    )  # fmt: skip
    assert found.break_even == 1 and found.better == "unit"
    assert found.records.noise_multiplier == found.units.noise_multiplier


def test_the_advice_follows_from_the_two_ends() -> None:
    from dpaudit.accounting.unit_sampling import UnitDesign, UnitSampling

    def at(sigma: float) -> UnitSampling:
        one = UnitDesign(sampling_unit="unit", sampling_probability=0.1, contributions=10, noise_multiplier=1.0)
        many = UnitDesign(sampling_unit="record", sampling_probability=0.1, contributions=40, noise_multiplier=sigma)
        return UnitSampling(records=many, units=one, records_per_unit=4)

    assert [at(4 * share).better for share in (1.01, 0.99, 0.51, 0.49)] == ["unit", "depends", "depends", "record"]
    assert math.isclose(at(4).break_even, 1) and "however unlike" in str(at(1)) and "however alike" in str(at(5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cohort": 2000}, "cohort=2000 of units=1000"),
        ({"records_per_unit": 40}, "records_per_unit=40 of records=8000, asks"),
        ({"records": 16001}, "records=16001 must be <= units=1000 times max_records_per_unit=16"),
        ({"cohort": 0}, "cohort=0"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(changes: dict[str, float], told: str) -> None:
    values = {"units": 1000, "records": 8000, "max_records_per_unit": 16, "cohort": 500, "records_per_unit": 4}
    with pytest.raises(InvalidValue, match=told):
        compare_unit_sampling(target_epsilon=2, delta=1e-6, relation="zero_out", steps=10, **{**values, **changes})  # type: ignore[arg-type]
