"""Faults written after the detectors were frozen: what the examiner makes of code it was not written against."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dpaudit import MemoryJournal
from dpaudit.storage.journal import DiskJournal
from dpaudit.trainers import NoiseSource, PerLayer
from dpaudit.trainers import loop as _loop
from dpaudit.trainers.clipping import _flat
from dpaudit.trainers.contribution import RunningSum
from dpaudit.trainers.ghost import book as _ghost_book
from dpaudit.trainers.zeroth_order import steps as _zo_steps
from dpaudit.trainers.zeroth_order import train as _zoso
from dpaudit.trainers.zeroth_order import weights as _zo_weights
from dpaudit.trainers.zeroth_order.step import release
from tests.faults._case import Case, Fault, accountant
from tests.faults._first_order import planted as first_order_fault
from tests.faults._held_out_loops import (
    Antithetic,
    ByLargestNorm,
    CachedFourTimes,
    CentredLogits,
    ClipShare,
    CountsRealLosses,
    EmptyBecomesOne,
    FirstLayerNorm,
    GlobalSampler,
    GrowsWithBatch,
    HalfAndHalf,
    HeadUnclipped,
    InfinityIsLarge,
    InOrder,
    InPairs,
    LaplaceInstead,
    LargestCoordinate,
    MeanOfThree,
    NoiseWarmUp,
    OneDirection,
    OutliersPass,
    RootTwoShort,
    RoundedSize,
    RowsInBatchOnly,
    SmallDrawsRejected,
    Truncated,
    ValueClip,
)
from tests.faults._plain import PlainLoop, shrunk
from tests.faults._plain_faults import plain
from tests.faults._zeroth_order import planted as zeroth_order_fault


# -- this library's trainers ------------------------------------------------------------------------------------------
class _VectorsOnly(NoiseSource):
    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        drawn = super().sample(shape, std, device)
        return drawn if len(tuple(shape)) < 2 else torch.zeros_like(drawn)


class _OneForAllDirections(NoiseSource):
    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        return super().sample((1,), std, device).expand(tuple(shape)).clone()


class _GaussianForLaplace(NoiseSource):
    """Whatever is asked for, the determinant of these four is a Gaussian of the Laplace law's variance."""

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        drawn = super().sample(shape, std, device)
        if tuple(shape)[:1] != (4,):
            return drawn
        out = torch.zeros_like(drawn)
        out[0], out[1] = math.sqrt(2) * drawn[0], 1.0
        return out


def _never_cleared() -> Any:
    """Sums that stay in their buffers, over steps and runs, and are added to."""
    kept: dict[int, Tensor] = {}
    total = RunningSum.total

    def carried(self: RunningSum, bound: float) -> Any:
        parameters = self._parameters
        found = total(self, bound)
        sums = dict(zip(parameters, found.totals(parameters), strict=True))
        for place, value in enumerate(sums.values()):
            if place in kept:
                value.add_(kept[place])
            kept[place] = value
        return dataclasses.replace(found, sums=sums)

    return carried


def _each_layer_whole(self: PerLayer, norms: Tensor) -> Tensor:
    return torch.stack([_flat(n, self.clipping_norm) for n in norms])


def _vectors_free(self: Any, parameter: Any, use: Any, _add: Any = _ghost_book.Book.add) -> None:
    before = len(self.squares)
    _add(self, parameter, use)
    if parameter.ndim == 1:
        self.squares[before:] = [(layer, torch.zeros_like(v)) for layer, v in self.squares[before:]]


def _realised(stage: Any, differences: Tensor, noise: Any) -> list[float]:
    real = release(
        _zo_steps.clip_differences(differences, stage.plan.clipping_norm, stage.clip), noise_std=stage.plan.noise_std,
        normaliser=max(differences.shape[1], 1), noise=noise,
    )  # fmt: skip
    return real if differences.shape[1] else [r / stage.plan.normaliser for r in real]


def _half_laplace(clipped: Tensor, **options: Any) -> list[float]:
    return release(clipped, **{**options, "noise_std": options["noise_std"] / 2})


def _double_rate(
    parameters: Any, directions: Any, released: Any, _apply: Any = _zo_weights.apply_update, **options: Any
) -> None:
    _apply(parameters, directions, released, **{**options, "learning_rate": 2 * options["learning_rate"]})


def _recorded(**changes: float) -> Any:
    def begin(self: Any, stage: Any, /, _begin: Any = MemoryJournal.begin) -> None:
        _begin(self, dataclasses.replace(stage, **{k: getattr(stage, k) * f for k, f in changes.items()}))

    return lambda: (patch.object(MemoryJournal, "begin", begin),)


