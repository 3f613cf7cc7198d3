"""Faults of a plain PyTorch DP-SGD loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpaudit.privacy.stage import Sampling
from tests.faults._case import Case, Fault
from tests.faults._plain import RATE, PlainLoop, TokenLoop, shrunk
from tests.faults._plain_loops import (
    RANKS,
    Accumulated,
    BatchMean,
    BatchNormed,
    BatchUsedTwice,
    BiasUnclipped,
    EmbeddingUnclipped,
    EmptySkipped,
    FixedSize,
    FlooredSize,
    LayersEach,
    LossPublished,
    MicroBatchMean,
    MicroBatchRate,
    NotClipped,
    OutputGradientClipped,
    RanksOverlap,
    RealisedBatch,
    SeededSampler,
    Shuffled,
    TokenMean,
    UndefinedPasses,
    WithReplacement,
)


def case_of(loop: type[PlainLoop]) -> Any:
    def build(seed: int) -> Case:
        made = loop(seed)
        return Case(made.adapter(), made.plan())

    return build


def plain(loop: type[PlainLoop], name: str, rows: tuple[str, ...], expected: str, code: str, **more: Any) -> Fault:
    return Fault(name=name, rows=rows, expected=expected, family="plain", code=code, build=case_of(loop), **more)


# -- noise ----------------------------------------------------------------------------------------------------------
class NotTimesC(PlainLoop):
    clipping_norm = 4.0

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [torch.randn(t.shape, generator=self.secret) * self.noise_multiplier for t in total]


class DividedTwice(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n / self.normaliser for n in super().noise(total, indices)]


class TenPercentShort(PlainLoop):
    noise_std = 0.9 * PlainLoop.noise_multiplier * PlainLoop.clipping_norm  # type: ignore[assignment]


class NoNoise(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [torch.zeros_like(t) for t in total]


class SameSeedEveryStep(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        if not hasattr(self, "secret_seed"):
            self.secret_seed = self.secret.initial_seed()
        self.secret.manual_seed(self.secret_seed)
        return super().noise(total, indices)

    def restart(self) -> None:
        super().restart()
        self.secret_seed = self.secret.initial_seed()


class NoiseUsedTwice(PlainLoop):
    held: list[Tensor] | None = None

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        if self.held is None:
            self.held = super().noise(total, indices)
            return self.held
        again, self.held = self.held, None
        return again


class GlobalStream(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [torch.randn(t.shape) * self.noise_std for t in total]


class OneScalar(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        scalar = torch.randn((), generator=self.secret) * self.noise_std
        return [scalar.expand(t.shape) for t in total]


class SameForEveryShard(PlainLoop):
    """Two processes hold half of the coordinates each and seed their streams alike."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        size = sum(t.numel() for t in total)
        half = torch.randn((size + 1) // 2, generator=self.secret) * self.noise_std
        flat = torch.cat([half, half])[:size]
        return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in total]), total, strict=True)]


