"""Units of several rows: their clipped sums and norms against one autograd call for each unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.clipping import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.tasks.losses import causal_lm_losses
from tests.trainers.ghost.ghost_oracle import clipped, error, norms_of
from tests.trainers.ghost.test_clipper import Net, task
from tests.trainers.ghost.test_families import FAMILIES, build, losses_of

Losses = Callable[[Any], Tensor]
EVEN = [0, 0, 1, 1]
RAGGED = [1, 0, 1, 1]  # out of order, of different sizes
ONE = [0, 0, 0, 0]


def unit_gradients(
    model: nn.Module, losses: Losses, units: list[int], weights: Tensor, *, by_row: bool
) -> list[dict[str, Tensor]]:
    """Gradient of each unit's weighted loss by one autograd call on its own rows, or on each row, through the model."""
    rows = []
    for unit in range(max(units) + 1):
        mine = [r for r, u in enumerate(units) if u == unit]
        model.zero_grad(set_to_none=True)
        for part in [[r] for r in mine] if by_row else [mine]:
            torch.autograd.backward((losses(part) * weights[part]).sum())
        rows.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    return rows


def compare_units(
    model: nn.Module,
    losses: Losses,
    units: list[int],
    *,
    rule: type[Clipping] = Flat,
    lean: bool = False,
    group: int = 1,
    oracle: Losses | None = None,
) -> tuple[float, float]:
    """Relative errors of the clipped sum and of the norms; C is the median norm, so that clipping is partial."""
    weights = torch.linspace(0.5, 1.5, len(units), dtype=torch.float64)
    # Gemma's gains are cast to fp32, where autograd adds a unit's rows up; row by row they are added in fp64.
    by_row = type(model).__name__.startswith("Gemma")
    rows = unit_gradients(model, oracle or losses, units, weights, by_row=by_row)
    norms = norms_of(rows)
    bound = float(norms.median())
    assignment = torch.tensor(units)
    with GhostClipping(model, bound, clipping=rule(bound), lean=lean, group=group) as clipper:
        each = losses(list(range(len(units)))) * weights
        whole = each.new_zeros(max(units) + 1).index_add(0, assignment, each)
        found = clipper.backward(whole, units=None if group > 1 else assignment)
        expected = clipped(clipper, rows)
    return error(model, expected), float(((found.double() - norms) / norms).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_of_any_family_equals_one_autograd_call(family: str) -> None:
    model, lean = build(family, torch.float64), sum(map(ord, family)) % 2 == 0
    for units in (EVEN, RAGGED):
        wrong, norm_wrong = compare_units(model, losses_of(model), units, lean=lean)
        assert wrong <= 1e-11 and norm_wrong <= 1e-11, units


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("rule", [Flat, PerLayer, Automatic])
@pytest.mark.parametrize("family", ["gpt2", "llama-tied"])
def test_every_rule_and_mode(family: str, rule: type[Clipping], lean: bool) -> None:
    model = build(family, torch.float64)
    for units in (EVEN, RAGGED, ONE):
        wrong, norm_wrong = compare_units(model, losses_of(model), units, rule=rule, lean=lean)
        assert wrong <= 1e-11 and norm_wrong <= 1e-11, units


@pytest.mark.parametrize("lean", [False, True])
def test_a_fixed_group_is_successive_rows(lean: bool) -> None:
    model = build("gpt2", torch.float64)
    wrong, norm_wrong = compare_units(model, losses_of(model), EVEN, group=2, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("units", [EVEN, RAGGED, ONE], ids=str)
def test_adapters(units: list[int]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = peft.get_peft_model(build("gpt2", torch.float64), config).double()
    ids = torch.randint(3, 29, (4, 7), generator=torch.Generator().manual_seed(1))

    def losses(rows: Any) -> Tensor:
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        return nn.functional.cross_entropy(logits.mT, ids[rows][:, 1:], reduction="none").mean(1)

    wrong, norm_wrong = compare_units(model, losses, units)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_in_chunks(family: str, lean: bool) -> None:
    model = build(family, torch.float64)
    ids = torch.randint(3, 29, (4, 7), generator=torch.Generator().manual_seed(1))

    def losses(rows: Any, chunked: bool = True) -> Tensor:
        batch = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows]), "labels": ids[rows]}
        return causal_lm_losses(model, **batch, chunked_head=chunked)

    for units in (EVEN, RAGGED):
        wrong, norm_wrong = compare_units(model, losses, units, lean=lean, oracle=lambda rows: losses(rows, False))
        assert wrong <= 1e-11 and norm_wrong <= 1e-11, units


