"""The slow oracle of ghost clipping: one backward pass per example, then the definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpaudit.trainers.clipping import Clipping, PerLayer
from dpaudit.trainers.ghost.clipper import GhostClipping

Losses = Callable[[slice], Tensor]


def gradients(model: nn.Module, losses: Losses, size: int) -> list[dict[str, Tensor]]:
    """Per-example gradients by name, from B backward passes of batch one through the bare model."""
    rows = []
    for i in range(size):
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(losses(slice(i, i + 1)).sum())
        rows.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    return rows


def norms_of(rows: list[dict[str, Tensor]]) -> Tensor:
    """Norms of whole per-example gradients, (B,)."""
    return torch.stack([torch.stack([g.double().norm() for g in row.values()]).norm() for row in rows])


def clipped(clipper: GhostClipping, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Σ_i c_i g_i by the definition, in fp64."""
    names = {n: p for n, p in clipper.model.named_parameters() if n in rows[0]}
    layer = {n: clipper._layer_of[p] for n, p in names.items()}
    bound = clipper.clipping.clipping_norm
    if isinstance(clipper.clipping, PerLayer):
        limit = bound / math.sqrt(len(clipper.layers))
        groups = range(len(clipper.layers))
        each = [
            norms_of([{n: g for n, g in r.items() if layer[n] == k} or {"": torch.zeros(1)} for r in rows])
            for k in groups
        ]
        factors = torch.stack([(limit / n.clamp_min(1e-300)).clamp_max(1) for n in each])
    else:
        total = norms_of(rows)
        one = bound / (total + 0.01) if type(clipper.clipping).__name__ == "Automatic" else (bound / total).clamp_max(1)
        factors = one.expand(len(clipper.layers), -1)
    return {
        n: torch.stack([c * r[n].double() for c, r in zip(factors[layer[n]], rows, strict=True)]).sum(0) for n in names
    }


def error(model: nn.Module, expected: dict[str, Tensor]) -> float:
    """Relative L2 error of all of ``p.grad`` against the expected sums."""
    wrong = right = 0.0
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        wrong += float((parameter.grad.detach().double() - expected[name]).square().sum())
        right += float(expected[name].square().sum())
    return math.sqrt(wrong / right)


def compare(
    model: nn.Module, losses: Losses, size: int, rule: type[Clipping], *, lean: bool = False, bound: float | None = None
) -> tuple[float, float]:
    """Relative errors of the clipped sum and of the norms; C is the median norm, so that clipping is partial."""
    rows = gradients(model, losses, size)
    norms = norms_of(rows)
    limit = float(norms.median()) if bound is None else bound
    with GhostClipping(model, limit, clipping=rule(limit), lean=lean) as clipper:
        found = clipper.backward(losses(slice(0, size)))
        expected = clipped(clipper, rows)
    return error(model, expected), float(((found.double() - norms) / norms).abs().max())
