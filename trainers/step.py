"""The two halves of a private step: the clipped sum of a draw, and its one noisy release."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.contribution import RunningSum, Summing
from dpaudit.trainers.noise import Noise, sample_double
from dpaudit.trainers.objective import Batch, Objective
from dpaudit.trainers.rows import one_loss_per_record
from dpaudit.trainers.units import unit_losses

Reduce = Callable[[list[Tensor]], None]
"""Adds a list of tensors up over processes, in place."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrivateStep:
    """Noise-free values of one step. They are private: nothing of them may reach ``release/``.

    Parameters
    ----------
    losses, norms : Tensor of shape (B,)
        Losses and gradient norms before clipping, one for each record drawn, or each unit where units are drawn whole,
        in the draw's order; (0,) for an empty draw.
    indices : tuple of int
        The records that took part.
    """

    losses: Tensor
    norms: Tensor
    indices: tuple[int, ...]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, tied ones once, in the model's order.

    Parameters
    ----------
    model : nn.Module
        Trainable parameters are those with ``requires_grad``.

    Returns
    -------
    dict of str to Parameter
        In the model's order; a name is the first of those that a tied parameter has.

    Raises
    ------
    UnsupportedModel
        If every parameter is frozen, or one is not a dense floating-point tensor.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UnsupportedModel("the model has 0 trainable parameters and needs at least one; set requires_grad=True.")
    for name, p in parameters.items():
        if not p.is_floating_point() or p.is_sparse:
            raise UnsupportedModel(f"parameter {name!r} of type {p.dtype} must be a dense float; freeze it.")
        if p.dtype is torch.float16:
            raise UnsupportedModel(
                f"parameter {name!r} is float16, which needs a gradient scaler; load the model with"
                " dtype=torch.float32 (or torch.bfloat16), or convert it by model.float()."
            )
    return parameters


def accumulate(
    objective: Objective,
    micro_batches: Iterable[tuple[Batch, Sequence[int], bool]],
    *,
    clipper: Summing,
    into: RunningSum,
) -> list[Tensor]:
    """Run every micro-batch through the clipper into one sum; returns private losses, one tensor per micro-batch.

    ``micro_batches`` gives each collated batch with the records of each contribution that it was collated from, one
    after the other (ones, or the sizes of units, whose losses are clipped as one), and whether it counts: one that does
    not is run with losses of zero, and adds nothing. What the forward pass of a micro-batch writes into the model is
    put back as the objective's state has it, so that the next does not see its records.
    """
    model, state = objective.model, objective.state
    device = next(model.parameters()).device
    losses = []
    for batch, sizes, counts in micro_batches:
        with torch.enable_grad(), contextlib.nullcontext() if state is None else state:
            each = one_loss_per_record(objective.loss_fn(model, to_device(batch, device)), records=sum(sizes))
            # Autocast is for the forward pass: norms and sums in half precision would not keep the bound.
            with torch.autocast(device.type, enabled=False):
                of = None
                if objective.reduction is not None:
                    of = torch.repeat_interleave(torch.tensor(sizes, device=each.device))
                    each = unit_losses(each, of, len(sizes), reduction=objective.reduction)
                    of = of.repeat_interleave(objective.rows)
                into.clip(clipper, each if counts else each * 0, units=of, counts=counts)
        if counts:
            losses.append(each.detach())
    return losses


@torch.no_grad()
def noisy_mean(
    totals: Sequence[Tensor],
    *,
    noise: Noise,
    noise_std: float,
    normaliser: float,
    reduce: Reduce | None = None,
    adds_noise: bool = True,
) -> list[Tensor]:
    """(Σ + N(0, noise_std²)) / normaliser, in place on the fp32 or fp64 totals: the only thing that leaves a step.

    Parameters
    ----------
    totals : sequence of Tensor
        Clipped sums, one for each trainable parameter. They are overwritten.
    noise : Noise
        Gives Gaussian values of a shape and a standard deviation.
    noise_std : float
        σC, standard deviation on each coordinate of the SUM.
    normaliser : float
        The constant L; never the realised batch size.
    reduce : callable or None
        Adds up over processes, after the noise: exactly one process may have ``adds_noise``.
    adds_noise : bool, default=True
        Whether this process adds the noise.

    Returns
    -------
    list of Tensor
        ``totals``, overwritten: the release.
    """
    released = list(totals)
    if adds_noise:
        for total in released:
            sample = functools.partial(sample_double, noise) if total.dtype is torch.float64 else noise.sample
            total.add_(sample(total.shape, noise_std, total.device))
    if reduce is not None:
        reduce(released)
    for total in released:
        total.div_(normaliser)
    return released


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(v, device) for v in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
