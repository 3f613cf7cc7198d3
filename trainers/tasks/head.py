"""Causal language-model losses without the logits of the whole batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.distributed.shards import has_shards
from dpaudit.trainers.ghost.head import frozen_head_losses, losses_in_chunks
from dpaudit.trainers.ghost.sites import LinearSite, Site
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.tasks.padding import check_token_labels
from dpaudit.trainers.tasks.tokens import token_losses

#: Models whose logits were compared.
_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()

#: Configuration values by which a model changes its logits after the head, perhaps too little to be seen.
_CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def chunked_losses(model: nn.Module, inputs: Mapping[str, Any], shifted: Tensor) -> Tensor:
    """(B,) mean next-token losses; ``shifted`` (B, T−1) are the targets of the positions but the last, -100 if none.

    Raises
    ------
    UnsupportedModel
        If the model's logits are not one linear layer of its last hidden state.
    """
    decoder, head = _parts(model)
    input_ids = inputs["input_ids"]
    check_token_labels(shifted, input_ids[:, 1:].shape, len(head.weight))
    if model not in _checked:
        _refuse_other_logits(model, decoder, head, input_ids[:1, :4])
        _checked.add(model)
    if (clipper := next(_sites(model.modules()), None)) is not None:
        clipper.engine.announce(len(input_ids))  # the decoder is called past the model, whose call would tell B
    hidden = decoder(**inputs, use_cache=False).last_hidden_state[:, :-1]
    if not torch.is_grad_enabled():
        return losses_in_chunks(hidden, head, shifted)
    if not any(p.requires_grad for p in head.parameters()):
        return frozen_head_losses(hidden, head, shifted)
    if (site := next(_sites([head]), None)) is not None and site.engine.listening:
        assert isinstance(site, LinearSite)
        return site.losses(hidden, shifted, input_ids)
    return token_losses(F.linear(hidden, head.weight, head.bias), shifted)


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    if has_shards(model):
        raise UnsupportedModel(
            "chunked_head=True calls decoder and head past the model, whose call gathers their shards (fully_shard);"
            " call causal_lm_losses with chunked_head=False."
        )
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    config = getattr(inner, "config", None)
    changed = [name for name in _CHANGES_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    if changed:
        raise UnsupportedModel(
            f"model {type(inner).__name__} changes its logits after the head ({changed[0]}="
            f"{getattr(config, changed[0])}); call causal_lm_losses with chunked_head=False."
        )
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    if type(head) is not nn.Linear or not isinstance(decoder, nn.Module) or decoder is inner:
        raise UnsupportedModel(
            f"model {type(inner).__name__} is not a decoder with one linear head; call causal_lm_losses with"
            " chunked_head=False."
        )
    return decoder, head


@torch.no_grad()
def _refuse_other_logits(model: nn.Module, decoder: nn.Module, head: nn.Linear, ids: Tensor) -> None:
    """Compare the model's logits with the head of its last hidden state, dropout off, on ids of public content."""
    ids = torch.arange(ids.shape[1], device=ids.device)[None] % len(head.weight)
    with evaluating(model):
        expected = model(input_ids=ids, use_cache=False).logits.float()
        found = head(decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise UnsupportedModel(
            f"model {type(model).__name__} does more to its logits than one linear layer of the last hidden state; call"
            " causal_lm_losses with chunked_head=False."
        )


def _sites(modules: Iterable[nn.Module]) -> Iterator[Site]:
    """An open clipper's sites on modules, found by their hooks, so that they are there exactly while it is open."""
    for module in modules:
        for hook in module._forward_hooks.values():
            if isinstance(site := getattr(hook, "__self__", None), Site):
                yield site
