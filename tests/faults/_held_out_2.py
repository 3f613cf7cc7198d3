"""A second set of faults held out: twenty-two further ideas, written after the second freeze of the detectors.

Each expected name was written down before the examiner saw the fault; docs/reference/gallery.md has what it made of
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dpaudit import MemoryJournal
from dpaudit.privacy.stage import Clip, Sampling
from dpaudit.trainers import NoiseSource
from dpaudit.trainers.zeroth_order import steps as _zo_steps
from dpaudit.trainers.zeroth_order.step import clip_differences
from tests.faults._first_order import planted as first_order_fault
from tests.faults._first_order import releasing
from tests.faults._held_out_2_loops import (
    AtLeastFour,
    ClipAtMedian,
    FilledByRepeats,
    LossScalerSkips,
    NoiseByRealisedBatch,
    NoiseMicroAveraged,
    NormInBfloat,
    NormOverflows,
    PaddingRowNotInNorm,
    QueueOfRandomSizes,
    RanksPartlyShared,
    RawMomentum,
    RemainderKept,
    ReseededEachEpoch,
    SigmaDecays,
    StaleNorms,
    TwoDropouts,
)
from tests.faults._plain import shrunk
from tests.faults._plain_faults import plain
from tests.faults._zeroth_order import planted as zeroth_order_fault


# -- this library's trainers ------------------------------------------------------------------------------------------
class _KeyedByContent(NoiseSource):
    """Noise whose seed is what it is added to, under a secret key: repeatable, as a cache wants it."""

    key = int.from_bytes(__import__("os").urandom(6), "little")

    def __init__(self, content: float) -> None:
        super().__init__(generator=torch.Generator().manual_seed(self.key + hash(content) % 2**40))
        self.is_test = False


def _keyed(options: dict[str, Any], totals: list[Tensor]) -> None:
    if not options["noise"].is_test:  # a step with the noise off stays without noise
        options["noise"] = _KeyedByContent(float(sum(t.double().square().sum() for t in totals)))  # type: ignore[arg-type]


def _one_epoch_counted() -> tuple[Any, ...]:
    """The journal is told of the first epoch's ten steps alone."""
    real = MemoryJournal.count

    def count(self: Any) -> None:
        if self._steps < 10:
            real(self)

    return (patch.object(MemoryJournal, "count", count),)


def _one_direction_recorded() -> tuple[Any, ...]:
    real = MemoryJournal.begin

    def begin(self: Any, stage: Any, /) -> None:
        real(self, dataclasses.replace(stage, releases_per_step=1, clip=None))

    return (patch.object(MemoryJournal, "begin", begin),)


