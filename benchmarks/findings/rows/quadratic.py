"""Row 8, first part: each ingredient of DP-ZOSO and DP-ZOPO on a quadratic whose answer is known.

Record i has the loss f_i(θ) = ½ Σ_j λ_j (θ_j − a_ij)². The optimum is the mean of the a_i, so that what is left of the
loss, ½ Σ_j λ_j (θ_j − ā_j)², is exact, and the slope of two passes along v is ⟨∇f_i, v⟩ for every β. Clip, noise and
update are those of the trainer, for many repeats at once; batches (a binomial size, shared by the repeats, and records
with replacement: one in 4,000 twice at most changes nothing here) and noise come from a seeded generator, so
that nothing here is a private release. The noise multiplier is calibrated on the plan of the whole run.

Learning rate and clipping norm of every line are the best of a grid on twin problems (other records, ``TWINS``).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dpaudit.accounting import account
from dpaudit.privacy.stage import Clip
from findings.choices import remembered
from findings.jobs import Job, Options, named
from findings.privacy import planned

DIMENSION, RECORDS, BATCH, PASSES, EPSILON, REPEATS = 100, 4000, 64, 1024, 4.0, 12
TWINS, TRIES = (1000, 1001, 1002), 4
RATES, NORMS = tuple(2 ** (k / 2) for k in range(-2, 9)), (0.1, 0.35, 1.0, 3.0)
"""Multiples of 1/(trace of the curvature), and of the slopes' size at the start."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the ablation.

    The steps of the stages are in proportion to 1, growth, growth², …; the rate falls by ``decay`` from stage to
    stage. ``mask`` names what keeps the share ``keep`` of the coordinates: the largest or the smallest start weights
    ("largest", "smallest"), the current ones at each stage's start ("dynamic"), nested shares that double
    ("incremental"), or chance ("random").
    """

    directions: int = 1
    clip: str = "joint"
    stages: int = 1
    growth: float = 2.0
    decay: float = 0.5
    proximal: float = 0.0
    mask: str | None = None
    keep: float = 1.0
    linear: bool = False

    @property
    def steps(self) -> int:
        """Steps that spend ``PASSES`` forward passes."""
        return PASSES // (2 * self.directions)


LINES: dict[str, Line] = {
    "one stage, P=1": Line(),
    "one stage, P=1, rate falls linearly": Line(linear=True),
    "three stages": Line(stages=3),
    "three stages, proximal term 0.1": Line(stages=3, proximal=0.1),
    "three stages, proximal term 1": Line(stages=3, proximal=1.0),
    "three equal stages, rate falls by 0.3": Line(stages=3, growth=1.0, decay=0.3),
    "three equal stages, rate falls by 0.7": Line(stages=3, growth=1.0, decay=0.7),
    "three shrinking stages": Line(stages=3, growth=0.5, decay=0.5),
    "five stages": Line(stages=5),
    "static mask, largest tenth": Line(mask="largest", keep=0.1),
    "static mask, smallest tenth (published order)": Line(mask="smallest", keep=0.1),
    "static mask, random tenth": Line(mask="random", keep=0.1),
    "three stages, static mask, largest tenth": Line(stages=3, mask="largest", keep=0.1),
    "three stages, dynamic mask, tenth": Line(stages=3, mask="dynamic", keep=0.1),
    "three stages, incremental mask, 5% to 20%": Line(stages=3, mask="incremental", keep=0.05),
    "P=4, joint clip": Line(4),
    "P=16, joint clip": Line(16),
    "P=64, joint clip": Line(64),
    "P=4, clip per direction": Line(4, "per_direction"),
    "P=16, clip per direction": Line(16, "per_direction"),
    "P=16, joint clip, three stages": Line(16, stages=3),
    "P=16, joint clip, three stages, largest tenth": Line(16, stages=3, mask="largest", keep=0.1),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Curvatures (d,), records' centres (n, d) and the start (d,)."""

    curvature: Tensor
    centres: Tensor
    start: Tensor

    def excess(self, weights: Tensor) -> Tensor:
        """(R,) loss above the optimum's, exact."""
        gap = weights - self.centres.mean(0)
        return 0.5 * (self.curvature * gap.square()).sum(-1)