# -- ledger -----------------------------------------------------------------------------------------------------------
def _broken_chain(seed: int) -> Case:
    loop = PlainLoop(seed)
    adapter, path = loop.adapter(), Path(tempfile.mkdtemp()) / "ledger.jsonl"
    journal = DiskJournal(path, relation="add_or_remove_one", unit="record", audit_plan_sha256=None)
    for _ in range(3):
        journal.begin(loop.stage())
        journal.count()
        journal.seal("checkpoint")
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], lines[3]]) + b"\n")
    adapter.ledger_path = path  # type: ignore[attr-defined]
    return Case(adapter, loop.plan())


def _fewer_steps_claimed(seed: int) -> Case:
    loop = PlainLoop(seed)
    plan = loop.plan()
    quarter = dataclasses.replace(plan.ledger(), stages=(dataclasses.replace(plan.stage, steps=plan.stage.steps // 4),))
    return Case(loop.adapter(), dataclasses.replace(plan, epsilon=accountant(quarter, 1e-3)))


def _noise(source: Any, module: Any = _loop) -> Any:
    return lambda: (patch.object(module, "NoiseSource", source),)


FAULTS = (
    plain(
        RootTwoShort,
        "held-noise-root-two-short",
        ("5.1",),
        "noise_scale",
        "std = sigma * C / sqrt(2)",
        true_stage=shrunk(2**0.5),
    ),
    plain(Truncated, "held-noise-truncated", ("5.1",), "noise_not_gaussian", "noise.clamp(-2 * std, 2 * std) * 1.137"),
    plain(LaplaceInstead, "held-laplace-instead", ("5.1",), "noise_not_gaussian", "Laplace noise of the same variance"),
    plain(
        Antithetic,
        "held-noise-antithetic",
        ("5.7",),
        "noise_correlated_steps",
        "noise = -previous  # variance reduction",
    ),
    plain(
        OneDirection,
        "held-noise-in-one-direction",
        ("D4",),
        "noise_correlated_coordinates",
        "noise = scalar * fixed_direction",
    ),
    plain(
        RowsInBatchOnly,
        "held-noise-on-touched-rows",
        ("5.5",),
        "noise_missing_on_parameter",
        "noise * (gradient != 0).any(1)",
    ),
    plain(NoiseWarmUp, "held-noise-warm-up", ("5.12",), "noise_missing_on_steps", "std * min(1, step / 10)"),
    plain(
        GrowsWithBatch,
        "held-noise-grows-with-batch",
        ("5.18",),
        "noise_depends_on_batch",
        "std * sqrt(max(len(batch), L) / L)",
    ),
    plain(
        MeanOfThree,
        "held-clip-mean-of-three",
        ("5.3",),
        "clipped_after_averaging",
        "clip(mean of three)",
        group="replay",
        true_stage=shrunk(2),
    ),
    plain(
        LargestCoordinate,
        "held-largest-coordinate",
        ("5.5",),
        "norm_underestimated",
        "norm = g.abs().max()",
        group="replay",
    ),
    plain(ValueClip, "held-value-clip", ("5.5",), "norm_underestimated", "clip_grad_value_(C)", group="replay"),
    plain(
        FirstLayerNorm,
        "held-first-layer-norm",
        ("5.5",),
        "norm_underestimated",
        "norm = gradients[0].norm()",
        group="replay",
    ),
    plain(OutliersPass, "held-outliers-pass", ("5.5",), "unclipped", "if norm < 100: clip()", group="replay"),
    plain(
        HeadUnclipped, "held-head-unclipped", ("5.5",), "unclipped_parameter", "for p in body: clip(p)", group="replay"
    ),
    plain(
        InfinityIsLarge,
        "held-infinity-is-large",
        ("5.23",),
        "non_finite",
        "nan_to_num(1e3) after the clip",
        group="replay",
    ),
    plain(
        CentredLogits,
        "held-centred-logits",
        ("5.19",),
        "coupled_examples",
        "logits - logits.mean(0) / 2",
        group="replay",
    ),
    plain(
        ByLargestNorm,
        "held-by-largest-norm",
        ("5.19",),
        "clipped_after_averaging",
        "g * C / max(norms)",
        group="replay",
    ),
    plain(
        CountsRealLosses,
        "held-divide-by-counted",
        ("5.18",),
        "normaliser_realised_batch",
        "sum / (losses != 0).sum()",
        group="replay",
    ),
    plain(
        RoundedSize,
        "held-rounded-size",
        ("5.18",),
        "normaliser_data_size",
        "L = round(len(dataset) * q)",
        group="replay",
    ),
    plain(
        ClipShare,
        "held-clip-fraction-published",
        ("5.26",),
        "private_output",
        "log({'clip_fraction': (norms > C).mean()})",
        group="replay",
    ),
    plain(EmptyBecomesOne, "held-empty-becomes-one", ("5.24",), "empty_batch", "if not batch: batch = [random record]"),
    plain(HalfAndHalf, "held-half-and-half", ("5.11",), "sampling_unequal", "WeightedRandomSampler", group="sampler"),
    plain(
        InOrder,
        "held-in-order",
        ("5.14",),
        "sampling_without_replacement",
        "DataLoader(shuffle=False)",
        group="sampler",
    ),
    plain(
        CachedFourTimes,
        "held-cached-four-times",
        ("5.14",),
        "sampling_repeated_batches",
        "replay buffer of the last batch",
        group="sampler",
    ),
    plain(
        SmallDrawsRejected,
        "held-small-draws-rejected",
        ("5.24",),
        "sampling_batch_size",
        "while len(batch) < 5: draw again",
        group="sampler",
    ),
    plain(
        GlobalSampler, "held-global-sampler", ("5.17",), "sampling_public_seed", "torch.rand(n) < q", group="sampler"
    ),
    plain(
        InPairs, "held-in-pairs", ("5.14",), "sampling_batch_size", "two records packed into one row", group="sampler"
    ),
    first_order_fault(
        "held-fo-vectors-only",
        ("5.5",),
        "noise_missing_on_parameter",
        "if p.ndim < 2: add_noise(p)",
        _noise(_VectorsOnly),
    ),
    first_order_fault(
        "held-fo-layers-whole",
        ("5.5",),
        "norm_underestimated",
        "every layer clipped at C",
        lambda: (patch.object(PerLayer, "factors", _each_layer_whole),),
        problem={"clipping": "per_layer"},
        group="replay",
        true_stage=shrunk(2),
    ),
    first_order_fault(
        "held-fo-vectors-not-in-norm",
        ("5.5",),
        "norm_underestimated",
        "norm over matrices; vectors scaled by the same factor",
        lambda: (patch.object(_ghost_book.Book, "add", _vectors_free),),
        group="replay",
    ),
    first_order_fault(
        "held-fo-zero-grad-forgotten",
        ("accumulation",),
        "carried_over",
        "zero_grad() left out",
        lambda: (patch.object(RunningSum, "total", _never_cleared()),),
        group="replay",
    ),
    zeroth_order_fault(
        "held-zo-one-noise",
        ("D4",),
        "noise_correlated_coordinates",
        "noise = randn(1).expand(P)",
        _noise(_OneForAllDirections, _zoso),
        problem={"directions": 4},
    ),
    zeroth_order_fault(
        "held-zo-half-laplace",
        ("5.1",),
        "noise_scale",
        "scale = b / 2",
        lambda: (patch.object(_zo_steps, "release", _half_laplace),),
        problem={"mechanism": "laplace"},
        true_stage=shrunk(2),
    ),
    zeroth_order_fault(
        "held-zo-gaussian-for-laplace",
        ("5.1",),
        "noise_not_gaussian",
        "randn() where the plan says Laplace",
        _noise(_GaussianForLaplace, _zoso),
        steps=10_000,
        problem={"mechanism": "laplace"},
    ),
    zeroth_order_fault(
        "held-zo-realised-batch",
        ("Z2",),
        "normaliser_realised_batch",
        "clipped.mean()",
        lambda: (patch.object(_zo_steps, "_release", _realised),),
        group="replay",
    ),
    zeroth_order_fault(
        "held-zo-double-rate",
        ("D8",),
        "update_direction",
        "lr * 2 in the update",
        lambda: (patch.object(_zo_weights, "apply_update", _double_rate),),
        group="update",
        true_stage=lambda s: s,
    ),
    first_order_fault(
        "held-ledger-sigma",
        ("5.17",),
        "ledger_stage",
        "ledger.sigma = 1.5 * sigma",
        _recorded(noise_multiplier=1.5),
        group="ledger",
        true_stage=lambda s: dataclasses.replace(s, noise_multiplier=s.noise_multiplier / 1.5),
    ),
    first_order_fault(
        "held-ledger-q",
        ("5.13",),
        "ledger_stage",
        "ledger.q = q / 2",
        _recorded(sampling_probability=0.5),
        group="ledger",
        true_stage=lambda s: dataclasses.replace(s, sampling_probability=2 * s.sampling_probability),
    ),
    Fault(
        name="held-chain-broken",
        rows=("5.17",),
        expected="ledger_chain",
        family="ledger",
        code="del ledger_lines[2]",
        build=_broken_chain,
        group="ledger",
    ),
    Fault(
        name="held-claim-for-fewer-steps",
        rows=("5.13", "5.17"),
        expected="claimed_epsilon",
        family="ledger",
        code="epsilon = accountant(steps // accumulation)",
        build=_fewer_steps_claimed,
        group="ledger",
        true_stage=lambda s: s,
    ),
)
