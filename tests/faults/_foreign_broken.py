"""Broken steps in foreign styles: each a style with one fault, and the cause that must be named first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.faults._case import Case, Fault
from tests.faults._foreign import EXPECTED, RANKS, SIZE, Foreign, Style, case_of
from tests.faults._foreign_zo import ZoStyle, zo_case


class NoNoise(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [torch.zeros(p.shape) for p in self.weights]


class NoNoiseRaises(NoNoise):
    def step(self, indices: Sequence[int]) -> None:
        if not len(indices):
            raise IndexError("index 0 is out of bounds for dimension 0 with size 0")
        super().step(indices)


class BatchClip(Foreign):
    """torch's own clip on the batch's gradient."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        if not len(indices):
            return [torch.zeros(p.shape) for p in self.weights]
        total = torch.autograd.grad(self.losses(indices).sum(), self.weights)
        return self._one([g.float() for g in total], self.clip_at)


class BatchClipRaises(BatchClip):
    """The same in a loop that divides by the batch's size."""

    def divisor(self, indices: Sequence[int]) -> float:
        return EXPECTED if 1 / len(indices) else 0.0


class OneScalar(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        z = float(self._normal(())) * self.std
        return [torch.full(p.shape, z) for p in self.weights]


class OneScalarRaises(OneScalar):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n * (len(indices) / len(indices)) for n in super().noise(indices)]


class NotClipped(Foreign):
    def scaled(self, gradient: list[Tensor]) -> list[Tensor]:
        n = self.norm(gradient)
        return gradient if np.isfinite(n) else [torch.zeros_like(g) for g in gradient]


class HeadNotClipped(Foreign):
    def scaled(self, gradient: list[Tensor]) -> list[Tensor]:
        if not np.isfinite(self.norm(gradient)):
            return [torch.zeros_like(g) for g in gradient]
        return [*super().scaled(gradient[:-1]), gradient[-1]]


class ClipAtOneAndAHalf(Foreign):
    def scaled(self, gradient: list[Tensor]) -> list[Tensor]:
        return [1.5 * g for g in super().scaled(gradient)]


class LayersWhole(Foreign):
    def scaled(self, gradient: list[Tensor]) -> list[Tensor]:
        return [self._one([g], self.clip_at)[0] for g in gradient]


class RealisedBatch(Foreign):
    def divisor(self, indices: Sequence[int]) -> float:
        return float(max(len(indices), 1))


class RealisedBatchRaises(Foreign):
    def divisor(self, indices: Sequence[int]) -> float:
        return 1 / (1 / len(indices))


class HalfNoise(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n / 2 for n in super().noise(indices)]


class HalfNoiseSkips(HalfNoise):
    """Half of the noise, and a loop that passes over empty draws."""

    def step(self, indices: Sequence[int]) -> None:
        if len(indices):
            super().step(indices)


class Skips(Foreign):
    def step(self, indices: Sequence[int]) -> None:
        if len(indices):
            super().step(indices)


class NoiseOfMatrices(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n if n.ndim > 1 else torch.zeros_like(n) for n in super().noise(indices)]


class SameNoise(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        self.secret.manual_seed(self.secret.initial_seed())
        return super().noise(indices)


class GlobalNoise(Foreign):
    def _normal(self, shape: object) -> Tensor:
        return torch.randn(shape)  # type: ignore[arg-type, call-overload, no-any-return]


class RanksDivideTwice(Foreign):
    """Each worker's share of the noise is divided by the number of workers and not by its root."""

    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n / math.sqrt(RANKS) for n in super().noise(indices)]


class MeanLoss(Foreign):
    """Every record's gradient of the batch's mean loss is clipped."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        self.count = max(len(indices), 1)
        return super().gather(indices)

    def gradient(self, index: int) -> list[Tensor]:
        return [g / self.count for g in super().gradient(index)]


class BatchStatistics(Foreign):
    """Features are centred by the batch before each record's own gradient is taken."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        self.shift = self.x[self.factors.records(indices)].mean(0) if len(indices) else torch.zeros(())
        return super().gather(indices)

    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = self.factors.records(indices)
        losses = nn.functional.cross_entropy(self.model(self.x[rows] - self.shift), self.y[rows], reduction="none")
        return self.factors.scale(losses, indices)


