"""The guard of the premise: whatever was not refused moves its sum by at most C for one record.

Collators, padding, masks, models and losses are drawn at random, honest ones and faults alike, and go through the
public training path. The oracle is the definition: the run is repeated without one record, and the released sums are
compared.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import DpauditError
from dpaudit.trainers import Directions, OptimizerSettings, PrivacyPlan, train, zo_train
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.zeroth_order.stages import ZOStage
from tests.trainers.sensitivity.ingredients import (
    BAGS,
    CLASSIFIERS,
    COLLATORS,
    FAMILIES,
    HONEST,
    LOSSES,
    OWN,
    Record,
    model_of,
)

C, L = 0.05, 8.0
SLACK = 1 + 1e-5
PLAN = PrivacyPlan(
    delta=1e-3,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    public_size=40,
    expected_batch_size=L,
    steps=1,
    clipping_norm=C,
    noise_multiplier=1.0,
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One way of training."""

    collator: str
    model: str
    loss: str
    lengths: tuple[int, ...]
    repeats: bool
    contrasts: bool
    physical: int
    forward_only: bool
    seed: int


@st.composite
def ways(draw: st.DrawFn) -> Drawn:
    return Drawn(
        collator=draw(st.sampled_from(sorted(COLLATORS))),
        model=draw(st.sampled_from(sorted((*FAMILIES, *BAGS)))),
        loss=draw(st.sampled_from(sorted(LOSSES))),
        lengths=tuple(
            draw(st.lists(st.one_of(st.sampled_from([1, 2, 3]), st.integers(1, 14)), min_size=2, max_size=7))
        ),
        repeats=draw(st.booleans()),
        contrasts=draw(st.booleans()),
        physical=draw(st.sampled_from([1, 3, 16])),
        forward_only=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )


def records_of(way: Drawn) -> list[Record]:
    rng = torch.Generator().manual_seed(way.seed)
    ids = [torch.randint(3, 29, (n,), generator=rng).tolist() for n in way.lengths]
    if way.contrasts:  # gradients that point apart: what a coupling exchanges then shows in the sum
        ids = [row[:1] * len(row) for row in ids]
    if way.repeats:
        sources = torch.randint(0, 2, (len(ids),), generator=rng).tolist()
        for to in range(1, len(ids), 2):
            ids[to] = list(ids[sources[to]])
    classes = torch.randint(0, 2, (len(ids),), generator=rng).tolist()
    return [
        {"input_ids": row, "labels": label if way.model in CLASSIFIERS else list(row)}
        for row, label in zip(ids, classes, strict=True)
    ]


def summed(way: Drawn, records: list[Record], drawn: list[int], *, preflight: bool) -> torch.Tensor:
    """What the one step releases without noise, times L: the clipped sum."""
    torch.manual_seed(0)
    model = model_of(way.model)
    common: dict[str, Any] = {
        "collate": COLLATORS[way.collator], "loss_fn": LOSSES[way.loss], "journal": MemoryJournal(),
        "physical_batch_size": way.physical, "sampler": ScriptedSampler([drawn]), "noise": NoNoise(),
        "preflight": preflight,
    }  # fmt: skip
    if way.forward_only:
        plan = dataclasses.replace(PLAN, releases_per_step=3, clip="joint", clipping_norm=C)
        released: list[float] = []
        zo_train(
            model, records, ZOStage(plan=plan, learning_rate=1e-3, scale=1e-3), directions=Directions(run="guard"),
            callback=lambda report: released.extend(report.released),
            perturbation_mode="in_place" if way.seed % 2 or way.loss == "chunked" or way.model in BAGS else "per_layer",
            **common,
        )  # fmt: skip
        return torch.tensor(released, dtype=torch.float64) * L
    before = [p.detach().clone() for p in model.parameters()]
    train(model, records, PLAN, optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0), **common)
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)]) * L


def moved(way: Drawn) -> float | None:
    """The largest ‖Σ(D) − Σ(D∖i)‖ / C over three records i; None where the way of training was refused."""
    records = records_of(way)
    everyone = list(range(len(records)))
    try:
        whole = summed(way, records, everyone, preflight=True)
    except DpauditError as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 700
        return None
    except ValueError as raised:
        return _takes_no_single_token(raised)
    worst = 0.0
    longest = max(everyone, key=lambda i: len(records[i]["input_ids"]))
    for left in sorted({longest, 0, everyone[-1]}):
        try:
            rest = summed(way, records, [i for i in everyone if i != left], preflight=False)
        except DpauditError:
            return None  # refused at the step, as for windows that only some records fill
        except ValueError as raised:  # the record left out was the longest of its micro-batch
            return _takes_no_single_token(raised)
        worst = max(worst, float((whole - rest).norm()) / C)
    return worst