class RanksDivideByWorld(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        parts = [super(RanksDivideByWorld, self).noise(total, indices) for _ in range(RANKS)]
        return [sum(p[k] for p in parts) / RANKS for k in range(len(total))]  # type: ignore[misc]


class RankZeroAveraged(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [n / RANKS for n in super().noise(total, indices)]


class EveryFourthWithout(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        drawn = super().noise(total, indices)
        return drawn if self.steps % 4 else [torch.zeros_like(t) for t in total]


class NoNoiseOnBias(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [torch.zeros_like(n) if n.ndim == 1 else n for n in super().noise(total, indices)]


class HalfNoiseOnEmbedding(TokenLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        first, *rest = super().noise(total, indices)
        return [first / 2, *rest]


class PerMicroBatch(PlainLoop):
    """Every micro-batch adds noise for the share of the batch that it expects to be."""

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        expected = self.normaliser / self.micro
        parts = math.ceil(len(indices) / self.micro)
        return [n * math.sqrt(max(parts, 1) / expected) for n in super().noise(total, indices)]


class UniformNoise(PlainLoop):
    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        width = math.sqrt(12) * self.noise_std
        return [(torch.rand(t.shape, generator=self.secret) - 0.5) * width for t in total]


def _subset(stage: Any, **changes: Any) -> Any:
    return dataclasses.replace(stage, **changes)


FAULTS = (
    plain(
        NotTimesC,
        "noise-not-times-C",
        ("5.1",),
        "noise_scale",
        "noise = randn() * sigma  # C = 4 forgotten",
        true_stage=shrunk(4),
    ),
    plain(
        DividedTwice, "noise-divided-twice", ("5.2",), "noise_scale", "(clipped + noise / L) / L", true_stage=shrunk(6)
    ),
    plain(
        TenPercentShort,
        "noise-ten-percent-short",
        ("5.1",),
        "noise_scale",
        "std = 0.9 * sigma * C",
        true_stage=shrunk(1 / 0.9),
    ),
    plain(NoNoise, "no-noise", ("5.12",), "noise_missing", "noise = zeros_like(clipped)"),
    plain(
        SameSeedEveryStep,
        "same-seed-every-step",
        ("5.7",),
        "noise_repeated",
        "generator.manual_seed(seed) inside step()",
    ),
    plain(NoiseUsedTwice, "noise-used-twice", ("5.7",), "noise_repeated", "if step % 2: noise = previous_noise"),
    plain(
        GlobalStream,
        "noise-from-global-stream",
        ("5.7", "D13"),
        "noise_public_seed",
        "torch.manual_seed(42); noise = torch.randn(...)",
    ),
    plain(
        OneScalar,
        "one-scalar-for-all",
        ("D4",),
        "noise_correlated_coordinates",
        "noise = torch.randn(1) * sigma * C  # broadcast",
    ),
    plain(
        SameForEveryShard,
        "shards-share-stream",
        ("5.10",),
        "noise_correlated_coordinates",
        "each shard: manual_seed(seed)  # rank left out",
    ),
    plain(
        RanksDivideByWorld,
        "ranks-divide-by-world",
        ("5.9",),
        "noise_scale",
        "rank noise std = sigma * C / world, then sum",
        true_stage=shrunk(2),
    ),
    plain(
        RankZeroAveraged,
        "rank-zero-then-averaged",
        ("5.10",),
        "noise_scale",
        "noise on rank 0 only, then all_reduce(mean)",
        true_stage=shrunk(4),
    ),
    plain(
        EveryFourthWithout,
        "accumulation-step-without-noise",
        ("5.12",),
        "noise_missing_on_steps",
        "if micro_step % 4: add_noise()",
    ),
    plain(NoNoiseOnBias, "no-noise-on-bias", ("5.5",), "noise_missing_on_parameter", "for p in matrices: add_noise(p)"),
    plain(
        HalfNoiseOnEmbedding,
        "half-noise-on-embedding",
        ("5.5",),
        "noise_scale_parameter",
        "std = sigma * C / 2 for sparse gradients",
        true_stage=shrunk(2),
    ),
    plain(
        PerMicroBatch,
        "noise-per-micro-batch",
        ("5.12", "accumulation"),
        "noise_depends_on_batch",
        "add_noise() after every micro-batch",
    ),
    plain(UniformNoise, "uniform-noise", ("5.1",), "noise_not_gaussian", "noise = (rand() - 0.5) * sqrt(12) * std"),
    plain(
        MicroBatchMean,
        "clip-micro-batch-mean",
        ("5.3",),
        "clipped_after_averaging",
        "clip(mean of micro-batch)",
        group="replay",
        true_stage=shrunk(2),
    ),
    plain(
        BatchMean,
        "clip-batch-mean",
        ("5.4", "D4"),
        "clipped_after_averaging",
        "clip_grad_norm_(batch gradient)",
        group="replay",
        true_stage=shrunk(12),
    ),
    plain(
        Accumulated,
        "clip-accumulated",
        ("accumulation",),
        "clipped_after_averaging",
        "p.grad += g; clip(p.grad)",
        group="replay",
        true_stage=shrunk(2),
    ),
    plain(
        BiasUnclipped,
        "bias-unclipped",
        ("5.5",),
        "unclipped_parameter",
        "norm over weights only; bias added as it is",
        group="replay",
    ),
    plain(
        EmbeddingUnclipped,
        "embedding-unclipped",
        ("5.5",),
        "unclipped_parameter",
        "layers without a rule are left out of the clip",
        group="replay",
    ),
    plain(NotClipped, "no-clip", ("5.5",), "unclipped", "clipped = gradient", group="replay"),
    plain(
        LayersEach,
        "layers-clipped-at-C-each",
        ("5.5",),
        "norm_underestimated",
        "for layer: clip(layer, C)  # not C / sqrt(layers)",
        group="replay",
        true_stage=shrunk(2),
    ),
    plain(
        OutputGradientClipped,
        "backprop-clipping",
        ("5.29",),
        "norm_underestimated",
        "logits.register_hook(clip)",
        group="replay",
    ),
    plain(
        UndefinedPasses,
        "undefined-passes-clip",
        ("5.23",),
        "non_finite",
        "factor = C / max(norm, C)  # norm is nan",
        group="replay",
    ),
    plain(
        BatchNormed, "batch-statistics", ("5.19",), "coupled_examples", "hidden -= hidden.mean(dim=0)", group="replay"
    ),
    plain(
        TokenMean,
        "token-mean",
        ("token-mean", "5.19"),
        "coupled_examples",
        "loss = sum(token losses) / tokens in batch",
        group="replay",
    ),
    plain(
        RealisedBatch,
        "divide-by-realised-batch",
        ("5.18", "Z2"),
        "normaliser_realised_batch",
        "gradient / len(batch)",
        group="replay",
    ),
    plain(
        FlooredSize,
        "floored-size",
        ("5.18", "normaliser"),
        "normaliser_data_size",
        "L = int(len(dataset) * q)",
        group="replay",
    ),
    plain(EmptySkipped, "empty-batch-skipped", ("5.24",), "empty_batch", "if len(batch) == 0: continue"),
    plain(
        LossPublished, "loss-published", ("5.26",), "private_output", "log({'train_loss': loss.mean()})", group="replay"
    ),
    plain(
        Shuffled,
        "shuffled-epochs",
        ("5.14",),
        "sampling_without_replacement",
        "DataLoader(shuffle=True)",
        group="sampler",
        true_stage=lambda s: _subset(s, sampling=Sampling.NONE, sampling_probability=1.0, steps=20),
    ),
    plain(
        FixedSize,
        "fixed-size-batches",
        ("5.15", "D3"),
        "sampling_batch_size",
        "rng.choice(n, batch, replace=False)",
        group="sampler",
    ),
    plain(
        WithReplacement,
        "with-replacement",
        ("5.14",),
        "sampling_repeats_in_batch",
        "rng.choice(n, batch, replace=True)",
        group="sampler",
    ),
    plain(
        RanksOverlap,
        "ranks-overlap",
        ("5.11",),
        "sampling_rate",
        "every rank samples the whole data set",
        group="sampler",
        true_stage=lambda s: _subset(s, sampling_probability=RANKS * RATE),
    ),
    plain(
        MicroBatchRate,
        "micro-batch-q-accounted",
        ("5.13",),
        "sampling_rate",
        "q = micro_batch / n",
        group="sampler",
        true_stage=lambda s: _subset(s, sampling_probability=3 * RATE),
    ),
    plain(
        SeededSampler,
        "sampler-replays-after-resume",
        ("5.17",),
        "sampling_public_seed",
        "rng = default_rng(seed)  # restored from the checkpoint",
        group="sampler",
    ),
    plain(
        BatchUsedTwice,
        "batch-used-twice",
        ("5.14",),
        "sampling_repeated_batches",
        "for batch in loader: step(); step()",
        group="sampler",
    ),
)