@settings(max_examples=25, deadline=None)
@given(units=st.lists(st.integers(0, 2), min_size=6, max_size=6), exact=st.booleans())
def test_any_assignment(units: list[int], exact: bool) -> None:
    units = [sorted(set(units)).index(u) for u in units]
    torch.manual_seed(0)
    net = Net().double()
    ids = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))
    losses = task(net, ids)
    wrong, norm_wrong = compare_units(net, losses, units, lean=exact)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_units_of_one_row_are_examples() -> None:
    torch.manual_seed(0)
    net, ids = Net().double(), torch.randint(0, 11, (4, 5))
    losses = task(net, ids)
    with GhostClipping(net, 0.2) as clipper:
        plain = clipper.clipped_sum(losses(slice(None)))
        same = clipper.clipped_sum(losses(slice(None)), units=torch.arange(4))
    torch.testing.assert_close(same.norms, plain.norms, rtol=1e-13, atol=0)
    for parameter, total in plain.sums.items():
        torch.testing.assert_close(same.sums[parameter], total, rtol=1e-12, atol=1e-15)


def test_a_unit_moves_the_sum_by_at_most_c_where_its_rows_would_move_it_more() -> None:
    torch.manual_seed(0)
    net, ids = Net().double(), torch.randint(0, 11, (1, 5)).expand(4, 5)  # four equal rows of one person
    losses = task(net, ids)
    with GhostClipping(net, 0.01) as clipper:
        one = clipper.clipped_sum(losses(slice(None)).sum()[None], units=torch.zeros(4, dtype=torch.long))
        rows = clipper.clipped_sum(losses(slice(None)))
    sizes = [torch.stack([t.norm() for t in found.sums.values()]).norm() for found in (one, rows)]
    assert float(sizes[0]) == pytest.approx(0.01, rel=1e-9) and float(sizes[1]) == pytest.approx(0.04, rel=1e-9)


def test_an_infinite_row_silences_its_unit_alone() -> None:
    torch.manual_seed(0)
    net, ids = Net().double(), torch.randint(0, 11, (4, 5))
    losses = task(net, ids, torch.tensor([1.0, float("inf"), 1.0, 1.0], dtype=torch.float64))
    units = torch.tensor([0, 0, 1, 1])
    with GhostClipping(net, 0.2) as clipper:
        each = losses(slice(None))
        found = clipper.clipped_sum(each.new_zeros(2).index_add(0, units, each), units=units)
        each = task(net, ids)([2, 3])
        alone = clipper.clipped_sum(each.sum()[None], units=torch.zeros(2, dtype=torch.long))
    assert not found.norms[0].isfinite()
    for parameter, total in alone.sums.items():
        torch.testing.assert_close(found.sums[parameter], total, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    ("units", "count", "told"),
    [
        ([0, 0, 1], 2, "2 losses of units with 3 rows stand against a forward pass of 4 rows"),
        ([0, 0, 1, 2], 2, r"units go from 0 to 2 and must lie in \[0, 2\)"),
        ([0, 0, -1, 1], 2, r"units go from -1 to 1 and must lie in \[0, 2\)"),
        ([0.0, 0.0, 1.0, 1.0], 2, "must be .R,. integers"),
    ],
)
def test_wrong_assignments_are_refused_before_a_backward_pass(units: list[Any], count: int, told: str) -> None:
    torch.manual_seed(0)
    net, ids = Net().double(), torch.randint(0, 11, (4, 5))
    with GhostClipping(net, 0.2) as clipper:
        each = task(net, ids)(slice(None))
        with pytest.raises(InvalidValue, match=told):
            clipper.backward(each[:count], units=torch.tensor(units))
    assert all(p.grad is None for p in net.parameters())


def test_two_ways_to_say_which_rows_are_one_unit_are_refused() -> None:
    net, ids = Net().double(), torch.randint(0, 11, (4, 5))
    with GhostClipping(net, 0.2, group=2) as clipper:
        each = task(net, ids)(slice(None))
        with pytest.raises(InvalidValue, match="units and group=2 both say"):
            clipper.backward(each[:2], units=torch.tensor([0, 0, 1, 1]))
        with pytest.raises(InvalidValue, match="4 losses of units with 8 rows stand against a forward pass of 4 rows"):
            clipper.backward(each)
    with pytest.raises(InvalidValue, match="group=0"):
        GhostClipping(net, 0.2, group=0)
