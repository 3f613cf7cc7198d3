"""Units of privacy in the loop: counted, bounded, drawn whole, and clipped as one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers import GhostClipping, PoissonSampler, bound_records, train
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.units import UnitDraws, Units, record_mark, unit_losses
from tests.trainers.test_loop import collate, linear_plan, linear_problem, loss_fn

OWNERS = ["ann"] * 5 + ["bob"] + ["cyd"] * 3 + [f"other {i}" for i in range(31)]


def unit_plan(**changes):
    values = {"sampling_unit": "unit", "records_per_unit": 4, "public_size": 34, "unit": "person", "steps": 1}
    return linear_plan(**{**values, "noise_multiplier": 0.0, **changes})


def released(draws, *, model=None, records=None, owners=OWNERS, plan=None, **more):
    fresh, known = linear_problem()
    model, records = model or fresh, known if records is None else records
    seen = []
    train(
        model,
        records,
        plan or unit_plan(steps=len(draws)),
        collate=collate,
        loss_fn=loss_fn,
        journal=MemoryJournal(),
        units=owners,
        sampler=ScriptedSampler(draws),
        noise=NoNoise(),
        callback=seen.append,
        **more,
    )
    return seen


def by_definition(model, records, units, bound, reduction):
    """Σ_u min(1, C/n_u) g_u by one autograd call for each unit, flat."""
    total = 0
    for rows in units:
        batch = collate([records[i] for i in rows])
        losses = loss_fn(model, batch)
        grads = torch.autograd.grad(losses.mean() if reduction == "mean" else losses.sum(), list(model.parameters()))
        flat = torch.cat([g.flatten() for g in grads])
        total = total + flat * min(1.0, bound / float(flat.norm()))
    return total


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("micro", [1, 3, 100])
def test_a_step_releases_each_drawn_units_clipped_gradient(reduction, micro):
    model, records = linear_problem()
    expected = by_definition(model, records, [[0, 1, 2, 3, 4], [5], [6, 7, 8]], 0.5, reduction) / 10
    plan = unit_plan(records_per_unit=5, unit_reduction=reduction)
    (report,) = released([[0, 1, 2]], plan=plan, physical_batch_size=micro)
    found = torch.cat([t.flatten() for t in report.released])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert report.private.norms.shape == (3,) and report.private.losses.shape == (3,)
    assert report.private.indices == (0, 1, 2, 3, 4, 5, 6, 7, 8)


def test_a_unit_moves_the_release_by_at_most_c_over_l_whatever_it_wrote():
    model, records = linear_problem()
    records[:5] = [(1e3 * x, y - 1e4) for x, y in records[:5]]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sums = []
    for draw in ([0, 1, 2], [1, 2]):
        model.load_state_dict(state)
        (report,) = released([draw], model=model, records=records)
        sums.append(torch.cat([t.flatten() for t in report.released]))
    assert float((sums[0] - sums[1]).norm()) == pytest.approx(0.5 / 10, rel=1e-5)


def test_a_step_takes_at_most_g_records_of_a_unit_each_equally_often():
    draws = UnitDraws(Units.named(OWNERS), 2, generator=np.random.default_rng(0))
    counts = np.zeros(len(OWNERS))
    for _ in range(3000):
        ann, bob = draws.rows([0, 1])
        assert len(set(ann)) == 2 and bob == [5] and ann == sorted(ann)
        counts[ann] += 1
    assert np.abs(counts[:5] / 3000 - 0.4).max() < 5 * math.sqrt(0.24 / 3000) and not counts[5:].any()


def test_units_are_drawn_with_q_whatever_their_number_of_records():
    plan = unit_plan(steps=600, expected_batch_size=3.4)
    model, records = linear_problem()
    counts = dict.fromkeys(OWNERS, 0)

    def tell(report):
        for owner in {OWNERS[i] for i in report.private.indices}:
            counts[owner] += 1

    train(
        model, records, plan, collate=collate, loss_fn=loss_fn, journal=MemoryJournal(), units=OWNERS, callback=tell,
        sampler=PoissonSampler(34, plan.sampling_probability, generator=np.random.default_rng(3)), noise=NoNoise(),
    )  # fmt: skip
    assert np.abs(np.array(list(counts.values())) / 600 - 0.1).max() < 5 * math.sqrt(0.09 / 600)


def test_the_ledger_counts_units():
    ledger = unit_plan(noise_multiplier=1.0).ledger()
    assert ledger.max_records_per_unit == 1 and ledger.unit == "person"
    assert ledger.stages[0].sampling_probability == 10 / 34


def test_a_unit_above_its_bound_is_refused_before_a_step_is_counted():
    model, records = linear_problem()
    journal = MemoryJournal()
    told = (
        r"one person has 5 records, above max_records_per_unit=4, so that no number would hold for one person; choose"
    )
    with pytest.raises(InvalidValue, match=told):
        train(
            model, records, linear_plan(unit="person", max_records_per_unit=4), collate=collate, loss_fn=loss_fn,
            journal=journal, units=OWNERS,
        )  # fmt: skip
    assert not journal.ledger_stages()
    plan = linear_plan(unit="person", max_records_per_unit=5, steps=1)
    train(model, records, plan, collate=collate, loss_fn=loss_fn, journal=journal, units=OWNERS)


def test_units_that_cannot_be_told_are_refused():
    for names, told in (
        (["ann", None], "record 1 names no unit of privacy .None."),
        (["ann", float("nan")], "record 1 names no unit"),
        ([" ", "bob"], "record 0 names no unit"),
    ):
        with pytest.raises(InvalidValue, match=told):
            Units.named(names)
    with pytest.raises(InvalidValue, match="units has 2 names for 40 records"):
        released([[0]], owners=["ann", "bob"])
    with pytest.raises(InvalidValue, match="draws units of records and units=None; give each record's unit"):
        released([[0]], owners=None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"records_per_unit": None}, "records_per_unit=None with sampling_unit='unit'.* set both or neither"),
        ({"sampling_unit": "record"}, "records_per_unit=4 with sampling_unit='record'"),
        ({"max_records_per_unit": 5}, "max_records_per_unit=5 with sampling_unit='unit' must be 1"),
        ({"records_per_unit": 0}, "records_per_unit=0"),
        ({"sampling_unit": "user"}, "sampling_unit='user'"),
        ({"unit_reduction": "max"}, "unit_reduction='max'"),
    ],
)
def test_a_plan_says_one_thing_about_its_units(changes, told):
    with pytest.raises(InvalidValue, match=told):
        unit_plan(**changes)


def test_refusing_and_choosing():
    names = ["a", "b", "a", "a", "b", "c"]
    with pytest.raises(InvalidValue, match="one sender has 3 records, above max_records_per_unit=2"):
        bound_records(names, 2, rule="refuse", unit="sender")
    assert bound_records(names, 3, rule="refuse").tolist() == [0, 1, 2, 3, 4, 5]
    kept = [names[i] for i in bound_records(names, 2, rule="choose")]
    assert sorted(kept) == ["a", "a", "b", "b", "c"]
    assert bound_records([], 2, rule="choose").tolist() == []
    with pytest.raises(InvalidValue, match="max_records_rule='first'"):
        bound_records(names, 2, rule="first")
    with pytest.raises(InvalidValue, match="max_records=0"):
        bound_records(names, 0, rule="choose")
    with pytest.raises(InvalidValue, match="marks has 1 numbers for 6 records"):
        bound_records(names, 1, rule="choose", marks=[0.5])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 10**6)), max_size=30), st.integers(1, 4))
def test_no_unit_moves_what_another_keeps(rows, limit):
    texts = [f"{owner} {number}" for owner, number in rows]
    owners = [owner for owner, _ in rows]

    def kept(without):
        places = [i for i, owner in enumerate(owners) if owner != without]
        marks = [record_mark(texts[i]) for i in places]
        found = bound_records([owners[i] for i in places], limit, rule="choose", marks=marks)
        return [(owners[places[i]], texts[places[i]]) for i in found]

    whole = kept(None)
    for owner in set(owners):
        assert kept(owner) == [row for row in whole if row[0] != owner]
        assert sum(row[0] == owner for row in whole) == min(limit, owners.count(owner))


def test_one_person_is_not_two_units_by_writing_the_name_in_two_ways():
    assert Units.named(["Ann Moss", " ann  moss ", "ANN MOSS", "\uff21nn Moss", "Anna Moss", 7, "7"]).of.tolist() == [
        0, 0, 0, 0, 1, 2, 3,
    ]  # fmt: skip
    with pytest.raises(InvalidValue, match="one unit has 2 records"):
        bound_records(["Ann", "ann"], 1, rule="refuse")


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("micro", [1, 3, 100])
def test_views_of_a_record_are_clipped_as_one(lean, micro):
    """K augmented views, mean loss over them, one clip: against one autograd call for each record."""
    model, records = linear_problem()
    model = model.double()
    shifts = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = linear_plan(noise_multiplier=0.0, steps=1)

    def views(rows):
        batch = {key: value.double() for key, value in collate(rows).items()}
        return {"x": (batch["x"][:, None] + shifts).flatten(0, 1), "y": batch["y"].repeat_interleave(4, 0)}

    def mean_over_views(model, batch):
        return loss_fn(model, batch).view(-1, 4).mean(1)

    drawn, expected = [0, 7, 21, 33], 0
    for i in drawn:
        loss = mean_over_views(model, views([records[i]]))
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(model.parameters()))])
        expected = expected + flat * min(1.0, 0.5 / float(flat.norm()))
    seen = []
    train(
        model, records, plan, collate=views, loss_fn=mean_over_views, journal=MemoryJournal(), rows_per_record=4,
        clipper=GhostClipping(model, 0.5, group=4, lean=lean), sampler=ScriptedSampler([drawn]), noise=NoNoise(),
        physical_batch_size=micro, callback=seen.append,
    )  # fmt: skip
    found = torch.cat([t.flatten() for t in seen[0].released])
    assert torch.allclose(found, expected / 10, rtol=0, atol=1e-11)


def test_losses_of_units():
    losses, units = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2])
    assert unit_losses(losses, units, 3, reduction="sum").tolist() == [1.0, 0.0, 8.0]
    assert unit_losses(losses, units, 3, reduction="mean").tolist() == [1.0, 0.0, 4.0]
