"""Private and ordinary fine-tuning of a language model on short records, and its perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.trainers import OptimizerSettings, causal_lm_losses, pad_tokens, train
from findings.privacy import planned, spent

Batch = Mapping[str, Tensor]


def to(device: str, batch: Batch) -> dict[str, Tensor]:
    """The batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def lm_losses(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) mean next-token losses."""
    return causal_lm_losses(model, **batch)


def private(
    model: nn.Module,
    records: list[Any],
    *,
    collate: Any,
    loss_fn: Any,
    epsilon: float,
    batch: int,
    steps: int,
    rate: float,
    clipping_norm: float = 0.1,
    schedule: str = "linear",
    physical: int = 128,
    sigma_of: int | None = None,
    plan: Any = None,
    delta: float | None = None,
) -> dict[str, Any]:
    """Ghost-clipped DP-Adam in place; what it spent.

    ``sigma_of``: calibrate σ for so many records instead of ``records``. Rates are looked for like this on few public
    records, with the noise that the real run will have; the ε of such a run means nothing and is not returned.
    """
    if plan is None:
        own = {} if delta is None else {"delta": delta}
        size = sigma_of or len(records)
        plan = planned(size, batch=batch, steps=steps, clipping_norm=clipping_norm, epsilon=epsilon, **own)
        if sigma_of is not None:
            sigma = plan.noise_multiplier
            bare = planned(len(records), batch=batch, steps=steps, clipping_norm=clipping_norm, epsilon=None)
            plan = bare.with_noise_multiplier(sigma)
    journal = MemoryJournal()
    train(
        model, records, plan, collate=collate, loss_fn=loss_fn, journal=journal, physical_batch_size=physical,
        optimizer=OptimizerSettings(learning_rate=rate, schedule=schedule),
    )  # fmt: skip
    return {} if sigma_of is not None else spent(plan, journal)


def ordinary(
    model: nn.Module, records: list[Any], *, collate: Any, loss_fn: Any, batch: int, steps: int, rate: float, seed: int
) -> dict[str, Any]:
    """AdamW on shuffled batches, without privacy: the ceiling. The rate falls linearly."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    rng, order = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(records), generator=rng).tolist()
        taken, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        loss_fn(model, collate([records[i] for i in taken])).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"epsilon_upper": None}


def collator(pad: int, device: str = "cpu") -> Any:
    """Right-padded batches of token lists."""
    return lambda rows: to(device, pad_tokens(rows, pad=pad))


@torch.no_grad()
def perplexity(model: nn.Module, rows: list[list[int]], *, pad: int, device: str = "cpu") -> float:
    """exp of the mean loss a token, end tokens included."""
    total = tokens = 0.0
    for at in range(0, len(rows), 128):
        chunk = rows[at : at + 128]
        counts = torch.tensor([len(row) - 1.0 for row in chunk])
        total += float((lm_losses(model, to(device, pad_tokens(chunk, pad=pad))).cpu() * counts).sum())
        tokens += float(counts.sum())
    return math.exp(total / tokens)
