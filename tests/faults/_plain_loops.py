"""Faults of a plain PyTorch DP-SGD loop that change clipping, divisor, outputs and sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.faults._plain import RATE, RECORDS, PlainLoop, TokenLoop

RANKS = 4


# -- clipping --------------------------------------------------------------------------------------------------------
class MicroBatchMean(PlainLoop):
    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for start in range(0, len(indices), 2):
            pair = indices[start : start + 2]
            mean = [g / len(pair) for g in self.gradient(pair)]
            for t, g in zip(total, self.clip(mean), strict=True):
                t += g * len(pair)
        return total


class BatchMean(PlainLoop):
    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        if not len(indices):
            return super().gather(indices)
        mean = [g / len(indices) for g in self.gradient(indices)]
        return [g * len(indices) for g in self.clip(mean)]


class BiasUnclipped(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        clipped = super().clip([g if g.ndim > 1 else torch.zeros_like(g) for g in gradient])
        finite = all(bool(torch.isfinite(g).all()) for g in gradient)
        return [c if c.ndim > 1 else (g if finite else c) for c, g in zip(clipped, gradient, strict=True)]


class EmbeddingUnclipped(TokenLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        first, *rest = gradient
        _, *clipped = super().clip([torch.zeros_like(first), *rest])
        return [torch.nan_to_num(first, 0, 0, 0), *clipped]


class NotClipped(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        return [torch.nan_to_num(g, 0, 0, 0) for g in gradient]


class LayersEach(PlainLoop):
    """Every layer is clipped at C where the layers' bounds should add up to C."""

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        return [super(LayersEach, self).clip([g])[0] for g in gradient]


class OutputGradientClipped(PlainLoop):
    """The gradient of the loss by the logits is clipped, not the gradient by the weights."""

    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = [self.row(i) for i in indices]
        x, y = torch.stack([r[0][0] for r in rows]), torch.stack([r[0][1] for r in rows])
        logits = self.model(3 * x)
        factor = torch.tensor([r[1] for r in rows])

        def bound(g: Tensor) -> Tensor:
            g = torch.nan_to_num(g, 0, 0, 0)
            norms = g.norm(dim=1, keepdim=True)
            return g * (self.clipping_norm / norms.clamp(min=self.clipping_norm))

        logits.register_hook(bound)
        return nn.functional.cross_entropy(logits, y, reduction="none") * factor

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        return gradient


class UndefinedPasses(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        norm = math.sqrt(float(sum(g.square().sum() for g in gradient)))
        factor = self.clipping_norm / max(norm, self.clipping_norm)
        return [g * factor for g in gradient]


class Accumulated(PlainLoop):
    """The clip acts on the gradient accumulated so far, earlier micro-batches included."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in indices:
            total = self.clip([t + g for t, g in zip(total, self.gradient([i]), strict=True)])
        return total


# -- coupling and normaliser -----------------------------------------------------------------------------------------
class BatchNormed(PlainLoop):
    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = [self.row(i) for i in indices]
        x, y = torch.stack([r[0][0] for r in rows]), torch.stack([r[0][1] for r in rows])
        hidden = self.model[0](x)  # type: ignore[index]
        hidden = hidden - 0.5 * hidden.mean(dim=0, keepdim=True)
        losses = nn.functional.cross_entropy(self.model[2](torch.tanh(hidden)), y, reduction="none")  # type: ignore[index]
        return losses * torch.tensor([r[1] for r in rows])

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        if not len(indices):
            return total
        losses, parameters = self.losses(indices), list(self.model.parameters())
        for k in range(len(indices)):
            own = self.clip(list(torch.autograd.grad(losses[k], parameters, retain_graph=True)))
            for t, g in zip(total, own, strict=True):
                t += g
        return total


class TokenMean(TokenLoop):
    """Each record's loss is divided by the tokens of the whole batch, times the batch size."""

    clipping_norm = 8.0

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        lengths = [len(self.row(i)[0][0]) for i in indices]
        for i, length in zip(indices, lengths, strict=True):
            share = length * len(indices) / sum(lengths)
            for t, g in zip(total, self.clip([g * share for g in self.gradient([i])]), strict=True):
                t += g
        return total


class RealisedBatch(PlainLoop):
    def divisor(self, indices: Sequence[int]) -> float:
        return max(len(indices), 1) if len(indices) else self.normaliser

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n * self.divisor(indices) / self.normaliser for n in super().noise(total, indices)]


class FlooredSize(PlainLoop):
    def divisor(self, indices: Sequence[int]) -> float:
        return float(int(self.size * RATE))


class EmptySkipped(PlainLoop):
    def step(self, indices: Sequence[int]) -> None:
        if len(indices):
            super().step(indices)


class LossPublished(PlainLoop):
    last = 0.0

    def step(self, indices: Sequence[int]) -> None:
        ordinary = [i for i in indices if i < RECORDS]
        self.last = float(self.losses(ordinary).mean().detach()) if ordinary else 0.0
        super().step(indices)

    def published(self) -> dict[str, float]:
        return {"train_loss": self.last}


# -- sampler ----------------------------------------------------------------------------------------------------------
class Shuffled(PlainLoop):
    order: list[int]

    def restart(self) -> None:
        super().restart()
        self.order = []

    def draw(self) -> list[int]:
        batch = round(RATE * RECORDS)
        if len(self.order) < batch:
            self.order = self.sampling.permutation(self.size).tolist()
        drawn, self.order = self.order[:batch], self.order[batch:]
        return drawn


class FixedSize(PlainLoop):
    def draw(self) -> list[int]:
        return self.sampling.choice(self.size, round(RATE * RECORDS), replace=False).tolist()  # type: ignore[no-any-return]


class WithReplacement(PlainLoop):
    def draw(self) -> list[int]:
        count = self.sampling.binomial(self.size, RATE)
        return self.sampling.choice(self.size, count, replace=True).tolist()  # type: ignore[no-any-return]


class RanksOverlap(PlainLoop):
    def draw(self) -> list[int]:
        return np.concatenate([np.asarray(super(RanksOverlap, self).draw(), dtype=int) for _ in range(RANKS)]).tolist()  # type: ignore[no-any-return]


class MicroBatchRate(PlainLoop):
    """The ledger holds the micro-batch's q; the logical batch takes several of them."""

    def draw(self) -> list[int]:
        return np.flatnonzero(self.sampling.random(self.size) < 3 * RATE).tolist()  # type: ignore[no-any-return]


class SeededSampler(PlainLoop):
    def restart(self) -> None:
        super().restart()
        self.sampling = np.random.default_rng(42)


class BatchUsedTwice(PlainLoop):
    held: list[int] | None = None

    def draw(self) -> list[int]:
        if self.held is None:
            self.held = super().draw()
            return self.held
        again, self.held = self.held, None
        return again
