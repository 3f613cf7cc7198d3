"""Zeroth-order steps in foreign styles, with adapters of their own."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dpaudit import Stage
from dpaudit.attacks import ExamPlan, StepAdapter
from tests.faults._case import Case
from tests.faults._foreign import EXPECTED, RATE, SIZE, Foreign, Style


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZoStyle:
    """How a zeroth-order step is written.

    Parameters
    ----------
    name : str
    directions : int
    fresh : bool
        Whether directions are drawn afresh at every step by the operating system, and do not repeat in a replay.
    joint : bool
        Whether the P differences are clipped as one vector.
    fault : str
        Empty, or what is wrong.
    """

    name: str
    directions: int = 1
    fresh: bool = False
    joint: bool = False
    fault: str = ""


ZO_STYLES: tuple[ZoStyle, ...] = (
    ZoStyle(name="one direction a step"),
    ZoStyle(name="four directions", directions=4),
    ZoStyle(name="fresh directions", fresh=True),
    ZoStyle(name="four clipped as one", directions=4, joint=True),
)


class Zo(StepAdapter):
    """Two evaluations a direction, differences clipped, one noise each, what is released is the noisy means."""

    def __init__(self, style: ZoStyle, seed: int) -> None:
        self.style = style
        self.inner = Foreign(Style(name=style.name), seed)
        self.size, self.adversaries = SIZE, self.inner.factors.adversaries
        self.directions = np.random.default_rng(seed)
        self.restart()
        self.step = 0

    def restart(self) -> None:
        self.secret = np.random.default_rng()
        self.inner.restart()

    def snapshot(self) -> Any:
        return copy.deepcopy(self.inner.model.state_dict())

    def restore(self, state: Any, /) -> None:
        self.inner.model.load_state_dict(state)
        self.step = 0
        self.restart()

    def draw(self) -> list[int]:
        return self.inner.draw()

    def release(self, indices: Sequence[int], /) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self._go(indices, 1.0)

    def clean(self, indices: Sequence[int], /) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self._go(indices, 0.0)

    def _go(self, indices: Sequence[int], noisy: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        style, rows = self.style, []
        rng = np.random.default_rng(int.from_bytes(os.urandom(8), "big") if style.fresh else 100 + self.step)
        self.step += 1
        for _ in range(style.directions):
            rows.append(self._differences(indices, rng))
        found = np.stack(rows)  # (P, B)
        sums = self._sums(found)
        noise = self._noise(indices, found.shape[0], rng)
        divisor = len(indices) or 1 if style.fault == "realised batch" else EXPECTED
        released = (sums + noisy * noise) / divisor
        with torch.no_grad():
            for p in self.inner.weights:  # the update is post-processing; a constant direction serves as well as any
                p -= 0.01 * float(released.mean())
        return np.asarray(released, dtype=np.float64)

    def _differences(self, indices: Sequence[int], rng: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        weights, h = self.inner.weights, 1e-3
        z = [torch.as_tensor(rng.normal(size=tuple(p.shape)), dtype=torch.float32) for p in weights]
        if not len(indices):
            return np.zeros(0)
        held, seen = [p.detach().clone() for p in weights], []
        with torch.no_grad():
            for sign in (h, -h):
                for p, old, v in zip(weights, held, z, strict=True):
                    p.copy_(old + sign * v)
                seen.append(self.inner.losses(indices).double().numpy())
            for p, old in zip(weights, held, strict=True):
                p.copy_(old)
        with np.errstate(all="ignore"):
            difference = (seen[0] - seen[1]) / (2 * h)
        return difference if self.style.fault == "undefined" else np.where(np.isfinite(difference), difference, 0.0)

    def _sums(self, found: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        fault = self.style.fault
        if not found.shape[1]:
            return np.zeros(found.shape[0])
        if fault == "batch clip":
            return np.clip(found.mean(axis=1), -1, 1) * EXPECTED
        if fault == "not clipped":
            return found.sum(axis=1)
        if fault == "twice the bound":
            return np.clip(found, -2, 2).sum(axis=1)
        if fault == "undefined":
            return (found / np.maximum(1.0, np.abs(found))).sum(axis=1)
        if self.style.joint:
            lengths = np.linalg.norm(found, axis=0)
            return (found * np.minimum(1.0, 1.0 / np.maximum(lengths, 1e-12))).sum(axis=1)
        return np.clip(found, -1, 1).sum(axis=1)

    def _noise(self, indices: Sequence[int], count: int, rng: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        fault = self.style.fault
        if fault == "no noise":
            return np.zeros(count)
        if fault == "noise from the directions' stream":
            return np.asarray(rng.normal(size=count))
        if fault == "one noise for all directions":
            return np.full(count, self.secret.normal())
        if fault == "a third of the noise":
            return np.asarray(self.secret.normal(size=count) / 3)
        return np.asarray(self.secret.normal(size=count))


def zo_case(style: ZoStyle, seed: int) -> Case:
    """Adapter and plan."""
    joint = "joint" if style.joint else "per_direction"
    counted = 1 if style.fault == "directions not counted" else style.directions
    stage = Stage(
        sampling_probability=RATE, noise_multiplier=1.0, steps=200, sampling="poisson", clipping_norm=1.0,
        releases_per_step=counted, clip=joint,
    )  # fmt: skip
    return Case(Zo(style, seed), ExamPlan(stage=stage, normaliser=EXPECTED, size=SIZE, delta=1e-3))
