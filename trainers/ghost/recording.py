"""Autograd functions that leave an output unchanged and record its gradient, one slice per example, on the way back.

Each takes an ``anchor`` that requires a gradient, so that the backward pass reaches it although the weights are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpaudit.trainers.ghost import products


class Record(torch.autograd.Function):
    """The identity; its backward hands the gradient and the saved tensors to ``record``."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor, record: Callable[..., None], *saved: Tensor) -> Tensor:
        ctx.record = record
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        (gradient,) = gradients
        if gradient is not None:
            ctx.record(gradient.detach(), *ctx.saved_tensors)
        return (None, gradient, None, *([None] * (len(ctx.needs_input_grad) - 3)))


class LinearRecord(torch.autograd.Function):
    """The backward of s = x W, whose output was computed without a graph: a data gradient and a record."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        output: Tensor,
        weight: Tensor,
        transposed: bool,
        record: Any,
        needs_x: bool,
    ) -> Tensor:
        ctx.record, ctx.transposed, ctx.dtype, ctx.needs_x = record, transposed, x.dtype, needs_x
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*([weight, x] if needs_x else [weight]))
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        (gradient,) = gradients
        back = None
        if gradient is not None:
            weight, *x = ctx.saved_tensors
            ctx.record(gradient.detach(), *x)
            if ctx.needs_input_grad[1]:
                weight = weight.detach().to(gradient.dtype)
                back = products.right(gradient, weight, transposed=ctx.transposed).to(ctx.dtype)
        return (None, back, None, None, None, None, None)


class JointRecord(torch.autograd.Function):
    """Several outputs recorded together: their gradients arrive in one call."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, record: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.record = record
        # Models add to an output in place, which autograd allows where a backward pass needs no output; so copies are
        # kept.
        ctx.save_for_backward(*tensors[count:], *(t.detach().clone() for t in tensors[:count]))
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        count = len(gradients)
        ctx.record(gradients, saved[: len(saved) - count], saved[len(saved) - count :])
        return (None, None, None, *gradients, *([None] * (len(saved) - count)))
