"""Find the cause of a coupled loss: the collator, the first module that mixes examples, or the loss itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.trainers.objective import LossFunction
from dpaudit.trainers.preflight.company import Composition
from dpaudit.trainers.preflight.randomness import still_randomness

OUR_LOSSES = "causal_lm_losses, sequence_classification_losses"
_CHANGES = {
    "number": "when the number of the other examples changes",
    "content": "when the content of the other examples changes",
    "length": "when the length of the other examples changes",
    "order": "when the order of the examples changes",
    "copies": "when a copy of it joins the batch",
}


def coupling_message(
    model: nn.Module,
    alone: Any,
    company: Composition,
    at: int,
    loss_fn: LossFunction,
    relative: float,
    quantity: str,
) -> str:
    """One sentence: what moves an example's loss from ``alone`` to row ``at`` of the company, and the remedy."""
    side = "" if company.side is None else f" and it is padded on the {company.side}"
    moved = f"one example's {quantity} moves by {relative:.2g} (relative) {_CHANGES[company.what]}{side}"
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        return (
            f"{moved}: the mixture-of-experts auxiliary loss (output_router_logits=True) averages over the batch;"
            " set model.config.output_router_logits=False."
        )
    if (field := _field_of_another(alone, company.batch, at)) is not None:
        return (
            f"{moved}: the collator gives its row another {field!r}; collate every record by itself (no packing,"
            " sorting, mixing, or truncation to the others), or take one record at a time (physical_batch_size=1)."
        )
    culprit = _first_difference(_outputs(model, alone, loss_fn), _outputs(model, company.batch, loss_fn), at)
    if culprit is None:
        return (
            f"{moved}, although every module treats it alone: loss_fn divides by or averages over the batch, as Hugging"
            f" Face's own loss does over its tokens; return a mean over each example's own tokens ({OUR_LOSSES})."
        )
    padding = "mask padding" if company.what != "length" else (
        "mask padding (on the right, with an attention_mask), or take one record at a time (physical_batch_size=1)"
    )  # fmt: skip
    return (
        f"{moved}, first in module {culprit[0]!r} ({culprit[1]}): replace it by one that treats examples alone"
        f" (LayerNorm or GroupNorm for BatchNorm), put it in eval mode, or {padding}."
    )


def _outputs(model: nn.Module, batch: Any, loss_fn: LossFunction) -> list[tuple[str, str, Tensor]]:
    seen: list[tuple[str, str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor):
                seen.append((name, type(module).__name__, value.detach()))

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad(), still_randomness():
            loss_fn(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _field_of_another(alone: Any, batch: Any, at: int) -> str | None:
    """The first field whose row for the example is not, up to padding, what it is alone."""
    if not isinstance(alone, Mapping) or not isinstance(batch, Mapping):
        return None
    for name, one in alone.items():
        other = batch.get(name)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.ndim == 0 or len(other) <= at:
            continue
        if len(one) == 1 and not _alike(one[0], other[at]):
            return str(name)
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two rows agree where both have content, from the first position on or back from the last."""
    if one.ndim != other.ndim or one.shape[1:] != other.shape[1:]:
        return True  # another kind of batch, of which nothing can be said
    if one.ndim == 0:
        return bool(torch.isclose(one.double(), other.double(), equal_nan=True))
    shared = min(len(one), len(other))
    if shared == 0:
        return True
    return any(
        bool(torch.isclose(x.double(), y.double(), rtol=1e-3, atol=1e-6, equal_nan=True).all())
        for x, y in ((one[:shared], other[:shared]), (one[-shared:], other[-shared:]))
    )


def _first_difference(
    one: list[tuple[str, str, Tensor]], two: list[tuple[str, str, Tensor]], at: int
) -> tuple[str, str] | None:
    """Among the modules that ran in both passes, the first whose output for the example moved."""
    for (name, kind, left), (_, _, right) in zip(one, two, strict=False):
        if left.ndim == 0 or right.ndim == 0 or left.shape[0] != 1 or right.shape[0] <= at:
            continue
        x, y = left[0], right[at]
        if not x.is_floating_point() or x.ndim != y.ndim or x.shape[1:] != y.shape[1:] or 0 in (*x.shape, *y.shape):
            continue
        if x.ndim < 2 and x.shape != y.shape:
            continue
        shared = min(x.shape[0], y.shape[0]) if x.ndim else 1
        pairs = ((x[:shared], y[:shared]), (x[-shared:], y[-shared:])) if x.ndim else ((x, y),)
        if all(float((u - v).abs().max()) > 1e-3 * max(float(u.abs().max()), 1e-6) for u, v in pairs):
            return name, kind
    return None
