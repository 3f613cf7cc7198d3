"""Ledgers to and from dp_accounting events, Opacus histories and (σ, q, T) lists."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dpaudit import InvalidValue, Ledger, Relation, Stage, UnsupportedStage
from dpaudit.accounting import account
from dpaudit.accounting.events import from_event, from_opacus, from_triples, to_event
from dpaudit.accounting.relations import charges
from dpaudit.privacy.stage import Sampling

dp = pytest.importorskip("dp_accounting")
HOW: dict[str, Any] = {"relation": "add_or_remove_one", "unit": "record"}


def stage(**fields: Any) -> Stage:
    base: dict[str, Any] = {"sampling_probability": 0.1, "noise_multiplier": 2.0, "steps": 20, "sampling": "poisson"}
    return Stage(**(base | fields))


STAGES = (
    stage(),
    stage(sampling="none", sampling_probability=1.0),
    stage(mechanism="laplace"),
    stage(sampling="truncated_poisson", public_size=100, max_batch=20),
    stage(sampling="without_replacement", public_size=100),
)


@pytest.mark.parametrize("made", STAGES, ids=lambda s: f"{s.sampling}-{s.mechanism}")
def test_a_ledger_survives_the_round_trip(made: Stage) -> None:
    ledger = Ledger(stages=(made,), relation=Relation.REPLACE_ONE)
    back = from_event(to_event(ledger), relation="replace_one", unit="record")
    assert back == ledger


def test_directions_and_the_quantile_query_become_one_gaussian() -> None:
    ledger = Ledger(
        stages=(stage(releases_per_step=4, clip="per_direction", quantile_sigma=3.0),), relation=Relation.ZERO_OUT
    )
    event = to_event(ledger)
    back = from_event(event, relation="zero_out", unit="record")
    assert back.stages[0].noise_multiplier == pytest.approx((1 + 1 / 36) ** -0.5)
    assert charges(back).runs[0][0].components[0][1].scale == pytest.approx(
        charges(ledger).runs[0][0].components[0][1].scale
    )


def test_nested_events_multiply_and_fold() -> None:
    two = dp.ComposedDpEvent([dp.GaussianDpEvent(2.0), dp.GaussianDpEvent(2.0)])
    event = dp.SelfComposedDpEvent(
        dp.ComposedDpEvent([dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, two), 3), dp.NoOpDpEvent()]), 5
    )
    (made,) = from_event(event, **HOW).stages
    assert made.steps == 15 and made.noise_multiplier == pytest.approx(2**0.5)
    nothing = from_event(dp.NonPrivateDpEvent(), **HOW)
    assert account(nothing, delta=1e-5)[0].epsilon_upper == float("inf")


@pytest.mark.parametrize("event", [dp.ZCDpEvent(0.1), dp.PoissonSampledDpEvent(0.1, dp.ZCDpEvent(0.1))])
def test_events_without_a_stage_are_refused_by_name(event: Any) -> None:
    with pytest.raises(UnsupportedStage, match="ZCDpEvent"):
        from_event(event, **HOW)


def test_shuffled_stages_have_no_event() -> None:
    with pytest.raises(UnsupportedStage, match="stage 1 with sampling='shuffle'"):
        to_event(Ledger(stages=(stage(sampling="shuffle"),), relation=Relation.ZERO_OUT))


def test_every_entry_of_an_opacus_history_counts() -> None:
    history = [(4.0, 0.064, 300), (1.5, 0.016, 2000), (0.9, 0.004, 1500)]
    ledger = from_opacus({"history": history, "mechanism": "gdp"}, **HOW)
    assert [s.steps for s in ledger.stages] == [300, 2000, 1500]
    (found,) = account(ledger, delta=1e-5)
    assert found.epsilon_lower is not None and found.epsilon_lower > 2.75
    assert from_opacus(history, **HOW) == ledger
    assert from_opacus(SimpleNamespace(history=history), **HOW) == ledger


@pytest.mark.slow
def test_a_live_opacus_accountant_is_read() -> None:
    opacus = pytest.importorskip("opacus.accountants")
    accountant = opacus.RDPAccountant()
    for _ in range(3):
        accountant.step(noise_multiplier=1.0, sample_rate=0.5)
    (made,) = from_opacus(accountant, **HOW).stages
    assert (made.steps, made.sampling_probability) == (3, 0.5)
    assert from_opacus(accountant.state_dict(), **HOW).stages == (made,)


def test_lists_state_how_the_loader_really_sampled() -> None:
    (made,) = from_triples([(1.0, 0.5, 4)], sampling="shuffle", **HOW).stages
    assert made.sampling is Sampling.SHUFFLE
    (full,) = from_triples([(1.0, 1, 4)], **HOW).stages
    assert full.sampling is Sampling.NONE
    with pytest.raises(InvalidValue, match="whole steps"):
        from_triples([(1.0, 0.5, 2.5)], **HOW)
    with pytest.raises(InvalidValue, match="entry 1"):
        from_triples([(1.0, 0.5)], **HOW)
    with pytest.raises(InvalidValue, match="history"):
        from_opacus({"mechanism": "rdp"}, **HOW)


@pytest.mark.parametrize("kind", ["tree", None, 3])
def test_the_state_of_an_unknown_accountant_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(InvalidValue, match="whose entries may be no Poisson-sampled Gaussian steps"):
        from_opacus({"history": [(1.1, 0.01, 100)], "mechanism": kind}, **HOW)
