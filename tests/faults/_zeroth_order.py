"""Faults planted in this library's zeroth-order trainer, by patching what ``zo_train`` calls."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dpaudit.privacy.stage import Clip
from dpaudit.trainers import NoiseSource
from dpaudit.trainers.sampling import FullSampler
from dpaudit.trainers.zeroth_order import steps as _zo_steps
from dpaudit.trainers.zeroth_order import train as _zoso
from dpaudit.trainers.zeroth_order import weights as _zo_weights
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.step import clip_differences, release
from tests.faults._case import Case, Fault
from tests.faults._plain import shrunk
from tests.faults._problems import BATCH, zeroth_order


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
        adapter, plan = zeroth_order(seed, **(problem or {}))
        return Case(adapter, plan, patches())

    return Fault(name=name, rows=rows, expected=expected, family="zeroth order", code=code, build=build, **more)


def clipping(change: Callable[..., Tensor]) -> Callable[[], tuple[Any, ...]]:
    return lambda: (patch.object(_zo_steps, "clip_differences", change),)


def releasing(change: Callable[[dict[str, Any]], None]) -> Callable[[], tuple[Any, ...]]:
    def changed(clipped: Tensor, **options: Any) -> list[float]:
        change(options)
        return release(clipped, **options)

    return lambda: (patch.object(_zo_steps, "release", changed),)


def _batch_mean(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    if differences.shape[1] == 0:
        return differences
    mean = torch.nan_to_num(differences, 0, 0, 0).mean(dim=1, keepdim=True)
    return clip_differences(mean, clipping_norm, clip) * differences.shape[1]


def _undefined(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    return differences * (clipping_norm / differences.abs().clamp(min=clipping_norm))


def _raw_difference(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    """The clip bounds f₊ − f₋, and the division by 2β comes after it; β = 0.25."""
    return clip_differences(differences * 0.5, clipping_norm, clip) / 0.5


def _per_direction(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    return clip_differences(differences, clipping_norm, Clip.PER_DIRECTION)


def _no_root(options: dict[str, Any]) -> None:
    options["noise_std"] /= math.sqrt(4)


def _over_batch(options: dict[str, Any]) -> None:
    options["noise_std"] /= BATCH


class _AfterDirections(NoiseSource):
    """Noise drawn from the global stream, which the directions' public seed has just set."""

    def __init__(self) -> None:
        super().__init__()
        self._step = 0

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        torch.manual_seed(100 + self._step)
        self._step += 1
        return torch.randn(tuple(shape)) * std


class _SharesSeed(NoiseSource):
    """The noise continues the generator that made the last direction."""

    def __init__(self) -> None:
        super().__init__()
        self._step = 0

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        generator = torch.Generator().manual_seed(7_000 + self._step)
        torch.randn(16, generator=generator)  # the direction
        self._step += 1
        return torch.randn(tuple(shape), generator=generator) * std


class _Epochs(FullSampler):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._left: list[int] = []

    def draw(self) -> Any:
        import numpy as np

        if len(self._left) < BATCH:
            self._left = np.random.default_rng().permutation(self.n_records).tolist()
        drawn, self._left = self._left[:BATCH], self._left[BATCH:]
        return np.sort(np.asarray(drawn))


def _moves(change: Callable[[dict[str, Any]], None]) -> Callable[[], tuple[Any, ...]]:
    real = _zo_weights.apply_update

    def changed(parameters: Any, directions: Any, released: Any, **options: Any) -> None:
        if change(options) is not False:  # type: ignore[func-returns-value]
            real(parameters, directions, released, **options)

    return lambda: (patch.object(_zo_weights, "apply_update", changed),)


def _aliased(options: dict[str, Any]) -> None:
    options["pull"] = None


def _never(options: dict[str, Any]) -> bool:
    return False


def _unranked(options: dict[str, Any]) -> None:
    from dpaudit.trainers.zeroth_order.coordinates import Mask

    if options["masks"] is not None:
        options["masks"] = {name: Mask(index=m.index, weight=None) for name, m in options["masks"].items()}


def _wide_scale() -> tuple[Any, ...]:
    real = _zo_steps.perturbation

    def changed(*args: Any, **options: Any) -> Any:
        inner = real(*args, **options)

        class Wide:
            @contextlib.contextmanager
            def at(self, *, step: int, direction: int, scale: float) -> Any:
                with inner.at(step=step, direction=direction, scale=48 * scale):
                    yield

        return Wide()

    return (patch.object(_zo_steps, "perturbation", changed),)


