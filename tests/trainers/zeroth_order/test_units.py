"""Units of privacy without gradients: a unit's loss difference is clipped as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.zeroth_order.log import Release
from dpaudit.trainers.zeroth_order.stages import aggzo, dpzero
from dpaudit.trainers.zeroth_order.steps import ZOReport
from tests.trainers.zeroth_order.zo_helpers import Slope, plan, run

ROWS = [torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, 0.1], dtype=torch.float64) * s for s in range(1, 41)]
OWNERS = ["ann"] * 4 + ["bob"] * 2 + [f"other {i}" for i in range(34)]
WHOLE = {"sampling_unit": "unit", "records_per_unit": 4, "public_size": 36, "unit": "person", "steps": 1}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("physical", [1, 3, 16])
def test_a_release_is_the_sum_of_clipped_unit_differences(reduction: str, physical: int) -> None:
    seen: list[ZOReport] = []
    whole = plan(**WHOLE, clipping_norm=4.0, unit_reduction=reduction)
    result, journal = run(
        Slope(), ROWS, dpzero(whole, learning_rate=0.0, scale=0.1), sampler=ScriptedSampler([[0, 1, 7]]), units=OWNERS,
        callback=seen.append, physical_batch_size=physical,
    )  # fmt: skip
    (report,) = seen
    assert report.private.differences.shape == (1, 3) and report.private.losses.shape == (3,)
    assert report.private.indices == (0, 1, 2, 3, 4, 5, 11)
    # f(θ; x) = x·θ: a record's slope is s times that of the first, for s of ROWS.
    alone = report.private.differences[0, 2] / 12
    sizes = [10.0, 11.0, 12.0] if reduction == "sum" else [2.5, 5.5, 12.0]
    expected = [float((alone * s).clamp(-4.0, 4.0)) for s in sizes]
    torch.testing.assert_close(report.private.differences[0], alone * torch.tensor(sizes, dtype=torch.float64))
    (entry,) = [e for e in result.log.entries if isinstance(e, Release)]
    assert entry.values[0] == pytest.approx(sum(expected) / 8, rel=1e-9)
    assert journal.ledger_stages()[0].sampling_probability == 8 / 36


def test_a_unit_is_bounded_as_a_vector_over_directions() -> None:
    seen: list[ZOReport] = []
    whole = plan(**WHOLE, clipping_norm=0.5, releases_per_step=3, clip="joint")
    result, _ = run(
        Slope(), ROWS, aggzo(whole, learning_rate=0.0, scale=0.1), sampler=ScriptedSampler([[0]]), units=OWNERS,
        callback=seen.append,
    )  # fmt: skip
    (entry,) = [e for e in result.log.entries if isinstance(e, Release)]
    assert float(torch.tensor(entry.values).norm()) == pytest.approx(0.5 / 8, rel=1e-6)


def test_an_infinite_record_silences_its_unit_alone() -> None:
    rows = [ROWS[0] * float("inf"), *ROWS[1:]]
    whole = plan(**WHOLE, clipping_norm=1e9)
    values: list[Any] = []
    for draw in ([0, 7], [7]):
        result, _ = run(
            Slope(), rows, dpzero(whole, learning_rate=0.0, scale=0.1), sampler=ScriptedSampler([draw]), units=OWNERS
        )
        values += [e.values[0] for e in result.log.entries if isinstance(e, Release)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_bounds_and_names_are_checked_before_a_step() -> None:
    with pytest.raises(InvalidValue, match="one person has 4 records, above max_records_per_unit=2"):
        run(
            Slope(),
            ROWS,
            dpzero(plan(unit="person", max_records_per_unit=2), learning_rate=0.1, scale=0.1),
            units=OWNERS,
        )
    with pytest.raises(InvalidValue, match="draws units of records and units=None"):
        run(Slope(), ROWS, dpzero(plan(**WHOLE), learning_rate=0.1, scale=0.1))
    with pytest.raises(InvalidValue, match="units has 2 names for 40 records"):
        run(Slope(), ROWS, dpzero(plan(**WHOLE), learning_rate=0.1, scale=0.1), units=["a", "b"])
