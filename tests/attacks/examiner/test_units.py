"""The examiner on steps that draw whole units: a unit's rows clipped apart, or another's among them, are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from dpaudit.trainers import step as _step
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.units import UnitDraws
from dpaudit.trainers.zeroth_order import steps as _zo_steps
from tests.faults import examine_case
from tests.faults._case import Case
from tests.faults._problems import first_order, zeroth_order

WHOLE = {"sampling_unit": "unit", "records_per_unit": 2, "unit": "person"}
_rows, _rows_of = UnitDraws.rows, GhostClipping._rows_of


def apart() -> tuple[Any, ...]:
    """Every row is clipped by itself, and the unit is what its rows add up to."""
    return (
        patch.object(_step, "unit_losses", lambda losses, of, count, reduction: losses),
        patch.object(GhostClipping, "_rows_of", lambda self, losses, units: None),
        patch.object(GhostClipping, "_check", lambda self, losses, units: None),
    )


def shifted() -> tuple[Any, ...]:
    """The clipper is told the unit of the row before."""

    def rows_of(self: Any, losses: Any, units: Any) -> Any:
        return _rows_of(self, losses, None if units is None else units.roll(1))

    return (patch.object(GhostClipping, "_rows_of", rows_of),)


def strangers() -> tuple[Any, ...]:
    """A unit of a draw takes the first row of the next one along."""

    def rows(self: Any, drawn: Any) -> list[list[int]]:
        found = _rows(self, drawn)
        return [[*mine, *(other[:1])] for mine, other in zip(found, [*found[1:], []], strict=True)]

    return (patch.object(UnitDraws, "rows", rows),)


def rows_apart_without_gradients() -> tuple[Any, ...]:
    """A unit's loss differences are clipped one by one and added up."""

    def of_units(differences: Any, losses: Any, rows: Any, *, reduction: str) -> Any:
        cut = differences.clamp(-0.3, 0.3)
        return _of_units(cut, losses, rows, reduction="sum")

    return (patch.object(_zo_steps, "of_units", of_units), patch.object(_zo_steps, "clip_differences", lambda d, *_: d))


_of_units = _zo_steps.of_units


@pytest.mark.parametrize("family", [pytest.param(first_order, marks=pytest.mark.slow), zeroth_order])
def test_an_innocent_step_on_units_goes_free(family: Callable[..., Any]) -> None:
    adapter, plan = family(0, **WHOLE)
    result = examine_case(Case(adapter, plan, ()), budget="400 steps")
    assert not result.findings and not result.violated


@pytest.mark.parametrize(
    ("family", "plant"),
    [
        (first_order, apart),
        (first_order, shifted),
        (first_order, strangers),
        (zeroth_order, rows_apart_without_gradients),
    ],
    ids=lambda value: value.__name__,
)
def test_a_unit_that_is_not_one_is_convicted(family: Callable[..., Any], plant: Callable[[], Any]) -> None:
    adapter, plan = family(1, **WHOLE)
    adapter._options["physical_batch_size"] = 16  # several units in one forward pass
    result = examine_case(Case(adapter, plan, plant()), budget="250 steps", groups=("replay",))
    assert result.violated and any(finding.deterministic for finding in result.findings), result.names


def test_the_draws_are_of_units() -> None:
    adapter, _ = first_order(2, **WHOLE)
    assert torch.tensor([len(batch) == len(set(batch)) for batch in adapter.draws(30)]).all()
    assert max(max(batch, default=0) for batch in adapter.draws(30)) < adapter.size
