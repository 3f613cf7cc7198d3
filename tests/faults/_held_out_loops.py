"""Plain loops with faults written after the detectors were frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.faults._plain import RATE, RECORDS, PlainLoop, TokenLoop


# -- noise of the plain loop -----------------------------------------------------------------------------------------
class RootTwoShort(PlainLoop):
    noise_std = PlainLoop.noise_multiplier * PlainLoop.clipping_norm / math.sqrt(2)  # type: ignore[assignment]


class Truncated(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n.clamp(-2 * self.noise_std, 2 * self.noise_std) * 1.137 for n in super().noise(total, indices)]


class LaplaceInstead(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        def draw(t: Tensor) -> Tensor:
            u = torch.rand(t.shape, generator=self.secret) - 0.5
            return -u.sign() * (1 - 2 * u.abs()).log() * self.noise_std / math.sqrt(2)

        return [draw(t) for t in total]


class Antithetic(PlainLoop):
    held: list[Tensor] | None = None

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        if self.held is None:
            self.held = super().noise(total, indices)
            return self.held
        again, self.held = [-n for n in self.held], None
        return again


class OneDirection(PlainLoop):
    """Noise of the right length along one fixed public direction."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        fixed = torch.Generator().manual_seed(3)
        scalar = float(torch.randn((), generator=self.secret)) * self.noise_std
        return [torch.randn(t.shape, generator=fixed).sign() * scalar for t in total]


class RowsInBatchOnly(TokenLoop):
    """A sparse embedding's rows get noise only where the batch touched them."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        first, *rest = super().noise(total, indices)
        touched = (total[0] != 0).any(dim=1, keepdim=True)
        return [first * touched, *rest]


class NoiseWarmUp(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n * min(1.0, self.steps / 10) for n in super().noise(total, indices)]


class GrowsWithBatch(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n * math.sqrt(max(len(indices), 6) / 6) for n in super().noise(total, indices)]


# -- clipping of the plain loop --------------------------------------------------------------------------------------
class MeanOfThree(PlainLoop):
    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for start in range(0, len(indices), 3):
            group = indices[start : start + 3]
            mean = [g / len(group) for g in self.gradient(group)]
            for t, g in zip(total, self.clip(mean), strict=True):
                t += g * len(group)
        return total


class LargestCoordinate(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        largest = max(float(g.abs().max()) for g in gradient)
        if not math.isfinite(largest):
            return [torch.zeros_like(g) for g in gradient]
        return [g * min(1.0, self.clipping_norm / max(largest, 1e-12)) for g in gradient]


class ValueClip(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        return [g.nan_to_num(0, 0, 0).clamp(-self.clipping_norm, self.clipping_norm) for g in gradient]


class FirstLayerNorm(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        norm = float(gradient[0].norm())
        if not math.isfinite(norm):
            return [torch.zeros_like(g) for g in gradient]
        return [g * min(1.0, self.clipping_norm / max(norm, 1e-12)) for g in gradient]


class OutliersPass(PlainLoop):
    """The clip is skipped where the loss is out of range, as a guard against bad batches does."""

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        if norm > 100:
            return [g.nan_to_num(0, 0, 0) for g in gradient]
        return super().clip(gradient)


class HeadUnclipped(TokenLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        *rest, weight, bias = gradient
        clipped = super().clip([*rest, torch.zeros_like(weight), torch.zeros_like(bias)])
        return [*clipped[:-2], weight.nan_to_num(0, 0, 0), bias.nan_to_num(0, 0, 0)]


class InfinityIsLarge(PlainLoop):
    """A record with an undefined gradient adds a large finite number, past the clip."""

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        if all(bool(torch.isfinite(g).all()) for g in gradient):
            return super().clip(gradient)
        return [g.nan_to_num(1e3, 1e3, -1e3) for g in gradient]


# -- coupling, divisor, outputs of the plain loop ---------------------------------------------------------------------
class CentredLogits(PlainLoop):
    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        if not len(indices):
            return total
        rows = [self.row(i) for i in indices]
        x, y = torch.stack([r[0][0] for r in rows]), torch.stack([r[0][1] for r in rows])
        logits = self.model(x)
        logits = logits - logits.mean(dim=0, keepdim=True) / 2
        losses = nn.functional.cross_entropy(logits, y, reduction="none") * torch.tensor([r[1] for r in rows])
        for k in range(len(indices)):
            own = torch.autograd.grad(losses[k], list(self.model.parameters()), retain_graph=True)
            for t, g in zip(total, self.clip(list(own)), strict=True):
                t += g
        return total


class ByLargestNorm(PlainLoop):
    """All gradients are scaled by the largest norm of the batch."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        gradients = [self.gradient([i]) for i in indices]
        norms = [math.sqrt(sum(float(g.square().sum()) for g in own)) for own in gradients]
        largest = max([n for n in norms if math.isfinite(n)], default=0.0)
        for own, norm in zip(gradients, norms, strict=True):
            if math.isfinite(norm):
                for t, g in zip(total, own, strict=True):
                    t += g * min(1.0, self.clipping_norm / max(largest, 1e-12))
        return total


class CountsRealLosses(PlainLoop):
    def divisor(self, indices: Sequence[int]) -> float:
        return float(sum(1 for i in indices if self.row(i)[1] != 0)) or self.normaliser


class RoundedSize(PlainLoop):
    def divisor(self, indices: Sequence[int]) -> float:
        return float(round(self.size * RATE))


class ClipShare(PlainLoop):
    last = 0.0

    def step(self, indices: Sequence[int]) -> None:
        norms = [math.sqrt(sum(float(g.square().sum()) for g in self.gradient([i]))) for i in indices]
        self.last = float(np.mean([n > 1.0 for n in norms])) if norms else 0.0
        super().step(indices)

    def published(self) -> dict[str, float]:
        return {"clip_fraction": self.last}


class EmptyBecomesOne(PlainLoop):
    """An empty draw trains on one record instead."""

    def step(self, indices: Sequence[int]) -> None:
        super().step(indices if len(indices) else [int(self.sampling.integers(self.size))])


# -- sampler of the plain loop ----------------------------------------------------------------------------------------
class HalfAndHalf(PlainLoop):
    def draw(self) -> list[int]:
        rates = np.where(np.arange(self.size) < self.size // 2, 0.5 * RATE, 1.5 * RATE)
        return np.flatnonzero(self.sampling.random(self.size) < rates).tolist()  # type: ignore[no-any-return]


class InOrder(PlainLoop):
    def restart(self) -> None:
        super().restart()
        self.place = int(self.sampling.integers(self.size))

    def draw(self) -> list[int]:
        batch = round(RATE * RECORDS)
        drawn = [(self.place + k) % self.size for k in range(batch)]
        self.place += batch
        return drawn


class CachedFourTimes(PlainLoop):
    calls = 0
    held: list[int]

    def draw(self) -> list[int]:
        if self.calls % 4 == 0:
            self.held = super().draw()
        self.calls += 1
        return self.held


class SmallDrawsRejected(PlainLoop):
    def draw(self) -> list[int]:
        while len(drawn := super().draw()) < 5:
            pass
        return drawn


class GlobalSampler(PlainLoop):
    def draw(self) -> list[int]:
        return torch.nonzero(torch.rand(self.size) < RATE).flatten().tolist()  # type: ignore[no-any-return]


class InPairs(PlainLoop):
    def draw(self) -> list[int]:
        pairs = np.flatnonzero(self.sampling.random(self.size // 2) < RATE)
        return np.sort(np.concatenate([2 * pairs, 2 * pairs + 1])).tolist()  # type: ignore[no-any-return]