def _takes_no_single_token(raised: ValueError) -> None:
    """Instance normalisation itself refuses a batch of one token a record; any other error is raised."""
    if "more than 1 spatial element" not in str(raised):
        raise raised


def holds(way: Drawn) -> str:
    """Assert the bound; "refused", or "held"."""
    found = moved(way)
    assert found is None or found <= SLACK, f"one record moves the sum by {found:.4f} C: {way}"
    return "refused" if found is None else "held"


HONEST_WAY = Drawn("left", "gpt2", "ours", (4, 9, 2), False, False, 16, False, 0)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(way=ways())
@example(way=HONEST_WAY)
@example(way=dataclasses.replace(HONEST_WAY, model="bert", collator="right, no mask"))
@example(way=dataclasses.replace(HONEST_WAY, collator="long windows", lengths=(14, 3, 5)))
@example(way=dataclasses.replace(HONEST_WAY, collator="drops and refills", lengths=(1, 1)))
def test_one_record_moves_the_sum_by_at_most_c(way: Drawn) -> None:
    holds(way)


@pytest.mark.slow
def test_one_record_moves_the_sum_by_at_most_c_at_length(capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, int] = {}

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(way=ways())
    def search(way: Drawn) -> None:
        outcome = holds(way)
        seen[outcome] = seen.get(outcome, 0) + 1

    search()
    with capsys.disabled():
        print(f"\nways of training: {seen}")
    assert seen["held"] >= 50 and seen["refused"] >= 50


@pytest.mark.slow
@pytest.mark.parametrize("collator", HONEST)
@pytest.mark.parametrize("model", [*FAMILIES, "plain", "batch norm, frozen"])
def test_honest_ways_are_not_refused(collator: str, model: str) -> None:
    if model not in FAMILIES and "positions" in collator:
        pytest.skip("a bag of words has no positions")
    for loss in OWN:
        if loss == "chunked" and model not in ("gpt2", "llama"):
            continue
        for forward_only in (False, True):
            way = Drawn(collator, model, loss, (4, 9, 2, 12), False, False, 16, forward_only, 3)
            found = moved(way)
            assert found is not None and found <= SLACK, way
            assert forward_only or math.isclose(found, 1.0, rel_tol=1e-3) or found > 0.1  # the bound is used


FAULTS = ("windows", "group_texts", "twice", "drops and refills", "to the shortest", "labels of the neighbour",
          "counted positions", "packed", "packed in pairs", "deduplicated", "prompted by the first")  # fmt: skip
SHORT = (2, 2, 2, 3, 4, 5)
"""Lengths of rows: in a short row each token counts, so that a coupling which changes one token turns its gradient."""


@pytest.mark.slow
@pytest.mark.parametrize("collator", FAULTS)
def test_the_guard_would_see_a_fault_that_was_not_refused(collator: str) -> None:
    """Without preflight and count, some drawn way breaks the bound: the measurement can fail."""
    from unittest.mock import patch

    from dpaudit.trainers import step

    rng = torch.Generator().manual_seed(1)
    worst = 0.0
    with patch.object(step, "one_loss_per_record", lambda losses, records: losses):
        for seed in range(12):
            records = 2 + int(torch.randint(0, 5, (1,), generator=rng))
            choice = SHORT if seed % 2 else range(2, 15)
            lengths = tuple(choice[i] for i in torch.randint(0, len(choice), (records,), generator=rng).tolist())
            # no limit of length, which a packed row would pass; positions only where they are what is at fault
            model = "gpt2" if collator == "counted positions" else "llama"
            way = Drawn(collator, model, "naive", lengths, bool(seed % 4 < 2), bool(seed % 3), 16, False, seed)
            drawn, everyone = records_of(way), list(range(records))
            whole = summed(way, drawn, everyone, preflight=False)
            for left in everyone:
                rest = summed(way, drawn, [i for i in everyone if i != left], preflight=False)
                worst = max(worst, float((whole - rest).norm()) / C)
    assert worst > SLACK
