"""A model brought into shards by its layers, and the state of its optimizer taken apart and put together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from dpaudit.trainers.distributed.checkpoint import whole_weights
from dpaudit.trainers.distributed.layers import (
    own_by_name,
    own_optimizer_state,
    shard_layers,
    whole_by_name,
    whole_optimizer_state,
)
from dpaudit.trainers.distributed.shards import has_shards, local
from tests.trainers.distributed.processes import together


def net() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=15, n_head=3, vocab_size=33, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def state_of(model: nn.Module) -> dict[str, Any]:
    """What an optimizer of a plain model would keep; every number differs."""
    generator = torch.Generator().manual_seed(1)
    moments = {
        i: {"step": 3, "noise_sq": 0.25, "exp_avg": torch.randn(p.shape, generator=generator)}
        for i, p in enumerate(model.parameters())
    }
    return {"state": moments, "param_groups": [{"lr": 0.1}]}


def taken_apart(rank: int) -> Any:
    plain, model = net(), net()
    model.transformer.wpe.requires_grad_(False)
    shard_layers(model)
    layers = [has_shards(layer) for layer in model.transformer.h]
    plain.transformer.wpe.requires_grad_(False)
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    state = state_of(nn.ParameterList(trained.values()))
    own = own_optimizer_state(model, state)
    names = {n: values["exp_avg"] for n, values in zip(trained, state["state"].values(), strict=True)}
    mine = own_by_name(model, names)
    assert mine is not None
    held = sum(part.numel() for part in mine.values())
    assert held == sum(values["exp_avg"].numel() for values in own["state"].values())
    assert held == sum(local(p).numel() for p in model.parameters() if p.requires_grad)
    return layers, held, whole_optimizer_state(model, own), whole_by_name(model, mine), whole_weights(model)


def test_what_is_taken_apart_comes_together_again(tmp_path):
    first, second = together(2, tmp_path, taken_apart)
    plain = net()
    plain.transformer.wpe.requires_grad_(False)
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    expected = state_of(nn.ParameterList(trained.values()))
    assert all(first[0]) and first[1] + second[1] == sum(p.numel() for p in trained.values())
    state, names, weights = first[2:]
    assert state["param_groups"] == expected["param_groups"] and second[2:] == (None, None, None)
    for index, name in enumerate(trained):
        values = expected["state"][index]
        assert torch.equal(state["state"][index].pop("exp_avg"), values["exp_avg"])
        assert torch.equal(names[name], values["exp_avg"])
        assert state["state"][index] == {"step": 3, "noise_sq": 0.25}
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
