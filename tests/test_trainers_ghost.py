"""GhostClipping against the batch-of-one loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainers._clipping import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainers._ghost import GhostClipping


def loop(model: nn.Module, losses: Callable[[slice], Tensor], size: int) -> list[dict[str, Tensor]]:
    """Per-example gradients by B backward passes of batch one."""
    rows = []
    for i in range(size):
        model.zero_grad()
        losses(slice(i, i + 1)).sum().backward()
        rows.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return rows


def gpt2(tied: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=23,
        n_positions=16,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).to(dtype)


def causal(model: nn.Module, ids: Tensor) -> Callable[[slice], Tensor]:
    def losses(rows: slice) -> Tensor:
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.mT, ids[rows][:, 1:], reduction="none")
        return each.mean(1)

    return losses


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rule", [Flat, PerLayer, Automatic])
def test_gpt2_equals_the_loop(tied: bool, lean: bool, rule: type[Clipping]) -> None:
    model = gpt2(tied, torch.float64)
    ids = torch.randint(0, 23, (5, 9))
    losses = causal(model, ids)
    rows = loop(model, losses, 5)
    norms = torch.stack([torch.cat([g.flatten() for g in r.values()]).norm() for r in rows])
    bound = float(norms.median())
    with GhostClipping(model, bound, clipping=rule(bound), lean=lean) as clipper:
        found = clipper.backward(losses(slice(None)))
        layers = clipper.layers
        layer_of = {clipper._names[p]: i for p, i in clipper._layer_of.items()}
    assert torch.allclose(found, norms, rtol=1e-11)
    if rule is PerLayer:
        each = torch.tensor(
            [
                [sum(r[n].square().sum() for n in r if layer_of[n] == k) ** 0.5 for r in rows]
                for k in range(len(layers))
            ],
            dtype=torch.float64,
        )
        factors = rule(bound).factors(each)
    else:
        factors = rule(bound).factors(norms).expand(len(layers), -1)
    for name, parameter in model.named_parameters():
        expected = sum(c * r[name] for c, r in zip(factors[layer_of[name]], rows))
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected, rtol=1e-11, atol=1e-13), name
