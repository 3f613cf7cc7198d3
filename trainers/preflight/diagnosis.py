"""Whose fault it is: the first module that lets one example see another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.trainers.step import LossFunction

OUR_LOSSES = "causal_lm_losses, sequence_classification_losses"


def coupling_message(
    model: nn.Module,
    batch: dict[str, Tensor],
    changed: dict[str, Tensor],
    row: int,
    at: int,
    what: str,
    loss_fn: LossFunction,
    relative: float,
    quantity: str = "gradient",
) -> str:
    """One sentence that names the first module whose output for this example moves, and what to do."""
    moved = f"one example's {quantity} moves by {relative:.2g} (relative) when the {what} of the other examples changes"
    config = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False):
        return (
            f"{moved}: the mixture-of-experts auxiliary loss (output_router_logits=True) averages over the batch;"
            " set model.config.output_router_logits=False."
        )
    culprit = _first_difference(_outputs(model, batch, loss_fn), _outputs(model, changed, loss_fn), row, at)
    if culprit is None:
        return (
            f"{moved}, although every module treats it alone: loss_fn divides by or averages over the batch, as Hugging"
            f" Face's own loss does over its tokens; return a mean over each example's own tokens ({OUR_LOSSES})."
        )
    return (
        f"{moved}, first in module {culprit[0]!r} ({culprit[1]}): replace it by one that treats examples alone"
        " (LayerNorm or GroupNorm for BatchNorm), put it in eval mode, or mask padding."
    )


def _outputs(model: nn.Module, batch: dict[str, Tensor], loss_fn: LossFunction) -> list[tuple[str, str, Tensor]]:
    seen: list[tuple[str, str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor):
                seen.append((name, type(module).__name__, value.detach()))

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            loss_fn(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _first_difference(
    one: list[tuple[str, str, Tensor]], two: list[tuple[str, str, Tensor]], row: int, at: int
) -> tuple[str, str] | None:
    """Among the modules that ran in both passes, the first whose output for the example moved."""
    for (name, kind, left), (_, _, right) in zip(one, two):
        if left.ndim == 0 or right.ndim == 0 or left.shape[0] <= row or right.shape[0] <= at:
            continue
        x, y = left[row], right[at]
        if x.ndim != y.ndim or not x.is_floating_point():
            continue
        if x.ndim >= 2:
            shared = min(x.shape[0], y.shape[0])
            x, y = x[:shared], y[:shared]
        if x.shape != y.shape:
            continue
        if float((x - y).abs().max()) > 1e-3 * max(float(x.abs().max()), 1e-6):
            return name, kind
    return None
