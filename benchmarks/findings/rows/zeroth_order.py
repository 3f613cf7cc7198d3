"""Row 7: the zeroth-order family at equal forward passes, every parameter of a causal model, with prompts.

Each zeroth-order run spends ``PASSES`` batch forward passes at an expected batch of ``BATCH``; DP-Adam counts a step as
four passes (one forward, and a backward of twice its work, rounded up) and takes larger batches for the same number of
records. Rates, clipping norms and stage lengths were searched on PUBLIC records with the noise of the real run
(``search``), which is free; the search stands in the results as setting ``search``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dpaudit import MemoryJournal
from dpaudit.accounting import calibrate
from dpaudit.trainers import (
    Directions,
    PrivacyPlan,
    aggzo,
    dpzero,
    mezo,
    zo_train,
    zoso,
)
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import ZOPlan
from findings import language, prompts
from findings.choices import remembered
from findings.guided import RATES as GUIDED_RATES
from findings.guided import Budget, charged_layers, public_subspace
from findings.jobs import ZEROTH_ORDER, Job, Options, named
from findings.privacy import spent

PASSES, BATCH, DELTA = 512, 64, 1e-5
ADAM = {"batch": 1000, "steps": 8}
"""8 steps of 1,000 records, four passes each: as many record passes as 500 forward passes of 64."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One method: its directions and stages; ``rate`` and ``norm`` are multiples of those found for one stage."""

    directions: int = 1
    stages: int = 1
    growth: float = 2.0
    decay: float = 0.5
    proximal: float = 0.0
    mask: str | None = None
    keep: float = 0.1
    rate: float = 1.0
    sigmas: tuple[float, ...] | None = None
    several: tuple[int, ...] | None = None
    """Directions of each stage, where they vary."""


METHODS: dict[str, Recipe] = {
    "dpzero": Recipe(),
    "dp-aggzo K=16": Recipe(16),
    "dp-zoso": Recipe(stages=3, rate=2.0, proximal=5e-4),
    "dp-zopo": Recipe(stages=3, rate=4.0, proximal=5e-4, mask="static"),
    "dp-zoso K=16": Recipe(16, stages=3, rate=2.0, proximal=5e-4),
    "dp-zoso K=16, stages searched": Recipe(16, stages=3),
    "dp-zoso K=16, sigma falls": Recipe(16, stages=3, rate=2.0, sigmas=(1.3, 1.0, 0.8)),
    "dp-zoso, P 4 to 16": Recipe(4, stages=3, rate=2.0, several=(4, 8, 16)),
    "mezo K=16": Recipe(16),
}
OTHERS = ("dp-adam", "pazo", "charged layers", "public only")
NOISELESS = ("mezo K=16", "public only")
SCHEDULES = tuple(itertools.product((1.0, 2.0), (0.4, 0.7)))
"""Growth of the steps and decay of the rate, searched for "stages searched"."""
START = {
    "small": {1: (3e-3, 2.0), 16: (2e-2, 8.0)},
    "smollm2": {1: (1e-5, 30.0), 16: (1e-4, 120.0)},
}
"""Rate around which the search looks, and clipping norm, for P = 1 and P = 16: 134 million parameters bear less."""
RATES = {"afresh": (0.125, 0.25, 0.5, 1.0, 2.0)}
"""Multiples of that rate, where they are not a half, one and two."""