class GradientLeft(Foreign):
    """The sum of one step is still there at the next."""

    left: list[Tensor] | None = None

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = super().gather(indices)
        self.left = total if self.left is None else [a + b for a, b in zip(self.left, total, strict=True)]
        return [t.clone() for t in self.left]


class FixedSize(Foreign):
    def draw(self) -> list[int]:
        return self.drawing.choice(SIZE, round(EXPECTED), replace=False).tolist()  # type: ignore[no-any-return]


class Epochs(Foreign):
    def draw(self) -> list[int]:
        return next(self.order)


class DoubleRate(Foreign):
    def draw(self) -> list[int]:
        return np.flatnonzero(self.drawing.random(SIZE) < 0.2).tolist()  # type: ignore[no-any-return]


class Undefined(Foreign):
    def _one(self, gradient: list[Tensor], bound: float) -> list[Tensor]:
        n = self.norm(gradient)
        return [g * (bound / max(n, bound)) for g in gradient]


# -- written after the detectors were frozen ------------------------------------------------------------------------
class ByValue(Foreign):
    """clip_grad_value_ on each record's gradient."""

    def _one(self, gradient: list[Tensor], bound: float) -> list[Tensor]:
        return [g.nan_to_num(0, bound, -bound).clamp(-bound, bound) for g in gradient]


class FirstLayerNorm(Foreign):
    """The norm of the first parameter alone."""

    def _one(self, gradient: list[Tensor], bound: float) -> list[Tensor]:
        n = self.norm(gradient[:1])
        if not np.isfinite(self.norm(gradient)):
            return [torch.zeros_like(g) for g in gradient]
        return [g * min(1.0, bound / max(n, 1e-12)) for g in gradient]


class EveryThird(Foreign):
    """Noise where the step's number is no multiple of three."""

    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n * (self.steps % 3 != 2) for n in super().noise(indices)]


