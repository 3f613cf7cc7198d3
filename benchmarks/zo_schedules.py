"""Stage schedules of zeroth-order training, many at once: a linear head, whose slopes have a closed form.

    python benchmarks/zo_schedules.py [--inputs FILE] [--repeats 12]

The question is whether a schedule of stages beats one stage of the same method at the same number of forward passes
and the same ε. A head on frozen MiniLM features (Rotten Tomatoes, the split of seed 100) has the slope
Δ_i(v) = ⟨∇f(x_i), v⟩ as β → 0, so a run takes a fraction of a second and each schedule is repeated. Sampling, clipping,
noise and update are those of the trainer; batches and noise come from a seeded generator, so that nothing here is a
private release. The start is the public one of ``utility_zo.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import utility_rotten_tomatoes as base
import utility_zo as utility
from torch import Tensor

from dpaudit.privacy.stage import Clip
from dpaudit.trainers.zeroth_order.stages import stage_steps
from dpaudit.trainers.zeroth_order.step import clip_differences

PASSES, BATCH, EPSILON = 4096, 64, 4.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One line of the table: the largest start weights move (a share ``keep``); decays act at each new stage."""

    directions: int
    learning_rate: float
    clipping_norm: float = 16.0
    stages: int = 1
    growth: float = 2.0
    decay: float = 0.5
    clip_decay: float = 1.0
    proximal: float = 0.0
    keep: float = 1.0


def schedules() -> list[Schedule]:
    """One stage at several rates, and what stages could change, each at the rates that could suit it."""
    many = functools.partial(Schedule, 16)
    found = [many(rate) for rate in (0.02, 0.03, 0.045)]
    found += [many(rate, stages=3) for rate in (0.04, 0.06, 0.08, 0.12)]
    found += [many(rate, stages=3, growth=1.0, decay=0.3) for rate in (0.04, 0.08)]
    # The rates below keep the sum of all steps' rates at that of one stage with 0.03.
    found += [many(0.09 / (1 + d + d * d), stages=3, growth=1.0, decay=d) for d in (0.7, 1.4, 2.0)]
    found += [many(0.09 / (1 + c + c * c), stages=3, growth=1.0, decay=1.0, clip_decay=c) for c in (0.5, 0.7, 1.4)]
    found += [many(0.03, stages=3, growth=1.0, decay=1.0, proximal=g) for g in (0.3, 1.0, 3.0)]
    found += [many(rate, keep=k) for k in (0.45, 0.2) for rate in (0.03, 0.06)]
    found += [many(rate, stages=3, keep=k) for k in (0.45, 0.2) for rate in (0.06, 0.12)]
    one = functools.partial(Schedule, 1, clipping_norm=8.0)
    found += [one(rate) for rate in (0.001, 0.0015, 0.0022)]
    found += [one(rate, stages=3) for rate in (0.0023, 0.0035, 0.005)]
    return found


@functools.cache
def noise_multiplier(directions: int) -> float:
    """σ for the whole run at ``EPSILON``; stages do not change it."""
    utility.BUDGET["lora"], utility.BATCH["lora"] = PASSES, BATCH
    recipe = utility.Recipe(directions, 1.0, 1.0)
    found = utility.stages_of("aggzo", recipe, "lora", EPSILON).stages[0].plan.noise_multiplier
    assert found is not None
    return found


def run(x: Tensor, y: Tensor, start: Tensor, schedule: Schedule, seed: int) -> Tensor:
    """Weights (2, width + 1) after one run on features with a constant column."""
    generator, p = torch.Generator().manual_seed(seed), schedule.directions
    sigma, weights = noise_multiplier(p), start.clone()
    flat, mask = weights.view(-1), torch.zeros(start.numel())
    mask[flat.abs().argsort(descending=True)[: round(schedule.keep * flat.numel())]] = 1
    clip = Clip.JOINT if p > 1 else Clip.PER_DIRECTION
    steps = stage_steps(PASSES // (2 * p), schedule.stages, growth=schedule.growth)
    for stage, count in enumerate(steps):
        rate, norm = schedule.learning_rate * schedule.decay**stage, schedule.clipping_norm * schedule.clip_decay**stage
        anchor = flat.clone()
        for _ in range(count):
            rows = (torch.rand(len(y), generator=generator) < BATCH / len(y)).nonzero().view(-1)
            residual = torch.softmax(x[rows] @ weights.T, 1)
            residual[torch.arange(len(rows)), y[rows]] -= 1
            v = torch.randn(p, flat.numel(), generator=generator) * mask
            slopes = torch.einsum("bi,pci,bc->pb", x[rows], v.view(p, *weights.shape), residual)
            sums = clip_differences(slopes.double(), norm, clip).sum(1).float()
            released = (sums + sigma * norm * torch.randn(p, generator=generator)) / BATCH
            flat.sub_(rate * (released @ v / p + schedule.proximal * (flat - anchor)))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--inputs", type=Path, help="file that keeps the frozen encoder's outputs between calls")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zo_schedules.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, model = utility.Task("head", 100, options.inputs), base.fresh_model(100)
    utility.start_publicly(model)
    start = torch.cat([model.head.weight, model.head.bias[:, None]], 1).detach()
    x, test = (_with_constant(rows["features"]) for rows in (task.train_rows, task.test_rows))
    lines: list[dict[str, Any]] = []
    for schedule in schedules():
        found = []
        for seed in range(options.repeats):
            logits = test @ run(x, task.train_y, start, schedule, seed).T
            loss = float(torch.nn.functional.cross_entropy(logits, task.test_y))
            found.append((float((logits.argmax(1) == task.test_y).float().mean()), loss))
        accuracies, losses = zip(*found, strict=True)
        lines.append(
            {
                **dataclasses.asdict(schedule),
                "accuracy_mean": statistics.fmean(accuracies),
                "accuracy_sd": statistics.stdev(accuracies),
                "loss_mean": statistics.fmean(losses),
                "loss_sd": statistics.stdev(losses),
            }
        )
        print(lines[-1], flush=True)
    payload = {
        "schema": "dpaudit.benchmark/1",
        "benchmark": "zo_schedules",
        "metric": "test accuracy and loss on the split of seed 100, 1,530 sentences, over repeats of the run",
        "forward_passes": PASSES,
        "expected_batch_size": BATCH,
        "epsilon": EPSILON,
        "delta": utility.DELTA,
        "repeats": options.repeats,
        "environment": base.environment(),
        "results": lines,
    }
    options.out.write_text(json.dumps(payload, indent=1) + "\n")


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([10 * features, torch.ones(len(features), 1)], 1)


if __name__ == "__main__":
    main()
