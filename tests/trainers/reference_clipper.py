"""The slow oracle of clipping: one autograd call for each example, in the words of the definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoopClipper:
    """Σ min(1, C/nᵢ) gᵢ by one backward pass per example; rows that are not finite contribute nothing."""

    def __init__(self, model: nn.Module, max_grad_norm: float) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.max_grad_norm = max_grad_norm

    def backward(self, losses: Tensor) -> Tensor:
        norms = []
        for loss in losses:
            grads = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            squares = [g.double().square().sum() for g in grads if g is not None]
            norm = torch.stack(squares).sum().sqrt()
            norms.append(norm)
            if not torch.isfinite(norm):
                continue
            factor = min(1.0, self.max_grad_norm / float(norm)) if norm > 0 else 1.0
            for p, g in zip(self.parameters, grads, strict=True):
                if g is not None:
                    p.grad = g * factor if p.grad is None else p.grad + g * factor
        return torch.stack(norms)
