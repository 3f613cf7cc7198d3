"""A draw is sorted by length before it is cut; its losses and norms come back in the order in which it was drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpaudit.trainers.contribution import RunningSum
from dpaudit.trainers.draw import Draw, clipped_sum
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.lengths import length_of, padded_tokens
from dpaudit.trainers.objective import Objective
from dpaudit.trainers.physical import PhysicalBatch

RECORDS = [torch.arange(n, dtype=torch.float32) + k for k, n in enumerate([2, 7, 3, 7, 1, 5])]


def collate(rows):
    width = max(len(r) for r in rows)
    padded = torch.stack([torch.cat([r, torch.zeros(width - len(r))]) for r in rows])
    return {"x": padded[:, :, None], "length": torch.tensor([len(r) for r in rows])}


def loss_fn(model, batch):
    mask = torch.arange(batch["x"].shape[1]) < batch["length"][:, None]
    return (model(batch["x"]).squeeze(2).square() * mask).sum(1)


def summed(size, contributions):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    parameters = list(model.parameters())
    with GhostClipping(model, 0.5) as clipper:
        private, total = clipped_sum(
            Objective(model=model, collate=collate, loss_fn=loss_fn), Draw.of(RECORDS, contributions),
            micro=PhysicalBatch(size), clipper=clipper, sums=RunningSum(parameters), bound=0.5,
        )  # fmt: skip
    return private, torch.cat([t.flatten() for t in total.totals(parameters)])


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_the_sum_and_the_order_do_not_depend_on_the_cut(size):
    drawn = [[4], [1], [0], [5], [2]]
    private, total = summed(size, drawn)
    each = [summed(1, [one]) for one in drawn]
    assert private.indices == (4, 1, 0, 5, 2)
    assert torch.allclose(private.losses, torch.cat([p.losses for p, _ in each]), rtol=1e-5)
    assert torch.allclose(private.norms, torch.cat([p.norms for p, _ in each]), rtol=1e-5)
    assert torch.allclose(total, torch.stack([t for _, t in each]).sum(0), rtol=1e-5, atol=1e-6)


def test_the_longest_go_first_and_a_unit_is_never_parted():
    draw = Draw.of(RECORDS, [[0, 4], [2], [1], [5, 3]])
    assert draw.order == (2, 3, 1, 0)  # longest record of each: 7, 7, 3, 2
    assert [[len(unit) for unit in part] for part in draw.parts(3)] == [[1, 2], [1, 2]]
    assert draw.passes(3) == 2 and draw.passes(1) == 4
    assert draw.indices == (0, 4, 2, 1, 5, 3)


@pytest.mark.parametrize(
    "record, length",
    [
        ({"input_ids": [1, 2, 3], "labels": 7}, 3),
        ("four", 4),
        (torch.zeros(5, 2), 5),
        ((torch.zeros(6), 1), 6),
        ([[1, 2], [3, 4, 5]], 3),
        (3.5, 0),
        (torch.tensor(1.0), 0),
        ([], 0),
    ],
)
def test_lengths(record, length):
    assert length_of(record) == length


def test_positions_saved_by_sorting():
    lengths = [1, 9, 1, 9, 2, 8]
    assert padded_tokens(lengths, 2) == 18 + 18 + 16
    assert padded_tokens(sorted(lengths, reverse=True), 2) == 18 + 16 + 2
