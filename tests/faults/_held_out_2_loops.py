"""Plain loops with the second set of faults held out: written after the second freeze of the detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.faults._plain import CLASSES, RATE, PlainLoop, TokenLoop


def norm_of(gradient: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradient))


def scaled(gradient: Sequence[Tensor], norm: float, bound: float) -> list[Tensor]:
    """A gradient clipped by a norm that need not be its own; zero where it is not finite."""
    if not all(bool(torch.isfinite(g).all()) for g in gradient) or not math.isfinite(norm):
        return [torch.zeros_like(g) for g in gradient]
    return [g * min(1.0, bound / max(norm, 1e-12)) for g in gradient]


# -- noise ------------------------------------------------------------------------------------------------------------
class NoiseMicroAveraged(PlainLoop):
    """Every micro-batch gets the full noise, and the micro-batches are averaged."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        parts = max(math.ceil(len(indices) / self.micro), 1)
        return [n / math.sqrt(parts) for n in super().noise(total, indices)]


class NoiseByRealisedBatch(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        share = len(indices) / self.normaliser if len(indices) else 1.0
        return [n * math.sqrt(share) for n in super().noise(total, indices)]


class SigmaDecays(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n * 0.98**self.steps for n in super().noise(total, indices)]


class ReseededEachEpoch(PlainLoop):
    """The secret seed is set again at the start of every epoch of ten steps."""

    def restart(self) -> None:
        super().restart()
        self.secret_seed = self.secret.initial_seed()

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        if self.steps % round(1 / RATE) == 1:
            self.secret.manual_seed(self.secret_seed)
        return super().noise(total, indices)


class RanksPartlyShared(PlainLoop):
    """Two ranks hold half of the coordinates each; a shared stream leaks into both."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        sizes = [t.numel() for t in total]
        half = (sum(sizes) + 1) // 2
        shared, *own = (torch.randn(half, generator=self.secret) for _ in range(3))
        both = [math.sqrt(0.3) * shared + math.sqrt(0.7) * part for part in own]
        flat = torch.cat(both)[: sum(sizes)] * self.noise_std
        return [part.view(t.shape) for part, t in zip(flat.split(sizes), total, strict=True)]


# -- clipping ---------------------------------------------------------------------------------------------------------
class NormOverflows(PlainLoop):
    """Squares in half precision; a norm that overflowed is taken for a bad number and the clip is left out."""

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        squares = sum(g.half().square().sum() for g in gradient)
        norm = float(torch.sqrt(squares))  # type: ignore[arg-type]
        if math.isinf(norm):
            return [g.nan_to_num(0, 0, 0) for g in gradient]
        return scaled(gradient, norm, self.clipping_norm)


class NormInBfloat(PlainLoop):
    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        squares = torch.zeros((), dtype=torch.bfloat16)
        for g in gradient:
            for row in g.reshape(g.shape[0], -1):
                squares = squares + row.bfloat16().square().sum()
        return scaled(gradient, math.sqrt(max(float(squares), 0.0)), self.clipping_norm)


class StaleNorms(PlainLoop):
    """A buffer of norms is read before the hooks of this step have filled it."""

    held: tuple[float, ...] = ()

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        gradients = [self.gradient([i]) for i in indices]
        norms = [norm_of(g) for g in gradients]
        for slot, (gradient, norm) in enumerate(zip(gradients, norms, strict=True)):
            used = self.held[slot] if slot < len(self.held) else norm
            for t, g in zip(total, scaled(gradient, used, self.clipping_norm), strict=True):
                t += g
        self.held = tuple(norms)
        return total


class RemainderKept(PlainLoop):
    """Records beyond the last whole micro-batch stay in the accumulation buffer for the next step."""

    kept: list[Tensor] | None = None

    def restart(self) -> None:
        super().restart()
        self.kept = None

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        whole = len(indices) - len(indices) % self.micro
        total = super().gather(indices[:whole])
        if self.kept is not None:
            total = [t + k for t, k in zip(total, self.kept, strict=True)]
        self.kept = super().gather(indices[whole:])
        return total


class RawMomentum(PlainLoop):
    """A momentum buffer is fed by the gradient before its clip, and a fiftieth of it joins the step."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = super().gather(indices)
        for i in indices:
            for t, g in zip(total, self.gradient([i]), strict=True):
                t += 0.02 * g.nan_to_num(0, 0, 0)
        return total


class ClipAtMedian(PlainLoop):
    """The bound is the batch's own median norm; the noise keeps the planned one."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        gradients = [self.gradient([i]) for i in indices]
        norms = [n for n in map(norm_of, gradients) if math.isfinite(n)]
        bound = float(np.median(norms)) if norms else 0.0
        for gradient in gradients:
            for t, g in zip(total, scaled(gradient, norm_of(gradient), bound), strict=True):
                t += g
        return total


class LossScalerSkips(PlainLoop):
    """A gradient out of half precision's range makes the loss scaler skip the whole step."""

    def step(self, indices: Sequence[int]) -> None:
        largest = max((float(g.abs().max()) for i in indices for g in self.gradient([i])), default=0.0)
        if largest <= 65_504:
            super().step(indices)
        else:
            self.steps += 1


class TwoDropouts(PlainLoop):
    """The norm is measured under one dropout mask and the gradient summed under another."""

    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in indices:
            norm = norm_of(self.gradient([i]))
            for t, g in zip(total, scaled(self.gradient([i]), norm, self.clipping_norm), strict=True):
                t += g
        return total


class Unmasked(nn.Module):
    """Mean of the vectors of six places, padding included, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(nn.functional.pad(tokens, (0, 6 - tokens.shape[1]))).mean(1))


class PaddingRowNotInNorm(TokenLoop):
    def make_model(self) -> nn.Module:
        return Unmasked()

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        first, *rest = gradient
        return scaled(gradient, norm_of([first[1:], *rest]), self.clipping_norm)


# -- sampler ----------------------------------------------------------------------------------------------------------
class FilledByRepeats(PlainLoop):
    """A batch smaller than expected is filled by repeating its records."""

    def draw(self) -> list[int]:
        drawn = super().draw()
        missing = max(round(self.normaliser) - len(drawn), 0) if drawn else 0
        return drawn + [drawn[k % len(drawn)] for k in range(missing)]


class AtLeastFour(PlainLoop):
    """A batch of fewer than four is filled with other records."""

    def draw(self) -> list[int]:
        drawn = super().draw()
        others = np.setdiff1d(np.arange(self.size), drawn)
        missing = max(4 - len(drawn), 0)
        return sorted(drawn + self.sampling.choice(others, missing, replace=False).tolist())


class QueueOfRandomSizes(PlainLoop):
    """Sizes are binomial as Poisson's are, and records come from a shuffled queue."""

    order: list[int]

    def restart(self) -> None:
        super().restart()
        self.order = []

    def draw(self) -> list[int]:
        count = int(self.sampling.binomial(self.size, RATE))
        if len(self.order) < count:
            self.order = self.sampling.permutation(self.size).tolist()
        drawn, self.order = self.order[:count], self.order[count:]
        return sorted(drawn)
