"""A loop's own path from records to clipped sum, held against the units that its records belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import GhostClipping, preflight_units
from dpaudit.trainers.units import unit_losses

NAMES = ["ann", "bob", "ann", "cyd", "bob", "ann"]
C = 0.05


def problem() -> tuple[nn.Module, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    inputs = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    return model, [{"x": x, "owner": name} for x, name in zip(inputs, NAMES, strict=True)]


def path(
    *,
    number: Callable[[list[Any]], list[int]] | None = None,
    order: Callable[[list[Any]], list[Any]] = list,
    micro: int = 100,
    losses: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> tuple[Callable[[list[Any]], list[Tensor]], list[Any]]:
    """A loop that numbers units by owner, whole or in micro-batches of so many rows; and its records."""
    model, records = problem()
    trained = list(model.parameters())

    def owners(rows: list[Any]) -> list[int]:
        seen = list(dict.fromkeys(row["owner"] for row in rows))
        return [seen.index(row["owner"]) for row in rows]

    def clipped_sum(rows: list[Any]) -> list[Tensor]:
        totals = [torch.zeros_like(p) for p in trained]
        for start in range(0, len(rows), micro):
            part = rows[start : start + micro]
            of = torch.tensor((number or owners)(part))
            with GhostClipping(model, C) as clipper:
                each = model(torch.stack([row["x"] for row in order(part)])).squeeze(1).square()
                count = int(of.max()) + 1
                each = unit_losses(each, of, count, reduction="sum") if losses is None else losses(each, of, count)
                found = clipper.clipped_sum(each, units=of)
            for total, added in zip(totals, found.totals(trained), strict=True):
                total += added
        return totals

    return clipped_sum, records


def test_a_right_loop_passes_whatever_the_order_of_its_rows() -> None:
    clipped_sum, records = path()
    assert preflight_units(clipped_sum, records, NAMES, clipping_norm=C) < 1e-9


def mixed(each: Tensor, of: Tensor, count: int) -> Tensor:
    """Every unit's loss has a little of the row that stands first in the batch."""
    return unit_losses(each, of, count, reduction="sum") + 0.3 * each[0]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (path(number=lambda rows: list(range(len(rows)))), "records of unit 0 alone move the clipped sum by"),
        (path(micro=2), "alone move the clipped sum by"),
        (path(number=lambda rows: [0] * len(rows)), "a row is counted for another unit"),
        (path(order=lambda rows: sorted(rows, key=lambda row: float(row["x"][0]))), "is counted for another unit"),
        (path(losses=mixed), "a loss looks at another unit's rows"),
    ],
    ids=["rows for units", "unit in two micro-batches", "one unit for all", "sorted rows", "loss of others"],
)
def test_rows_of_another_unit_are_refused(fault: Any, told: str) -> None:
    clipped_sum, records = fault
    with pytest.raises(PrivacyRefusal, match=told):
        preflight_units(clipped_sum, records, NAMES, clipping_norm=C)


def test_records_that_can_show_nothing_are_refused() -> None:
    clipped_sum, records = path()
    with pytest.raises(InvalidValue, match="6 units of at most 1 records show nothing"):
        preflight_units(clipped_sum, records, range(6), clipping_norm=C)
    with pytest.raises(InvalidValue, match="nothing is clipped and a wrong unit would not show; give a smaller"):
        preflight_units(clipped_sum, records, NAMES, clipping_norm=1e6)