def plan_for(recipe: Recipe, size: int, *, epsilon: float | None, rate: float, norm: float, options: Options,
             schedule: tuple[float, float] | None = None) -> ZOPlan:  # fmt: skip
    """The stages of one method, calibrated for ``size`` records."""
    counts = recipe.several or (recipe.directions,) * recipe.stages
    growth, decay = schedule or (recipe.growth, recipe.decay)
    steps = max(recipe.stages, options.at_most(round(PASSES / (2 * statistics.fmean(counts)))))
    plan = PrivacyPlan(
        delta=DELTA, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=size,
        expected_batch_size=min(BATCH, size // 5), steps=steps, clipping_norm=norm, target_epsilon=epsilon,
        noise_multiplier=None if epsilon else 0.0, releases_per_step=recipe.directions,
        clip="joint" if recipe.directions > 1 else None,
    )  # fmt: skip
    mask = None
    if recipe.mask is not None:
        mask = MaskRule(keep=recipe.keep, score="magnitude", order="largest", strategy=recipe.mask)
    if epsilon is None:
        return mezo(plan, learning_rate=rate, scale=1e-3)
    if recipe.stages == 1 and mask is None:
        method = dpzero if recipe.directions == 1 else aggzo
        return calibrate(method(plan, learning_rate=rate, scale=1e-3))
    found = zoso(
        plan, learning_rate=rate, scale=1e-3, stages=recipe.stages, growth=growth, decay=decay,
        proximal=recipe.proximal, mask=mask,
    )  # fmt: skip
    if recipe.several or recipe.sigmas:
        found = _varied(found, recipe)
    return calibrate(found)


def _varied(found: ZOPlan, recipe: Recipe) -> ZOPlan:
    """The same stages with their own P, at the same number of passes, or σ in ratios."""
    whole, stages = sum(2 * s.plan.steps * s.plan.releases_per_step for s in found.stages), []
    for number, stage in enumerate(found.stages):
        plan = stage.plan
        if recipe.several:
            p = recipe.several[number]
            steps = max(1, whole * plan.steps // (2 * p * sum(s.plan.steps for s in found.stages)))
            plan = dataclasses.replace(plan, releases_per_step=p, steps=steps)
        if recipe.sigmas:
            plan = plan.with_noise_multiplier(recipe.sigmas[number])
        stages.append(dataclasses.replace(stage, plan=plan))
    return ZOPlan(tuple(stages))


def trained(task: prompts.Task, rows: list[Any], plan: Any, name: str, seed: int) -> tuple[Any, MemoryJournal]:
    """A model after a zeroth-order run on some records."""
    model, journal = task.model(), MemoryJournal()
    zo_train(
        model, rows, plan, collate=task.collate, loss_fn=task.losses, journal=journal,
        directions=Directions(run=f"findings/{name}/{seed}"), physical_batch_size=2 * BATCH, pad_batches=False,
    )  # fmt: skip
    return model, journal


@remembered
def searched(directions: int, options: Options) -> dict[str, Any]:
    """Rate and schedule with the least loss on public validation records, at the noise of ε = 4, two runs a setting."""
    rate, norm = START.get(options.backbone, START["small"])[directions]
    if options.steps is not None:
        return {"rate": rate, "norm": norm, "schedule": SCHEDULES[0], "runs": 0}
    task, recipe = prompts.task(100, options), Recipe(directions)

    def loss(tried: Recipe, **settings: Any) -> float:
        real = plan_for(tried, len(task.private), epsilon=4.0, norm=norm, options=options, **settings)
        public = [
            dataclasses.replace(s, plan=dataclasses.replace(s.plan, public_size=len(task.public), target_epsilon=None))
            for s in real.stages
        ]  # σ of the real run; the ε of this one means nothing
        return twice(task, lambda turn: trained(task, task.public, ZOPlan(tuple(public)), f"search {turn}", 100)[0])

    tried = RATES.get(options.backbone, (0.5, 1.0, 2.0))
    best = min((rate * r for r in tried), key=lambda r: loss(recipe, rate=r))
    schedule = None
    if directions > 1:
        stages = dataclasses.replace(recipe, stages=3)
        # The sum of the rates over the steps is kept.
        schedule = min(SCHEDULES, key=lambda tried: loss(stages, rate=best * evened(*tried), schedule=tried))
    runs = 2 * (len(tried) + (0 if schedule is None else len(SCHEDULES)))
    return {"rate": best, "norm": norm, "schedule": schedule, "runs": runs}


def twice(task: prompts.Task, run: Callable[[int], Any]) -> float:
    """Mean loss on public validation records after two runs: one alone is luck."""
    batch, losses = task.collate(task.validation), []
    for turn in (0, 1):
        model = run(turn)
        with torch.no_grad():
            losses.append(float(task.losses(model, batch).mean()))
    return statistics.fmean(losses)


def evened(growth: float, decay: float) -> float:
    """First rate of three stages over the constant rate of one stage with the same sum of rates."""
    lengths = [growth**s for s in range(3)]
    return sum(lengths) / sum(n * decay**s for s, n in enumerate(lengths))


def measured(name: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """Test accuracy of one run, and what it spent."""
    torch.manual_seed(seed)
    task = prompts.task(seed, options)
    if name in METHODS:
        recipe = METHODS[name]
        found = searched(16 if recipe.directions > 1 else 1, options)
        rate = found["rate"] * recipe.rate
        schedule = None
        if name.endswith("searched"):
            schedule = found["schedule"]
            rate *= evened(*schedule)
        plan = plan_for(
            recipe, len(task.private), epsilon=epsilon, rate=rate, norm=found["norm"], options=options,
            schedule=schedule,
        )  # fmt: skip
        model, journal = trained(task, task.private, plan, f"{name}/{epsilon}", seed)
        told = {**spent(plan, journal), "rate": rate, "norm": found["norm"], "schedule": str(schedule)}
    else:
        model, told = other(name, task, epsilon, seed, options)
    return {**told, "accuracy": task.accuracy(model, task.test), "before": task.accuracy(task.model(), task.test)}


ADAM_RATES = {
    "small": (1e-3, 4e-3, 1.6e-2),
    "afresh": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "smollm2": (3e-5, 1e-4, 3e-4),
}
BUDGET = Budget(PASSES, BATCH, DELTA)
GUIDED = {"pazo": public_subspace, "charged layers": charged_layers}


@remembered
def guided_rate(name: str, options: Options) -> float:
    """The rate of a guided method: the best on public records at the noise of ε = 4."""
    if options.steps is not None:
        return GUIDED_RATES[name][0]
    task = prompts.task(100, options)

    def loss(rate: float) -> float:
        run = functools.partial(GUIDED[name], task, 4.0, options=options, rate=rate, budget=BUDGET, public=True)
        return twice(task, lambda turn: run(seed=100 + turn)[0])

    scale = 1e-2 if options.backbone == "smollm2" and name == "charged layers" else 1.0
    return min((scale * rate for rate in GUIDED_RATES[name]), key=loss)


@remembered
def adam_rate(options: Options) -> float:
    """DP-Adam's rate: the best on public records at the noise of ε = 4."""
    if options.steps is not None:
        return 1e-4
    task = prompts.task(100, options)

    def after(rate: float) -> Any:
        model = task.model()
        language.private(
            model, task.public, collate=task.collate, loss_fn=task.losses, epsilon=4.0, batch=ADAM["batch"],
            steps=ADAM["steps"], rate=rate, sigma_of=len(task.private), delta=DELTA,
        )  # fmt: skip
        return model

    return min(ADAM_RATES[options.backbone], key=lambda rate: twice(task, lambda _: after(rate)))


def other(
    name: str, task: prompts.Task, epsilon: float | None, seed: int, options: Options
) -> tuple[Any, dict[str, Any]]:
    """What is not a list of zeroth-order stages."""
    if name == "dp-adam":
        model, rate = task.model(), adam_rate(options)
        assert epsilon is not None
        told = language.private(
            model, task.private, collate=task.collate, loss_fn=task.losses, epsilon=epsilon, batch=ADAM["batch"],
            steps=options.at_most(ADAM["steps"]), rate=rate, delta=DELTA,
        )  # fmt: skip
        return model, {**told, "rate": rate}
    if name == "public only":
        model, rate = task.model(), 5e-5 if options.backbone == "smollm2" else 2e-3
        language.ordinary(
            model, task.public, collate=task.collate, loss_fn=task.losses, batch=64, steps=options.at_most(60),
            rate=rate, seed=seed,
        )  # fmt: skip
        return model, {"epsilon_upper": 0.0, "rate": rate}
    assert epsilon is not None
    return GUIDED[name](task, epsilon, seed, options, rate=guided_rate(name, options), budget=BUDGET)


def jobs(options: Options) -> Iterable[Job]:
    """ε = 4 first, every method with three seeds."""
    names = [*METHODS, *OTHERS]
    for epsilon in (4.0, 2.0, 8.0):
        assert epsilon in ZEROTH_ORDER
        for name in names:
            if name in NOISELESS:
                continue
            for seed in (0, 1, 2):
                yield Job(
                    7, named(on=options.backbone, method=f"'{name}'", epsilon=epsilon), seed,
                    lambda n=name, e=epsilon, k=seed: measured(n, e, k, options),
                )  # fmt: skip
        if epsilon == 4.0:
            for name, seed in itertools.product(NOISELESS, (0, 1, 2)):
                yield Job(
                    7, named(on=options.backbone, method=f"'{name}'", epsilon="none"), seed,
                    lambda n=name, k=seed: measured(n, None, k, options),
                )  # fmt: skip