class NoiseByBatch(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [n * math.sqrt(max(len(indices), 1) / EXPECTED) for n in super().noise(indices)]


class LaplaceNoise(Foreign):
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        scale = self.std / math.sqrt(2)
        return [torch.as_tensor(self.numbers.laplace(0, scale, tuple(p.shape))).float() for p in self.weights]


class PairClip(Foreign):
    """The mean of two records is clipped."""

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        total = [torch.zeros(p.shape) for p in self.weights]
        for k in range(0, len(indices), 2):
            pair = list(indices[k : k + 2])
            mean = [g / len(pair) for g in torch.autograd.grad(self.losses(pair).sum(), self.weights)]
            total = [t + len(pair) * g for t, g in zip(total, self._one(mean, self.clip_at), strict=True)]
        return total


class NoNoiseSkips(NoNoise):
    """No noise, and empty draws are passed over."""

    def step(self, indices: Sequence[int]) -> None:
        if len(indices):
            super().step(indices)


class OneScalarALayer(Foreign):
    """One number of noise for every parameter."""

    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        return [torch.full(p.shape, float(self._normal(()))) * self.std for p in self.weights]


class Substitutes(Foreign):
    """An empty draw becomes the first record."""

    def step(self, indices: Sequence[int]) -> None:
        super().step(indices if len(indices) else [0])


class RealisedSum(Foreign):
    """The mean over the batch times the planned size."""

    def released(self, indices: Sequence[int]) -> list[Tensor]:
        total = [t / max(len(indices), 1) for t in self.gather(indices)]
        noise = [torch.zeros(p.shape) for p in self.weights] if self.quiet else self.noise(indices)
        return [t + n / EXPECTED for t, n in zip(total, noise, strict=True)]


class SeededDraws(Foreign):
    """The sampler's seed is a constant of the program."""

    def restart(self) -> None:
        super().restart()
        self.drawing = np.random.default_rng(42)


class TwiceABatch(Foreign):
    """Every minibatch is used for two steps."""

    held: list[int] | None = None

    def draw(self) -> list[int]:
        if self.held is None:
            self.held = super().draw()
            return self.held
        again, self.held = self.held, None
        return again


class Favoured(Foreign):
    """Ten records with three times the rate, the others with less."""

    def draw(self) -> list[int]:
        chance = np.where(np.arange(SIZE) < 10, 0.3, 0.06)
        return np.flatnonzero(self.drawing.random(SIZE) < chance).tolist()  # type: ignore[no-any-return]


def _fault(name: str, expected: str, style: Style, kind: type[Foreign], group: str = "replay") -> Fault:
    def build(seed: int) -> Case:
        return case_of(style, seed, kind)

    code = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return Fault(
        name=f"foreign-{name}", rows=("styles",), expected=expected, family="foreign", code=code, build=build,
        group=group,
    )  # fmt: skip


def _zo(name: str, expected: str, style: ZoStyle, group: str = "replay") -> Fault:
    def build(seed: int) -> Case:
        return zo_case(style, seed)

    return Fault(
        name=f"foreign-{name}", rows=("styles",), expected=expected, family="foreign", code=style.fault, build=build,
        group=group,
    )  # fmt: skip


S: Callable[..., Style] = Style
FAULTS: tuple[Fault, ...] = (
    _fault("no-noise-raises", "noise_missing", S(name="a", model="wide"), NoNoiseRaises, "noise"),
    _fault("no-noise-adam", "noise_missing", S(name="b", update="adam", rate=1e-3), NoNoise, "noise"),
    _fault("no-noise-fixed", "noise_missing", S(name="c", sampling="fixed"), NoNoise, "noise"),
    _fault("batch-clip-raises", "clipped_after_averaging", S(name="d", model="conv"), BatchClipRaises),
    _fault("batch-clip-adamw", "clipped_after_averaging", S(name="e", update="adamw", rate=1e-3), BatchClip),
    _fault("batch-clip-fixed", "clipped_after_averaging", S(name="f", sampling="fixed"), BatchClip),
    _fault("batch-clip-dropout", "clipped_after_averaging", S(name="g", dropout=0.2), BatchClip),
    _fault("batch-clip-decay", "clipped_after_averaging", S(name="h", update="manual decay"), BatchClip),
    _fault("one-scalar-raises", "noise_correlated_coordinates", S(name="i"), OneScalarRaises, "noise"),
    _fault("one-scalar-shuffled", "noise_correlated_coordinates", S(name="j", sampling="shuffle"), OneScalar, "noise"),
    _fault("unclipped-momentum", "unclipped", S(name="k", update="momentum", rate=0.1), NotClipped),
    _fault("unclipped-dropout", "unclipped", S(name="l", dropout=0.2, model="wide"), NotClipped),
    _fault("head-unclipped", "unclipped_parameter", S(name="m", model="norm"), HeadNotClipped),
    _fault("clip-1.5", "norm_underestimated", S(name="n", update="sgd", rate=0.1), ClipAtOneAndAHalf),
    _fault("clip-1.5-fixed", "norm_underestimated", S(name="o", sampling="fixed"), ClipAtOneAndAHalf),
    _fault("layers-whole", "norm_underestimated", S(name="p", model="conv"), LayersWhole),
    _fault("realised-batch", "normaliser_realised_batch", S(name="q", update="adam", rate=1e-3), RealisedBatch),
    _fault("realised-batch-raises", "normaliser_realised_batch", S(name="r", noise="numpy"), RealisedBatchRaises),
    _fault("half-noise-skips", "noise_scale", S(name="s", noise="ranks"), HalfNoiseSkips, "noise"),
    _fault("half-noise-decay", "noise_scale", S(name="t", update="decay", rate=0.5), HalfNoise, "noise"),
    _fault("half-noise-shuffled", "noise_scale", S(name="u", sampling="shuffle"), HalfNoise, "noise"),
    _fault("skips-empty", "empty_batch", S(name="v", grads="micro"), Skips, "noise"),
    _fault("noise-of-matrices", "noise_missing_on_parameter", S(name="w", update="sgd"), NoiseOfMatrices, "noise"),
    _fault("same-noise", "noise_repeated", S(name="x", update="adam", rate=1e-3), SameNoise, "noise"),
    _fault("same-noise-fixed", "noise_repeated", S(name="y", sampling="fixed"), SameNoise, "noise"),
    _fault("global-noise", "noise_public_seed", S(name="z", grads="vmap"), GlobalNoise, "noise"),
    _fault("workers-divide", "noise_scale", S(name="aa", noise="ranks", update="momentum"), RanksDivideTwice, "noise"),
    _fault("mean-loss", "coupled_examples", S(name="ab"), MeanLoss),
    _fault("batch-statistics", "coupled_examples", S(name="ac", update="sgd", rate=0.5), BatchStatistics),
    _fault("gradient-left", "carried_over", S(name="ad", update="sgd", rate=0.5), GradientLeft),
    _fault("fixed-size", "sampling_batch_size", S(name="ae", update="adam", rate=1e-3), FixedSize, "sampler"),
    _fault("epochs", "sampling_without_replacement", S(name="af"), Epochs, "sampler"),
    _fault("double-rate", "sampling_rate", S(name="ag", dropout=0.1), DoubleRate, "sampler"),
    _fault("undefined", "non_finite", S(name="ah", update="momentum", rate=0.1), Undefined),
    _zo("zo-batch-clip", "clipped_after_averaging", ZoStyle(name="zo", directions=4, fault="batch clip")),
    _zo("zo-no-noise", "noise_missing", ZoStyle(name="zo", fault="no noise"), "noise"),
    _zo("zo-uncounted", "ledger_directions", ZoStyle(name="zo", directions=4, fault="directions not counted")),
)  # fmt: skip
"""Written with the detectors."""

LATER: tuple[Fault, ...] = (
    _fault("later-clip-by-value", "norm_underestimated", S(name="a", update="rmsprop", rate=1e-3), ByValue),
    _fault("later-frobenius-of-first", "norm_underestimated", S(name="b", model="gru", update="sgd"), FirstLayerNorm),
    _fault("later-noise-once-an-epoch", "noise_missing_on_steps",
        S(name="c", update="adam", rate=1e-3), EveryThird, "noise"),
    _fault("later-noise-by-batch-root", "noise_depends_on_batch", S(name="d", model="conv"), NoiseByBatch, "noise"),
    _fault("later-laplace", "noise_not_gaussian", S(name="e", update="momentum", rate=0.1), LaplaceNoise, "noise"),
    _fault("later-no-clip-none", "unclipped", S(name="f", sampling="none", model="linear"), NotClipped),
    _fault("later-batch-clip-recurrent", "clipped_after_averaging",
        S(name="g", model="gru", update="rmsprop", rate=1e-3), BatchClip),
    _fault("later-micro-batch-clip", "clipped_after_averaging", S(name="h", model="embedding"), PairClip),
    _fault("later-half-noise-dropout", "noise_scale",
        S(name="i", dropout=0.3, update="adam", rate=1e-3), HalfNoise, "noise"),
    _fault("later-half-noise-bf16", "noise_scale", S(name="j", dtype="bfloat16", rate=0.3), HalfNoise, "noise"),
    _fault("later-no-noise-skips", "noise_missing", S(name="k", update="sgd", rate=0.1), NoNoiseSkips, "noise"),
    _fault("later-one-scalar-layer", "noise_correlated_coordinates",
        S(name="l", model="wide", update="adagrad", rate=0.01), OneScalarALayer, "noise"),
    _fault("later-substitutes", "empty_batch", S(name="m", update="adamw", rate=1e-3), Substitutes, "noise"),
    _fault("later-realised-fixed-mean", "normaliser_realised_batch",
        S(name="n", dropout=0.0, update="nesterov", rate=0.1), RealisedSum),
    _fault("later-seeded-sampler", "sampling_public_seed", S(name="o", update="sgd"), SeededDraws, "sampler"),
    _fault("later-twice-a-batch", "sampling_repeated_batches", S(name="p", grads="vmap"), TwiceABatch, "sampler"),
    _fault("later-some-favoured", "sampling_unequal", S(name="q", noise="ranks"), Favoured, "sampler"),
    _zo("later-zo-third-noise", "noise_scale", ZoStyle(name="zo", directions=4, fault="a third of the noise"), "noise"),
    _zo("later-zo-one-noise", "noise_correlated_coordinates",
        ZoStyle(name="zo", directions=4, fault="one noise for all directions"), "noise"),
    _zo("later-zo-directions-stream", "noise_public_seed",
        ZoStyle(name="zo", fault="noise from the directions' stream"), "noise"),
    _zo("later-zo-not-clipped", "unclipped", ZoStyle(name="zo", directions=2, fault="not clipped")),
    _zo("later-zo-twice", "norm_underestimated", ZoStyle(name="zo", fault="twice the bound")),
    _zo("later-zo-realised", "normaliser_realised_batch", ZoStyle(name="zo", directions=4, fault="realised batch")),
    _zo("later-zo-undefined", "non_finite", ZoStyle(name="zo", fault="undefined")),
)  # fmt: skip
"""Written after the detectors were frozen, with the expected name written down beforehand."""