def problem(shape: str, seed: int) -> Problem:
    """A quadratic by a public seed.

    ``aligned``: the way to the optimum lies in the tenth of the coordinates with the largest start weights, which is
    what a mask by magnitude hopes for. ``blind``: it lies anywhere. In both, curvature falls as 1/j, so that the
    effective rank (trace over largest) is small.
    """
    rng = torch.Generator().manual_seed(seed)
    curvature = 1 / torch.arange(1.0, DIMENSION + 1)
    curvature = curvature[torch.randperm(DIMENSION, generator=rng)]
    start = 0.1 * torch.randn(DIMENSION, generator=rng)
    way = torch.randn(DIMENSION, generator=rng)
    large = start.abs().argsort(descending=True)[: DIMENSION // 10]
    if shape == "aligned":
        start[large] *= 5
        chosen = torch.zeros(DIMENSION)
        chosen[large] = 1
        way = way * chosen
    way = way / (curvature * way.square()).sum().sqrt() * 2.0  # the loss at the start is 2 above the optimum's
    centres = start + way + torch.randn(RECORDS, DIMENSION, generator=rng)
    return Problem(curvature, centres - centres.mean(0) + start + way, start)


@functools.cache
def calibrated(directions: int, clip: str, steps: int, epsilon: float) -> tuple[float, float]:
    """σ of a run, and the certified ε of its ledger."""
    several = {"releases_per_step": directions, "clip": clip} if directions > 1 else {}
    plan = planned(RECORDS, batch=BATCH, steps=steps, clipping_norm=1.0, epsilon=epsilon, **several)
    (found,) = account(plan.ledger(), delta=plan.delta, accountants=("prv",))
    assert plan.noise_multiplier is not None and found.epsilon_upper is not None
    return plan.noise_multiplier, found.epsilon_upper


def mask_of(line: Line, weights: Tensor, stage: int, rng: torch.Generator, before: Tensor | None) -> Tensor:
    """(R, d) of zeros and ones: the coordinates that move in a stage."""
    if line.mask is None:
        return torch.ones_like(weights)
    if before is not None and line.mask in ("largest", "smallest", "random"):
        return before
    share = min(1.0, line.keep * 2**stage) if line.mask == "incremental" else line.keep
    score = weights.abs()
    if line.mask == "smallest":
        score = -score
    if line.mask == "random":
        score = torch.rand(weights.shape, generator=rng)
    if line.mask == "incremental" and before is not None:
        score = score + before * (score.max() + 1)
    kept = score.argsort(dim=-1, descending=True)[:, : round(share * weights.shape[1])]
    return torch.zeros_like(weights).scatter_(1, kept, 1.0)


def lengths(line: Line, steps: int) -> list[int]:
    """Steps of each stage; the last takes the remainder."""
    weights = [line.growth**s for s in range(line.stages)]
    found = [max(1, int(steps * w / sum(weights))) for w in weights]
    found[-1] += steps - sum(found)
    return found


def descend(
    at: Problem, line: Line, sigma: float, *, rates: Tensor, norms: Tensor, seed: int, steps: int, shared: bool = False
) -> Tensor:
    """(R, d) weights after R runs, each with its rate (R,) and clipping norm (R,).

    Runs have directions and noise of their own; with ``shared`` they see the same minibatches, which is faster.
    """
    rng, repeats = torch.Generator().manual_seed(seed), len(rates)
    weights, n, p = at.start.repeat(repeats, 1), len(at.centres), line.directions
    moved, done, rates, norms = None, 0, rates[:, None], norms[:, None]
    for stage, count in enumerate(lengths(line, steps)):
        anchor, stage_rates = weights.clone(), rates * line.decay**stage
        moved = mask_of(line, weights, stage, rng, moved)
        for _ in range(count):
            size = int(torch.binomial(torch.tensor(float(n)), torch.tensor(BATCH / n), generator=rng))
            rows = torch.randint(n, (size,) if shared else (repeats, size), generator=rng)
            v = torch.randn(repeats, p, DIMENSION, generator=rng) * moved[:, None]
            # ⟨∇f_i, v⟩ = ⟨λθ, v⟩ − ⟨λ a_i, v⟩
            bent = at.curvature * v
            slopes = (bent @ weights[:, :, None]) - bent @ at.centres[rows].mT  # (R, P, B)
            noise = sigma * norms * torch.randn(repeats, p, generator=rng)
            released = (clip(slopes, norms, line.clip).sum(-1) + noise) / BATCH
            now = stage_rates * (1 - done / steps) if line.linear else stage_rates
            pull = line.proximal * moved * (weights - anchor)
            weights = weights - now * ((released[:, :, None] * v).mean(1) + pull)
            done += 1
    return weights


def clip(slopes: Tensor, norms: Tensor, rule: str) -> Tensor:
    """Bound what a record adds, run by run: each of its slopes (R, P, B), or its vector of P slopes."""
    bound = norms[:, :, None]
    if Clip(rule) is Clip.PER_DIRECTION:
        return slopes.clamp(-bound, bound)
    return slopes * (bound / slopes.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)


@remembered
def settings_of(shape: str, name: str, steps: int) -> tuple[float, float]:
    """Rate and clipping norm with the least mean loss over the runs on the twin problems."""
    line, losses = LINES[name], torch.zeros(len(RATES) * len(NORMS))
    sigma, _ = calibrated(line.directions, line.clip, steps, EPSILON)
    grid = torch.tensor(list(itertools.product(RATES, NORMS)))
    for seed in TWINS:
        twin = problem(shape, seed)
        scale = torch.tensor([_unit(line, twin), _size(line, twin)])
        tried = (grid * scale).repeat_interleave(TRIES, 0)
        found = descend(twin, line, sigma, rates=tried[:, 0], norms=tried[:, 1], seed=seed, steps=steps, shared=True)
        losses += twin.excess(found).nan_to_num(nan=1e9, posinf=1e9).clamp(max=1e9).view(-1, TRIES).mean(1)
    rate, norm = grid[losses.argmin()].tolist()
    return rate, norm


def _unit(line: Line, at: Problem) -> float:
    """The rate that one direction can bear, and what P directions average away."""
    keep = line.keep if line.mask else 1.0
    return line.directions**0.5 / (at.curvature.sum().item() * keep**0.5)


def _size(line: Line, at: Problem) -> float:
    """Norm of a record's gradient at the start, which is a slope's typical size; √P for a vector of slopes."""
    size = (at.curvature**2 * (at.start - at.centres).square()).sum(1).sqrt().median().item()
    return size * line.directions**0.5 if line.clip == "joint" else size


def measured(shape: str, name: str, seed: int, options: Options) -> dict[str, Any]:
    """Loss left over ``REPEATS`` runs of one line on the problem of one seed."""
    line, at = LINES[name], problem(shape, seed)
    steps = options.at_most(line.steps)
    sigma, epsilon = calibrated(line.directions, line.clip, steps, EPSILON)
    multiples = settings_of(shape, name, steps)
    rate, norm = multiples[0] * _unit(line, at), multiples[1] * _size(line, at)
    repeats = torch.ones(REPEATS if options.steps is None else 2)
    found = descend(at, line, sigma, rates=rate * repeats, norms=norm * repeats, seed=seed, steps=steps)
    losses = at.excess(found).tolist()
    return {
        "excess": statistics.fmean(losses),
        "excess_sd": statistics.stdev(losses),
        "excess_at_start": at.excess(at.start[None]).item(),
        "repeats": len(losses),
        "sigma": round(sigma, 4),
        "epsilon_upper": epsilon,
        "delta": 1 / (2 * RECORDS),
        "rate": rate,
        "clipping_norm": norm,
        "rate_multiple": multiples[0],
        "norm_multiple": multiples[1],
        "steps": steps,
    }


def jobs(options: Options) -> Iterable[Job]:
    """Every line on both problems, five seeds each."""
    for shape in ("aligned", "blind"):
        for name in LINES:
            for seed in range(5):
                yield Job(
                    8, named(on=f"quadratic-{shape}", line=f"'{name}'"), seed,
                    lambda s=shape, n=name, k=seed: measured(s, n, k, options),
                )  # fmt: skip
