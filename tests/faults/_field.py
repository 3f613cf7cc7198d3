"""Faults met in the field after the first catalogue: micro-draws, means, precision, shards, released state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.faults._case import Fault
from tests.faults._plain import RATE, PlainLoop, shrunk
from tests.faults._plain_faults import plain

WORKERS = 4


class UnionOfDraws(PlainLoop):
    """Four micro-batches, each drawn for itself at q / 4, make one step: a record may stand in several."""

    def draw(self) -> list[int]:
        each = [np.flatnonzero(self.sampling.random(self.size) < RATE / 4) for _ in range(4)]
        return np.concatenate(each).tolist()  # type: ignore[no-any-return]


class EmptyLocalDraws(PlainLoop):
    """Four workers draw from a quarter of the records each; one whose draw is empty takes its next one."""

    def draw(self) -> list[int]:
        parts = []
        for worker in range(WORKERS):
            own = np.arange(worker, self.size, WORKERS)
            drawn = own[self.sampling.random(len(own)) < RATE]
            while not len(drawn):
                drawn = own[self.sampling.random(len(own)) < RATE]
            parts.append(drawn)
        return np.concatenate(parts).tolist()  # type: ignore[no-any-return]


class MeanLossClipped(PlainLoop):
    """Every record's gradient of the batch's mean loss is clipped, and the sum is scaled back."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in indices:
            share = [g / len(indices) for g in self.gradient([i])]
            for t, g in zip(total, self.clip(share), strict=True):
                t += g
        return total


class NoiseOfTheSumOnTheMean(PlainLoop):
    def step(self, indices: Sequence[int]) -> None:
        self.steps += 1
        total = self.gather(indices)
        drawn = [torch.zeros_like(t) for t in total] if self.quiet else self.noise(total, indices)
        with torch.no_grad():
            for p, t, n in zip(self.model.parameters(), total, drawn, strict=True):
                p -= t / self.normaliser + n


class NoiseInBfloat16(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n.bfloat16().float() for n in super().noise(total, indices)]


class ShardsAlike(PlainLoop):
    """Two workers hold half of the rows of every parameter and draw its noise from streams seeded alike."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        drawn = []
        for n in super().noise(total, indices):
            half = (len(n) + 1) // 2
            drawn.append(torch.cat([n[:half], n[: len(n) - half]]))
        return drawn


class AveragedWhereSummed(PlainLoop):
    """Gradients are scaled up for a reduction that averages; the noise is added before it and is not."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        parts = [super(AveragedWhereSummed, self).noise(total, indices) for _ in range(WORKERS)]
        return [torch.stack([part[k] for part in parts]).mean(0) for k in range(len(total))]


class Counted(nn.Module):
    """A layer that keeps a running mean of its inputs and does not use it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.register_buffer("running_mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean(0)
        return self.layers(x)  # type: ignore[no-any-return]


class RunningStatistics(PlainLoop):
    def make_model(self) -> nn.Module:
        return Counted()


class AverageOfGradients(PlainLoop):
    """A moving average of the clipped gradients, taken before the noise, is saved with the model."""

    def make_model(self) -> nn.Module:
        model = super().make_model()
        model.register_buffer("average", torch.zeros(sum(p.numel() for p in model.parameters())))
        return model

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = super().gather(indices)
        self.model.average.mul_(0.9).add_(torch.cat([t.flatten() for t in total]), alpha=0.1)
        return total


class SlicedWhole(PlainLoop):
    """Correct: every worker draws the noise of a whole parameter from its own stream and keeps its rows."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        drawn = []
        for t in total:
            whole = [torch.randn(t.shape, generator=self.secret) * self.noise_std for _ in range(2)]
            half = (len(t) + 1) // 2
            drawn.append(torch.cat([whole[0][:half], whole[1][half:]]))
        return drawn


FAULTS: tuple[Fault, ...] = (
    plain(
        UnionOfDraws, "field-union-of-draws", ("A3",), "sampling_repeats_in_batch",
        "for _ in range(accumulate): batch += poisson(q / accumulate)", group="sampler",
    ),
    plain(
        EmptyLocalDraws, "field-empty-local-draws", ("D1",), "sampling_batch_size",
        "if len(local) == 0: continue  # on one worker", group="sampler",
    ),
    plain(
        MeanLossClipped, "field-mean-loss-clipped", ("A3",), "coupled_examples",
        "loss.mean(); clip(each record's share)", group="replay",
    ),
    plain(
        NoiseOfTheSumOnTheMean, "field-noise-of-sum-on-mean", ("jax_privacy 383",), "noise_scale_high",
        "grad = sum / L + randn() * sigma * C", true_stage=shrunk(1 / 6),
    ),
    plain(NoiseInBfloat16, "field-noise-in-bfloat16", ("A9",), "noise_not_gaussian", "randn(dtype=bfloat16) * std"),
    plain(
        ShardsAlike, "field-shards-alike", ("D1", "5.10"), "noise_correlated_coordinates",
        "each shard: generator.manual_seed(seed)",
    ),
    plain(
        AveragedWhereSummed, "field-averaged-where-summed", ("D1",), "noise_scale",
        "grad * world + noise, then reduce(mean)", true_stage=shrunk(2),
    ),
    plain(
        RunningStatistics, "field-running-statistics", ("A1",), "statistics_released",
        "BatchNorm(track_running_stats=True)", group="replay",
    ),
    plain(
        AverageOfGradients, "field-average-of-gradients", ("5.26",), "statistics_released",
        "ema = 0.9 * ema + 0.1 * clipped  # saved", group="replay",
    ),
)  # fmt: skip
"""Known when the detectors of this stage were written."""
