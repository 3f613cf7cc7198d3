"""Linear layers that multiply by the faster routine of the processor while a clipper is open, forward and backward.

The backward products of trained layers are the clipper's own (:mod:`.recording`). What is left to torch are their
forward products, and both of frozen layers; where torch's routine is the slower one these would cost most of the step.
A layer's ``forward`` is put on the instance, for differentiated passes in fp32 on a CPU alone: in every other case, an
evaluation without gradients included, the layer's own runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.trainers.ghost import products


def has_usual_forward(module: nn.Module) -> bool:
    """Whether the module computes what nn.Linear or Hugging Face's Conv1D compute, by their own forward."""
    return type(module).forward is nn.Linear.forward or _is_hf_conv1d(module)


def _is_hf_conv1d(module: nn.Module) -> bool:
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
        for kind in type(module).__mro__
        if type(module).forward is vars(kind).get("forward")
    )


def usual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the module's own forward gives."""
    found: Tensor = type(module).forward(module, *args, **kwargs)
    return found


def operands(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Input and weight, the latter as (p, d), of a call that the faster routine serves; None of any other."""
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    x, weight = args[0], module.weight
    if type(weight) is not nn.Parameter or not products.onednn_for(x) or weight.dtype != x.dtype:
        return None
    if torch.is_autocast_enabled("cpu") or x.dim() < 2 or x.numel() * weight.shape[1] < products.LEAST:
        return None
    return x, weight if isinstance(module, nn.Linear) else weight.mT


def without_graph(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The module's output by the faster routine where it serves, for callers that need no graph."""
    found = operands(module, args, kwargs)
    if found is None:
        return usual(module, args, kwargs)
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    return products.affine(*found, bias)


class FrozenLinear:
    """A linear layer without trained parameters; ``forward`` takes the place of the module's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's output, with a data gradient by the same routine."""
        trained = any(p is not None and p.requires_grad for p in self.module._parameters.values())
        found = None if trained or not torch.is_grad_enabled() else operands(self.module, args, kwargs)
        if found is None or not found[0].requires_grad:
            return usual(self.module, args, kwargs)
        output: Tensor = _Affine.apply(*found, self.module.bias)  # type: ignore[no-untyped-call]
        return output


class _Affine(torch.autograd.Function):
    """x Wᵀ + bias for a constant weight (p, d) and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return products.affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        (weight,) = ctx.saved_tensors
        return products.right(gradient, weight, transposed=True), None, None
