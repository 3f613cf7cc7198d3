"""Perplexity of public data, and means over private data that are charged in the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dpaudit import Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.protocols import Journal
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.noise import Noise, NoiseSource, sample_double
from dpaudit.trainers.step import to_device
from dpaudit.trainers.tasks.losses import IGNORED, causal_lm_losses
from dpaudit.trainers.tasks.padding import shifted_targets


@torch.no_grad()
def perplexity(
    model: nn.Module,
    records: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    batch_size: int = 16,
) -> float:
    """exp of the mean negative log-likelihood over all counted tokens of PUBLIC records; lower is better.

    It is a function of every record and no release: on private records use :func:`charged_mean` over per-example
    losses.
    """
    device = next(model.parameters()).device
    loss = tokens = 0.0
    with evaluating(model):
        for at in range(0, len(records), batch_size):
            batch = to_device(collate([records[i] for i in range(at, min(at + batch_size, len(records)))]), device)
            labels, mask = batch["labels"], batch.get("attention_mask")
            counts = (shifted_targets(labels, mask) != IGNORED).sum(1)
            means = causal_lm_losses(model, batch["input_ids"], mask, labels)
            loss += float((means.double() * counts).sum())
            tokens += float(counts.sum())
    if tokens == 0:
        raise InvalidValue("records hold 0 counted tokens and need at least one; check the labels.")
    return math.exp(loss / tokens)


def charged_mean(
    values: Iterable[float],
    bound: float,
    *,
    noise_multiplier: float,
    public_size: int,
    journal: Journal,
    noise: Noise | None = None,
) -> float:
    """Mean of one number per private record, as a noisy release that the ledger counts.

    Every value is clipped to [-bound, bound] (values that are not finite count as 0), summed, noised once with
    σ·bound and divided by ``public_size``: one step of a stage with q = 1. Accuracy is the mean of 0/1 values with
    bound 1; a mean loss needs a bound chosen beforehand.

    Parameters
    ----------
    values : iterable of float
        One number for each private record; it may depend on that record and on released models alone.
    bound : float
        Largest contribution of one record, fixed beforehand.
    noise_multiplier : float
        σ of the Gaussian mechanism.
    public_size : int
        Published number of records.
    journal : Journal
        Counts the step before the release.
    noise : Noise, optional
        For tests only; by default from operating-system entropy.

    Returns
    -------
    float
        The noisy mean, which may be published.

    Raises
    ------
    InvalidValue
        If ``bound`` or σ is not finite and positive, or ``public_size`` is below 1.
    """
    validate.positive(bound=bound, noise_multiplier=noise_multiplier)
    validate.finite(bound=bound, noise_multiplier=noise_multiplier)
    validate.integer_at_least(1, public_size=public_size)
    total = sum(max(-bound, min(bound, float(v))) if math.isfinite(v) else 0.0 for v in values)
    journal.begin(
        Stage(
            sampling_probability=1.0,
            noise_multiplier=noise_multiplier,
            steps=0,
            sampling=Sampling.NONE,
            clipping_norm=bound,
            expected_batch_size=float(public_size),
            public_size=public_size,
        )
    )
    journal.count()
    drawn = float(sample_double(noise or NoiseSource(), (), noise_multiplier * bound))
    journal.seal("charged evaluation")
    return (total + drawn) / public_size