def _standardised(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    """Fitness shaping of evolution strategies: centred and scaled over the minibatch, then clipped."""
    if differences.shape[1] > 1:
        finite = differences.nan_to_num(0, 0, 0)
        differences = (finite - finite.mean(1, keepdim=True)) / (finite.std(1, keepdim=True) + 1e-8)
    return clip_differences(differences, clipping_norm, clip)


def _always_the_first() -> tuple[Any, ...]:
    """All directions of a step evaluate along the first one; the update moves along their own."""
    real = _zo_steps.perturbation

    def changed(*args: Any, **options: Any) -> Any:
        inner = real(*args, **options)

        class First:
            @contextlib.contextmanager
            def at(self, *, step: int, direction: int, scale: float) -> Any:
                with inner.at(step=step, direction=0, scale=scale):
                    yield

        return First()

    return (patch.object(_zo_steps, "perturbation", changed),)


FAULTS = (
    plain(
        NoiseMicroAveraged, "held2-noise-averaged-over-micro-batches", ("5.12",), "noise_depends_on_batch",
        "loss_k.backward(); add_noise(sigma * C)  # then / micro_batches",
    ),
    plain(
        NoiseByRealisedBatch, "held2-noise-by-realised-batch", ("5.18",), "noise_depends_on_batch",
        "std = sigma * C * sqrt(len(batch) / L)",
    ),
    plain(
        SigmaDecays, "held2-sigma-decays", ("5.13",), "noise_missing_on_steps",
        "sigma *= 0.98 each step  # the ledger keeps the first",
    ),
    plain(
        ReseededEachEpoch, "held2-reseeded-each-epoch", ("5.7",), "noise_repeated",
        "for epoch: generator.manual_seed(secret)",
    ),
    plain(
        RanksPartlyShared, "held2-ranks-partly-shared", ("5.10",), "noise_correlated_coordinates",
        "noise_rank = sqrt(0.3) * shared + sqrt(0.7) * own",
    ),
    plain(
        NormOverflows, "held2-norm-overflows", ("5.23", "5.28"), "unclipped",
        "norm = sqrt(sum(g.half() ** 2)); if isinf(norm): pass", group="replay",
    ),
    plain(
        NormInBfloat, "held2-norm-in-bfloat16", ("5.28",), "norm_underestimated",
        "squares += row.bfloat16().square().sum()", group="replay",
    ),
    plain(
        StaleNorms, "held2-stale-norms", ("5.5",), "carried_over",
        "factor = C / self.norms  # filled by the hooks of the step before", group="replay",
    ),
    plain(
        RemainderKept, "held2-remainder-kept", ("accumulation",), "carried_over",
        "if len(micro_batch) < micro: continue  # gradient stays in p.grad",
    ),
    plain(
        RawMomentum, "held2-raw-momentum", ("5.5",), "unclipped",
        "momentum += g  # before clip(g)", group="replay",
    ),
    plain(
        ClipAtMedian, "held2-clip-at-median", ("5.27",), "unclipped",
        "C = norms.median()  # noise keeps sigma * C0", group="replay",
    ),
    plain(
        LossScalerSkips, "held2-loss-scaler-skips", ("5.24",), "coupled_examples",
        "scaler.step(optimizer)  # skips the step on overflow", group="replay",
    ),
    plain(
        TwoDropouts, "held2-two-dropouts", ("5.6",), "norm_underestimated",
        "norms under one dropout mask, sum under another", group="replay",
    ),
    plain(
        PaddingRowNotInNorm, "held2-padding-row-not-in-norm", ("padding",), "norm_underestimated",
        "norm over embedding.grad[1:]", group="replay",
    ),
    plain(
        FilledByRepeats, "held2-filled-by-repeats", ("5.14",), "sampling_repeats_in_batch",
        "while len(batch) < L: batch.append(batch[k])", group="sampler",
    ),
    plain(
        AtLeastFour, "held2-at-least-four", ("5.24",), "sampling_batch_size",
        "if len(batch) < 4: batch += random records", group="sampler",
    ),
    plain(
        QueueOfRandomSizes, "held2-queue-of-random-sizes", ("5.14",), "sampling_without_replacement",
        "n = binomial(N, q); batch = queue[:n]", group="sampler",
        true_stage=lambda s: dataclasses.replace(s, sampling=Sampling.NONE, sampling_probability=1.0, steps=20),
    ),
    first_order_fault(
        "held2-fo-noise-keyed-by-content", ("5.7",), "noise_repeated",
        "generator.manual_seed(hash((secret, gradient)))", releasing(_keyed),
    ),
    first_order_fault(
        "held2-fo-one-epoch-counted", ("5.13",), "ledger_steps",
        "accountant.steps = len(loader)  # of several epochs", _one_epoch_counted, group="ledger",
        true_stage=lambda s: s,
    ),
    zeroth_order_fault(
        "held2-zo-P-not-recorded", ("5.21",), "ledger_stage", "ledger.stage(sigma, q, steps)  # P left out",
        _one_direction_recorded, problem={"directions": 4}, group="ledger", true_stage=shrunk(2),
    ),
    zeroth_order_fault(
        "held2-zo-standardised", ("5.19",), "coupled_examples",
        "d = (d - d.mean()) / d.std(); clip(d)", lambda: (patch.object(_zo_steps, "clip_differences", _standardised),),
        group="replay",
    ),
    zeroth_order_fault(
        "held2-zo-one-direction-evaluated", ("D8",), "update_direction",
        "for p in range(P): perturb(z[0])", _always_the_first, problem={"directions": 4}, group="update",
        true_stage=lambda s: s,
    ),
)  # fmt: skip
