"""The clipped sums of a model sharded by ``fully_shard`` are those of one process: every family, layout and mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.ghost.clipper import GhostClipping
from tests.trainers.distributed.processes import shard, together
from tests.trainers.ghost.test_families import FAMILIES, build, losses_of

LAYOUTS = ("blocks", "leaves", "accelerate")
APART = {("bert-mlm", "leaves"), ("roberta-mlm", "leaves")}
"""Their heads have a bias of their own beside layers, and run as a whole."""


def built(family: str) -> nn.Module:
    """A family's model; "+lora" with adapters on a frozen base, "+checkpointing" with activations computed again."""
    kind, _, more = family.partition("+")
    model: Any = build(kind, torch.float32)
    if more == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif more == "lora":
        import peft

        torch.manual_seed(1)
        adapters = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules="all-linear")
        model = peft.get_peft_model(model, adapters)
    assert not more or more in ("lora", "checkpointing")
    return model


def one_process(family: str) -> tuple[dict[str, Tensor], Tensor, float]:
    model = built(family)
    losses = losses_of(model)
    with GhostClipping(model, 1e9) as clipper:
        bound = float(clipper.clipped_sum(losses(slice(0, 4))).norms.median())  # so that clipping is partial
    with GhostClipping(model, bound) as clipper:
        found = clipper.clipped_sum(losses(slice(0, 4)))
        names = {p: n for n, p in model.named_parameters()}
        return {names[p]: total for p, total in found.sums.items()}, found.norms, bound


def whole(parameter: Any, part: Tensor) -> Tensor:
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return torch.cat(parts)


def cases(rank: int, wanted: list[tuple[str, str, bool]], expected: dict[str, Any]) -> list[tuple[float, float]]:
    """Errors of sums and norms, relative, for each (family, layout, lean)."""
    world, errors = dist.get_world_size(), []
    rows = [slice(0, 1), slice(1, 4)] if world == 2 else [slice(r, r + 1) for r in range(world)]
    for family, layout, lean in wanted:
        sums, norms, bound = expected[family]
        model = built(family)
        names = [n for n, _ in model.named_parameters()]
        shard(model, layout)
        losses = losses_of(model)
        if (family, layout) in APART:
            with pytest.raises(UnsupportedModel, match="parts of it are sharded apart"):
                GhostClipping(model, bound)
            errors.append((0.0, 0.0))
            continue
        with GhostClipping(model, bound, lean=lean) as clipper:
            for _ in range(2):  # the second time with weights that were gathered before
                found = clipper.clipped_sum(losses(rows[rank]))
            owned = {p: n for n, p in clipper._names.items()}
            assert set(owned) <= set(names)
            wrong = right = 0.0
            for p, name in clipper._names.items():
                total = whole(p, found.sums[p])
                wanted_sum = sums.get(name, torch.zeros_like(total))
                wrong += float((total - wanted_sum).double().square().sum())
                right += float(wanted_sum.double().square().sum())
        norm_error = float(((found.norms - norms[rows[rank]]) / norms[rows[rank]]).abs().max())
        errors.append((math.sqrt(wrong / right), norm_error))
    return errors


def check(tmp_path: Any, wanted: list[tuple[str, str, bool]], world: int = 2) -> None:
    expected = {family: one_process(family) for family in {case[0] for case in wanted}}
    for found in together(world, tmp_path, cases, wanted, expected):
        for case, (sums, norms) in zip(wanted, found, strict=True):
            assert sums <= 1e-6 and norms <= 1e-6, (case, sums, norms)


def test_two_processes_of_a_tied_model_sum_what_one_does(tmp_path):
    check(tmp_path, [("gpt2", "blocks", False), ("gpt2", "accelerate", True)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_layout_and_mode(tmp_path, family):
    check(tmp_path, [(family, layout, lean) for layout in LAYOUTS for lean in (False, True)])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2+lora", "llama+lora", "gpt2+checkpointing", "llama+checkpointing"])
def test_adapters_on_a_frozen_base_and_activations_computed_again(tmp_path, family):
    check(tmp_path, [(family, layout, lean) for layout in ("blocks", "accelerate") for lean in (False, True)])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_four_processes(tmp_path, family):
    check(tmp_path, [(family, "blocks", lean) for lean in (False, True)], world=4)
