"""One record, one row, one loss: every path refuses a step whose losses are not as many as its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import (
    Directions,
    GhostClipping,
    one_loss_per_record,
    pad_tokens,
    train,
    zo_train,
)
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.zeroth_order.stages import ZOStage
from tests.trainers.reference_clipper import LoopClipper
from tests.trainers.tiny_lm import PLAN, RECORDS, TinyLM, losses


def windows(rows: list[list[int]]) -> dict[str, Tensor]:
    return pad_tokens([row[at : at + 3] for row in rows for at in range(0, len(row), 3)])


def packed(rows: list[list[int]]) -> dict[str, Tensor]:
    stream = [token for row in rows for token in row]
    return pad_tokens([stream[at : at + 8] for at in range(0, len(stream), 8)])


COLLATORS: dict[str, Callable[[list[list[int]]], dict[str, Tensor]]] = {
    "windows": windows,
    "repeats": lambda rows: pad_tokens([row for row in rows for _ in range(2)]),
    "packed": packed,
    "flat": lambda rows: pad_tokens([[token for row in rows for token in row]]),
    "drops": lambda rows: pad_tokens([row for row in rows if len(row) < 6] or [[0]]),
    "empties its argument": lambda rows: pad_tokens([rows.pop() for _ in range(len(rows) - 1)]),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_a_first_order_step_whose_rows_are_not_records_is_refused(name: str) -> None:
    model = TinyLM()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(PrivacyRefusal, match=r"losses for 6 records.*(packs or flattens|overflow windows)"):
        train(
            model,
            RECORDS,
            PLAN,
            collate=COLLATORS[name],
            loss_fn=losses,
            journal=MemoryJournal(),
            clipper=LoopClipper(model, 0.5),
            sampler=ScriptedSampler([list(range(2, 8))]),
        )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", COLLATORS)
@pytest.mark.parametrize("pad_batches", [True, False])
def test_a_zeroth_order_step_whose_rows_are_not_records_is_refused(name: str, pad_batches: bool) -> None:
    records = RECORDS[2:8] * 2
    with pytest.raises(PrivacyRefusal, match=r"losses for (6|8) records"):
        zo_train(
            TinyLM().double(),
            records,
            ZOStage(plan=PLAN, learning_rate=1e-3, scale=1e-3),
            collate=COLLATORS[name],
            loss_fn=losses,
            journal=MemoryJournal(),
            directions=Directions(run="rows"),
            physical_batch_size=8,
            pad_batches=pad_batches,
            sampler=ScriptedSampler([list(range(6))]),
            noise=NoNoise(),
            preflight=False,
        )


def test_losses_of_single_tokens_are_not_losses_of_records() -> None:
    def each_token(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")

    model = TinyLM()
    with pytest.raises(PrivacyRefusal, match="6 records"):
        train(
            model,
            RECORDS,
            PLAN,
            collate=pad_tokens,
            loss_fn=each_token,
            journal=MemoryJournal(),
            clipper=LoopClipper(model, 0.5),
            sampler=ScriptedSampler([list(range(2, 8))]),
        )


def test_own_loops_ask_the_helper() -> None:
    model, batch = TinyLM(), windows(RECORDS[4:6])
    found = losses(model, pad_tokens(RECORDS[4:6]))
    assert one_loss_per_record(found, records=2) is found
    with pytest.raises(PrivacyRefusal, match="5 losses for 2 records"):
        one_loss_per_record(losses(model, {k: torch.cat([v, v[:1]]) for k, v in batch.items()}), records=2)
    with pytest.raises(InvalidValue, match=r"shape \(2, 1\) and must return \(B,\)"):
        one_loss_per_record(found[:, None], records=2)


def test_an_evaluation_between_forward_and_backward_changes_nothing() -> None:
    model = TinyLM()
    batch, other = pad_tokens(RECORDS[4:8]), pad_tokens(RECORDS[4:6])
    with GhostClipping(model, 0.5) as clipper:
        found = losses(model, batch)
        with torch.no_grad():
            losses(model, other)
        assert clipper.backward(found).shape == (4,)
        found = losses(model, batch)
        losses(model, other)
        with pytest.raises(InvalidValue, match="4 losses stand against a forward pass of 2 examples just before"):
            clipper.backward(found)
