"""DP-ZOPO's masks: data-free, and perturbed set = updated set = mask. T12, D7, D8, D9 of the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit import InvalidValue
from dpaudit.trainers.zeroth_order.coordinates import Mask, check_masks, masks_digest, trainable_parameters
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.perturb import perturbation
from dpaudit.trainers.zeroth_order.pruning import MaskRule, pruning_mask
from dpaudit.trainers.zeroth_order.stages import zoso
from dpaudit.trainers.zeroth_order.step import apply_update
from dpaudit.trainers.zeroth_order.steps import ZOReport
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, tiny_gpt, token_records

V = Directions(run="prune")
RULES = [
    MaskRule(keep=0.05),
    MaskRule(keep=0.05, score="magnitude", order="largest"),
    MaskRule(keep=0.05, score="random", ranked=True),
    MaskRule(keep=0.05, ranked=True, strategy="dynamic", refresh_every=2, queries=2),
    MaskRule(keep=0.02, score="magnitude", strategy="incremental"),
]


def mask_of(model: nn.Module, rule: MaskRule, **options: Any) -> dict[str, Mask]:
    return pruning_mask(model.eval(), trainable_parameters(model), rule, V, **options)


def flat(mask: dict[str, Mask]) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, part in mask.items() for i in part.index}


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_keeps_its_share_sorted_and_inside(rule: MaskRule) -> None:
    model = tiny_gpt()
    mask = mask_of(model, rule)
    total = sum(p.numel() for p in trainable_parameters(model).values())
    assert sum(m.index.numel() for m in mask.values()) == round(rule.share * total)
    check_masks(trainable_parameters(model), mask)


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[pytest.mark.slow] if i in (1, 3) else []) for i, rule in enumerate(RULES)]
)
def test_masks_are_the_same_for_two_data_sets(rule: MaskRule) -> None:
    digests = []
    for seed in (1, 2):
        model = tiny_gpt()
        whole = plan(steps=1)
        result, _ = run(
            model, token_records(40, seed=seed), zoso(whole, learning_rate=0.0, scale=1e-3, stages=1, mask=rule),
            loss_fn=gpt_losses,
        )  # fmt: skip
        digests.append(result.log.entries[0].mask_sha256)  # type: ignore[union-attr]
    assert digests[0] == digests[1] is not None


@pytest.mark.parametrize("rule", RULES)
def test_only_masked_coordinates_are_perturbed_and_the_same_are_updated(rule: MaskRule) -> None:
    """Planted fault D7: an update through ``param[index].data`` edits a copy and moves nothing."""
    model = tiny_gpt().eval()
    parameters = trainable_parameters(model)
    mask = mask_of(model, rule)
    before = {name: p.detach().clone() for name, p in parameters.items()}

    def moved() -> set[tuple[str, int]]:
        return {
            (name, int(i)) for name, p in parameters.items() for i in (p.detach() != before[name]).flatten().nonzero()
        }

    with perturbation(model, parameters, V, masks=mask).at(step=0, direction=0, scale=0.5):
        perturbed = moved()
    assert not moved()
    apply_update(parameters, V, [1.0], step=0, learning_rate=0.5, masks=mask)
    assert perturbed == moved() == flat(mask)


def test_the_update_follows_the_perturbation_with_its_ranks() -> None:
    """Planted fault D8: perturbing along m⊙w⊙z and updating along m⊙z."""
    model = tiny_gpt().eval()
    parameters = trainable_parameters(model)
    mask = mask_of(model, MaskRule(keep=0.05, score="magnitude", ranked=True))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with perturbation(model, parameters, V, masks=mask).at(step=3, direction=0, scale=1.0):
        along = {name: (p.detach() - before[name]).double() for name, p in parameters.items()}
    apply_update(parameters, V, [1.0], step=3, learning_rate=1.0, masks=mask)
    for name, p in parameters.items():
        assert torch.allclose((before[name] - p.detach()).double(), along[name], atol=1e-6)
    weights = torch.cat([m.weight for m in mask.values() if m.weight is not None])
    assert weights.max().item() == pytest.approx(1.2) and weights.min().item() == pytest.approx(0.8)


def test_ranks_fall_linearly_from_the_best_score() -> None:
    model = tiny_gpt()
    rule = MaskRule(keep=0.05, score="magnitude", ranked=True)
    mask = mask_of(model, rule)
    rows = [
        (trainable_parameters(model)[n].detach().flatten()[mask[n].index].abs(), mask[n].weight) for n in sorted(mask)
    ]
    scores, weights = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows if r[1] is not None])
    in_order = weights[torch.sort(scores, stable=True).indices]
    assert bool((in_order.diff() <= 1e-6).all())


def test_smallest_and_largest_are_opposite_ends() -> None:
    model = tiny_gpt()
    small, large = (mask_of(model, MaskRule(keep=0.1, score="magnitude", order=o)) for o in ("smallest", "largest"))
    assert not flat(small) & flat(large)


def trained(rule: MaskRule, steps: int = 12, **options: Any) -> tuple[nn.Module, list[set[tuple[str, int]]]]:
    """Train three stages with noise and note which coordinates moved in each step."""
    model, moves = tiny_gpt(), []
    last = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}

    def note(report: ZOReport) -> None:
        now = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
        moves.append({(n, int(i)) for n in now for i in (now[n] != last[n]).flatten().nonzero()})
        last.update(now)

    from tests.trainers.zeroth_order.zo_helpers import Spoken

    stages = zoso(plan(steps=steps), learning_rate=0.5, scale=1e-3, growth=1.0, mask=rule, **options)
    run(model, token_records(40), stages, loss_fn=gpt_losses, noise=Spoken(1.0), callback=note)
    return model, moves


def test_a_static_mask_stays_and_everything_else_is_frozen_bit_for_bit() -> None:
    rule = MaskRule(keep=0.05, score="magnitude")
    model, moves = trained(rule, proximal=0.1)
    chosen = flat(mask_of(tiny_gpt(), rule))
    start = trainable_parameters(tiny_gpt())
    for name, p in trainable_parameters(model).items():
        same = (p == start[name]).flatten()
        frozen = torch.tensor([(name, i) not in chosen for i in range(p.numel())])
        assert bool(same[frozen].all())
    assert set().union(*moves) == chosen  # the unmasked do change


def test_a_dynamic_mask_follows_the_weights() -> None:
    """With the smallest magnitudes chosen anew, coordinates that grew leave the mask."""
    _, moves = trained(MaskRule(keep=0.05, score="magnitude", strategy="dynamic", refresh_every=2))
    assert moves[0] == moves[1] != moves[2]
    assert moves[3] != moves[4]  # a new stage


@pytest.mark.parametrize(("growth", "sizes"), [(2.0, [1, 2, 4]), (0.5, [4, 2, 1])])
def test_an_incremental_mask_is_nested_and_changes_by_its_factor(growth: float, sizes: list[int]) -> None:
    keep = 0.04 if growth < 1 else 0.01
    _, moves = trained(MaskRule(keep=keep, score="magnitude", strategy="incremental", growth=growth))
    first, second, third = moves[0], moves[4], moves[8]
    unit = len(first) / sizes[0]
    assert [len(m) / unit for m in (first, second, third)] == pytest.approx(sizes, rel=0.02)
    small, middle, large = sorted((first, second, third), key=len)
    assert small < middle < large


def test_the_methods_file_under_their_own_names() -> None:
    """Planted fault D9: un-pruned runs filed as ZOPO. Here the log itself says whether a mask was there."""
    for rule in (None, MaskRule(keep=0.05, score="magnitude")):
        result, _ = run(
            tiny_gpt(), token_records(40), zoso(plan(steps=3), learning_rate=0.1, scale=1e-3, mask=rule),
            loss_fn=gpt_losses,
        )  # fmt: skip
        entry = result.log.entries[0]
        assert (entry.mask_sha256 is None) is (rule is None)  # type: ignore[union-attr]


def test_the_probe_sees_no_record() -> None:
    """The score's forward passes take one constant token of shape (1, 1)."""
    seen: list[Tensor] = []
    model = tiny_gpt()
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)
    mask_of(model, MaskRule(keep=0.05, queries=1, token=7))
    assert seen and all(t.tolist() == [[7]] for t in seen)


def test_digests_tell_masks_apart() -> None:
    model = tiny_gpt()
    rules = [MaskRule(keep=0.05, score="magnitude"), MaskRule(keep=0.06, score="magnitude")]
    rules.append(dataclasses.replace(rules[0], ranked=True))
    assert len({masks_digest(mask_of(model, rule)) for rule in rules}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0.0}, "keep=0.0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"score": "gradient"}, "score='gradient'"),
        ({"strategy": "by_loss"}, "strategy='by_loss'"),
        ({"refresh_every": 3}, "refresh_every=3"),
    ],
)
def test_a_rule_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        MaskRule(**{"keep": 0.1, **change})


def test_a_mask_outside_the_trainable_weights_is_refused() -> None:
    parameters = trainable_parameters(tiny_gpt())
    with pytest.raises(InvalidValue, match="names no trainable"):
        check_masks(parameters, {"nothing": Mask(torch.tensor([0]))})
    for index in ([5, 5], [3, 2], [10**9]):
        with pytest.raises(InvalidValue, match="sorted, unique"):
            check_masks(parameters, {"transformer.wte.weight": Mask(torch.tensor(index))})