def _more_directions() -> tuple[Any, ...]:
    """The step evaluates and releases four directions; plan and ledger say one."""
    real = _zo_steps._release

    def changed(stage: Any, differences: Tensor, noise: Any) -> list[float]:
        return [value for _ in range(4) for value in real(stage, differences, noise)]

    return (patch.object(_zo_steps, "_release", changed),)


RANKED = MaskRule(keep=0.5, score="magnitude", ranked=True)
PLAIN_MASK = MaskRule(keep=0.5, score="magnitude")

FAULTS = (
    planted(
        "zo-clip-batch-mean",
        ("5.20", "Z4"),
        "clipped_after_averaging",
        "clip(differences.mean())",
        clipping(_batch_mean),
        problem={"directions": 4},
        group="replay",
        true_stage=shrunk(2 * BATCH),
    ),
    planted(
        "zo-nan-passes",
        ("5.23", "D12"),
        "non_finite",
        "delta * C / max(|delta|, C)",
        clipping(_undefined),
        group="replay",
    ),
    planted(
        "zo-clip-raw-difference",
        ("5.21",),
        "norm_underestimated",
        "clip(f_plus - f_minus, C) / (2 * beta)",
        clipping(_raw_difference),
        group="replay",
        true_stage=shrunk(2),
    ),
    planted(
        "zo-joint-claimed",
        ("5.21", "D1"),
        "norm_underestimated",
        "clip each of 4 directions at C; ledger: clip='joint'",
        clipping(_per_direction),
        problem={"directions": 4, "clip": "joint"},
        group="replay",
        true_stage=shrunk(2),
    ),
    planted(
        "zo-noise-without-P",
        ("5.21",),
        "noise_scale",
        "std = sigma * C / sqrt(P)",
        releasing(_no_root),
        problem={"directions": 4},
        true_stage=shrunk(2),
    ),
    planted(
        "zo-noise-over-batch",
        ("5.2",),
        "noise_scale",
        "std = sigma * C / batch, then / batch",
        releasing(_over_batch),
        true_stage=shrunk(BATCH),
    ),
    planted(
        "zo-noise-after-seed",
        ("Z1", "A1"),
        "noise_public_seed",
        "torch.manual_seed(100 + step); noise = torch.randn(P)",
        lambda: (patch.object(_zoso, "NoiseSource", _AfterDirections),),
    ),
    planted(
        "zo-noise-from-direction-stream",
        ("5.8", "A2"),
        "noise_public_seed",
        "z = randn(generator); noise = randn(generator)",
        lambda: (patch.object(_zoso, "NoiseSource", _SharesSeed),),
    ),
    planted(
        "zo-directions-uncounted",
        ("D1",),
        "ledger_directions",
        "for p in range(P): release(...)  # accountant never sees P",
        _more_directions,
        problem={"directions": 2},
        group="replay",
        true_stage=shrunk(2),
    ),
    planted(
        "zo-shuffled",
        ("D2", "5.14"),
        "sampling_without_replacement",
        "RandomSampler with Poisson accounting",
        lambda: (patch.object(_zoso, "sampler_for", lambda plan, n: _Epochs(n)),),
        group="sampler",
    ),
    planted(
        "zo-proximal-alias",
        ("D5",),
        "proximal_missing",
        "previous = model.state_dict()  # follows in-place updates",
        _moves(_aliased),
        problem={"proximal": 5.0},
        group="update",
        true_stage=lambda s: s,
    ),
    planted(
        "zo-scale-schedule",
        ("D6",),
        "scale_schedule",
        "k = (end - start) ** (1 / stages); beta /= k",
        _wide_scale,
        group="update",
        true_stage=lambda s: s,
    ),
    planted(
        "zo-pruned-never-moves",
        ("D7",),
        "update_missing",
        "param[indices].data += step  # edits a copy",
        _moves(_never),
        problem={"mask": PLAIN_MASK},
        group="update",
        true_stage=lambda s: s,
    ),
    planted(
        "zo-ranks-not-updated",
        ("D8",),
        "update_direction",
        "perturb along m * w * z, update along m * z",
        _moves(_unranked),
        problem={"mask": RANKED},
        group="update",
        true_stage=lambda s: s,
    ),
)
