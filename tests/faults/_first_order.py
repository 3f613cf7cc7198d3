"""Faults planted in this library's first-order trainer, by patching what ``train`` calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainers import NoiseSource, PoissonSampler
from dpaudit.trainers import clipping as _clipping
from dpaudit.trainers import loop as _loop
from dpaudit.trainers import release as _release
from dpaudit.trainers.ghost import book as _ghost_book
from dpaudit.trainers.step import noisy_mean
from tests.faults._case import Case, Fault
from tests.faults._plain import shrunk
from tests.faults._problems import BATCH, RECORDS, first_order


def planted(
    name: str,
    rows: tuple[str, ...],
    expected: str,
    code: str,
    patches: Callable[[], tuple[Any, ...]],
    *,
    problem: dict[str, Any] | None = None,
    **more: Any,
) -> Fault:
    def build(seed: int) -> Case:
        adapter, plan = first_order(seed, **(problem or {}))
        return Case(adapter, plan, patches())

    return Fault(name=name, rows=rows, expected=expected, family="first order", code=code, build=build, **more)


def releasing(change: Callable[[dict[str, Any], list[Tensor]], None]) -> Callable[[], tuple[Any, ...]]:
    """Patch the release: ``change`` edits noise_std, normaliser and the noise that it is called with."""

    def changed(totals: list[Tensor], **options: Any) -> list[Tensor]:
        change(options, totals)
        return noisy_mean(totals, **options)

    return lambda: (patch.object(_release, "noisy_mean", changed),)


def _scaled(factor: float) -> Callable[[dict[str, Any], list[Tensor]], None]:
    def change(options: dict[str, Any], totals: list[Tensor]) -> None:
        options["noise_std"] *= factor

    return change


class _Seeded(NoiseSource):
    """What a run with a configured seed does."""

    def __init__(self) -> None:
        super().__init__(generator=torch.Generator().manual_seed(42))
        self.is_test = False


class _SameForEveryTensor(NoiseSource):
    """Every tensor's noise starts its stream again, as a seed for each call does."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        if std == 0 or not shape:
            return super().sample(shape, std, device)
        if not hasattr(self, "_held") or self._left == 0:
            self._held, self._left = torch.randn(4096, generator=self._generator(torch.device("cpu"))), 5
        self._left -= 1
        size = int(np.prod(shape))
        return (self._held[:size] * std).reshape(tuple(shape))


class _HalfPrecision(NoiseSource):
    """Noise cut to three levels a unit, as an 8-bit format would hold it."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        drawn = super().sample(shape, 1.0 if std else 0.0, device)
        return (drawn * 1.5).round() / 1.5 * std


def _weak_factors(norms: Tensor, bound: float) -> Tensor:
    # a slack that is subtracted in the denominator
    return _clipping._finite_or_zero(torch.clamp(bound / (norms - 0.2 * bound).clamp(min=1e-6), max=1.0), norms)


def _any_factors(norms: Tensor, bound: float) -> Tensor:
    return torch.clamp(bound / norms, max=1.0).nan_to_num(1.0)


class _Truncated(PoissonSampler):
    def draw(self) -> Any:
        return super().draw()[: BATCH + 1]


class _Wider(PoissonSampler):
    """The rate of 2,646 records taken for 3,072 (six classes of 512)."""

    def __init__(self, n_records: int, q: float, **options: Any) -> None:
        super().__init__(n_records, q * 3072 / 2646, **options)


class _Uneven(PoissonSampler):
    """Ten records stand twice in the index."""

    def draw(self) -> Any:
        drawn = super().draw()
        return np.unique(np.concatenate([drawn[drawn >= 10], np.flatnonzero(self._generator.random(10) < 0.19)]))


def _sampled(kind: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (patch.object(_loop, "sampler_for", lambda plan, n: kind(n, plan.sampling_probability)),)


def _no_cross(book: Any) -> Any:
    add = book.add

    def without(self: Any, parameter: Any, use: Any) -> None:
        before = len(self.squares)
        add(self, parameter, use)
        if len(self.squares) - before > 1:  # the cross terms come before the use's own square
            self.squares[before:-1] = []
            self.scales[before:-1] = []

    return without


def _last_use_only(book: Any) -> Any:
    add = book.add

    def overwriting(self: Any, parameter: Any, use: Any) -> None:
        layer = self.layer_of[parameter]
        tied = parameter in self.paired
        if tied:
            kept = [k for k, (own, _) in enumerate(self.squares) if own != layer]
            self.squares, self.scales = [self.squares[k] for k in kept], [self.scales[k] for k in kept]
        add(self, parameter, use)
        if tied:
            self.squares, self.scales = (
                [*self.squares[: len(kept)], self.squares[-1]],
                [
                    *self.scales[: len(kept)],
                    self.scales[-1],
                ],
            )

    return overwriting


def _book(change: Callable[[Any], Any]) -> Callable[[], tuple[Any, ...]]:
    return lambda: (patch.object(_ghost_book.Book, "add", change(_ghost_book.Book)),)


FAULTS = (
    planted(
        "fo-noise-without-C",
        ("5.1",),
        "noise_scale",
        "noise.sample(shape, sigma)  # C = 4",
        releasing(_scaled(0.25)),
        problem={"clipping_norm": 4.0},
        true_stage=shrunk(4),
    ),
    planted(
        "fo-noise-over-world",
        ("5.9", "per-rank"),
        "noise_scale",
        "each of 4 ranks: std / world, summed",
        releasing(_scaled(0.5)),
        true_stage=shrunk(2),
    ),
    planted(
        "fo-seeded-noise",
        ("5.7", "A1"),
        "noise_public_seed",
        "NoiseSource(generator=manual_seed(42))",
        lambda: (patch.object(_loop, "NoiseSource", _Seeded),),
    ),
    planted(
        "fo-stream-per-tensor",
        ("5.10",),
        "noise_correlated_coordinates",
        "for p in parameters: generator = fresh(seed)",
        lambda: (patch.object(_loop, "NoiseSource", _SameForEveryTensor),),
    ),
    planted(
        "fo-coarse-noise",
        ("5.28",),
        "noise_not_gaussian",
        "noise.to(float8)",
        lambda: (patch.object(_loop, "NoiseSource", _HalfPrecision),),
    ),
    planted(
        "fo-negative-slack",
        ("5.5",),
        "norm_underestimated",
        "factor = C / (norm - slack)",
        lambda: (patch.object(_clipping, "_flat", _weak_factors),),
        group="replay",
        true_stage=shrunk(1.25),
    ),
    planted(
        "fo-nan-passes",
        ("5.23",),
        "non_finite",
        "factors.nan_to_num(1.0)",
        lambda: (patch.object(_clipping, "_flat", _any_factors),),
        group="replay",
    ),
    planted(
        "fo-tied-cross-term",
        ("5.6", "tied-embedding"),
        "norm_underestimated",
        "norm² = embedding² + head²  # the product of the two is left out",
        _book(_no_cross),
        problem={"tied": True, "clipping_norm": 0.05},
        group="replay",
        true_stage=shrunk(2**0.5),
    ),
    planted(
        "fo-tied-overwritten",
        ("5.6", "tied-embedding"),
        "norm_underestimated",
        "norms[weight] = head²  # the second use overwrites the first",
        _book(_last_use_only),
        problem={"tied": True, "clipping_norm": 0.05},
        group="replay",
        true_stage=shrunk(1.7),
    ),
    planted(
        "fo-truncated-batches",
        ("5.13",),
        "sampling_batch_size",
        "indices[:max_batch]",
        _sampled(_Truncated),
        group="sampler",
    ),
    planted(
        "fo-wrong-size-in-q",
        ("Z2", "5.13"),
        "sampling_rate",
        "q = batch / (classes * 512)",
        _sampled(_Wider),
        group="sampler",
        true_stage=lambda s: _with_rate(s, BATCH / RECORDS * 3072 / 2646),
    ),
    planted(
        "fo-repeated-rows",
        ("5.11",),
        "sampling_unequal",
        "dataset = dataset + dataset[:10]",
        _sampled(_Uneven),
        group="sampler",
    ),
)


def _with_rate(stage: Any, q: float) -> Any:
    import dataclasses

    return dataclasses.replace(stage, sampling_probability=q)
