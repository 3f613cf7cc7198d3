"""The steps of a zeroth-order run: draw, count, two losses a direction, clip, one noise, one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dpaudit import Stage
from dpaudit.privacy.errors import StorageFailed
from dpaudit.privacy.protocols import Journal
from dpaudit.trainers.noise import Noise
from dpaudit.trainers.objective import Objective
from dpaudit.trainers.sampling import Sampler
from dpaudit.trainers.stopping import sealed
from dpaudit.trainers.units import RecordDraws, UnitDraws, unit_losses
from dpaudit.trainers.zeroth_order.coordinates import Mask, masks_digest
from dpaudit.trainers.zeroth_order.distributed import World, counted_by_the_first
from dpaudit.trainers.zeroth_order.log import Release, StageEntry, ZOLogWriter
from dpaudit.trainers.zeroth_order.perturb import Perturbation, perturbation
from dpaudit.trainers.zeroth_order.stages import ZOStage
from dpaudit.trainers.zeroth_order.step import Chunk, clip_differences, loss_differences, release
from dpaudit.trainers.zeroth_order.watched import Watched
from dpaudit.trainers.zeroth_order.weights import ZOWeights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZOPrivate:
    """Noise-free values of one step; they stay in memory or in ``private/``."""

    losses: Tensor
    """(B,) fp64, mean of the step's evaluations per example."""
    differences: Tensor
    """(P, B) fp64, before clipping."""
    indices: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZOReport:
    """What a callback sees after a step. Everything but ``private`` may be published."""

    step: int
    """Steps executed so far in the whole run, this one included."""
    stage: int
    schedule: ZOStage
    released: tuple[float, ...]
    private: ZOPrivate = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How the forward passes of a step are cut: speed and memory alone, but for the rounding of ``pad``.

    Parameters
    ----------
    size : int
        Records in one pass.
    pad : bool
        Whether a short last pass is filled by repeating a record whose result is dropped, so that all have one shape.
    mode : str
        "per_layer" (out of place, exact) or "in_place" (for weights that are read outside their module).
    """

    size: int
    pad: bool
    mode: str

    def chunks(self, objective: Objective, records: Sequence[Any], indices: Sequence[int]) -> Iterator[Chunk]:
        """The collated records of each pass."""
        for at in range(0, len(indices), self.size):
            part = [records[i] for i in indices[at : at + self.size]]
            real = len(part)
            if self.pad:
                part += [part[0]] * (self.size - real)
            collated = len(part)
            yield Chunk(objective.collate(part), real, collated)

    def idle(self, objective: Objective, record: Any, passes: int) -> Iterator[Chunk]:
        """Passes of one record, whose result is dropped: a process without records of its own helps others gather."""
        for _ in range(passes):
            part = [record] * (self.size if self.pad else 1)
            yield Chunk(objective.collate(part), 0, len(part))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageParts:
    """One stage of a plan with what draws for it and what watches it.

    Parameters
    ----------
    number : int
        Of the stage in the plan.
    stage : ZOStage
    before : int
        Planned steps of the stages before it.
    contributors : RecordDraws or UnitDraws
    watched : Watched
    sampler : Sampler
    """

    number: int
    stage: ZOStage
    before: int
    contributors: RecordDraws | UnitDraws
    watched: Watched
    sampler: Sampler

    @property
    def is_test(self) -> bool:
        """Whether injected randomness draws."""
        return bool(self.sampler.is_test or self.contributors.is_test)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class ZOSteps:
    """One run's parts, all checked, and what its stages and steps do with them.

    Parameters
    ----------
    objective : Objective
        In evaluation mode; its state is what forward passes may not change.
    records : sequence
    weights : ZOWeights
    passes : Passes
    journal : Journal
        A step is counted in it before its noisy release, by the first process.
    log : ZOLogWriter
        Receives the released numbers.
    world : World
    noise : Noise
    callback : callable or None
    executed : list of Stage
        Stages so far, with the steps that were counted.
    counted : int
        Steps counted in the present stage.
    failure : StorageFailed or None
        What could not be written.
    """

    objective: Objective
    records: Sequence[Any]
    weights: ZOWeights
    passes: Passes
    journal: Journal
    log: ZOLogWriter
    world: World
    noise: Noise
    callback: Callable[[ZOReport], bool | None] | None
    executed: list[Stage] = dataclasses.field(default_factory=list)
    counted: int = 0
    failure: StorageFailed | None = None
    _perturb: Perturbation | None = None
    _masks: dict[str, Mask] | None = None

    def run_stage(self, parts: StageParts, first: int, last: int, *, is_test: bool) -> bool:
        """Run steps ``first`` to ``last`` (exclusive) of a stage and seal its ledger; whether the run goes on."""
        stage, weights, leads = parts.stage, self.weights, self.world.rank == 0
        schedule = stage.schedule()
        weights.begin(parts.number, schedule, done=first, step=parts.before + first)
        digest = masks_digest(weights.masks)
        self.log.stage(StageEntry(index=parts.number, done=first, schedule=schedule, mask_sha256=digest))
        if leads:
            self.journal.begin(stage.plan.stage(0))
        self._perturb, self.counted = None, 0
        reason, stopped = "interrupted", False
        try:
            for done in range(first, last):
                report = self.step(parts, done)
                told = None if self.callback is None else self.callback(report)
                if stopped := self.world.any(told is True):
                    break
            reason = "completed"
        except StorageFailed as error:
            self.failure = error
        finally:
            if leads:
                self.failure = sealed(self.journal, reason, self.failure, is_test=is_test)
            self.executed.append(stage.plan.stage(self.counted))
        return not stopped and self.failure is None

    def step(self, parts: StageParts, done: int) -> ZOReport:
        """Execute the step of a stage that follows ``done`` others."""
        stage, weights, world, watched = parts.stage, self.weights, self.world, parts.watched
        step, leads = parts.before + done, world.rank == 0
        weights.refresh(done=done, step=step)
        perturb = self._perturbation()
        indices: list[int] = world.share(parts.sampler.draw().tolist() if leads else None)
        counted_by_the_first(world, self.journal)
        self.counted += 1
        # Which of a unit's records take part is chosen once, for every process.
        drawn: list[list[int]] = world.share(parts.contributors.rows(watched.records_of(indices)) if leads else None)
        rows = world.units(drawn)
        own_records = [i for unit in rows for i in unit]
        chunks = list(self.passes.chunks(self.objective, self.records, own_records))
        if weights.sharded:
            chunks += self._with_the_others(drawn, len(chunks))
        forwards = self.objective.state
        if forwards is not None:
            forwards.refresh()
        found, losses = loss_differences(
            self.objective.model,
            chunks,
            self.objective.loss_fn,
            perturb,
            step=step,
            directions=world.directions(stage.plan.releases_per_step),
            scale=stage.scale,
            state=forwards,
        )
        if stage.plan.draws_units:
            found, losses = of_units(found, losses, rows, reduction=stage.plan.unit_reduction)
        differences = world.gather(found, stage.plan.releases_per_step, len(drawn))
        joined = watched.joined(step, differences, indices)
        released = world.share(_release(stage, joined, self.noise) if leads else None)
        watched.observe(step, released)
        weights.apply(released, step=step)
        self.log.release(Release(step=step, values=tuple(released)))
        private = ZOPrivate(losses=losses, differences=differences, indices=tuple(own_records))
        return ZOReport(step=step + 1, stage=parts.number, schedule=stage, released=tuple(released), private=private)

    def _with_the_others(self, drawn: Sequence[Sequence[int]], made: int) -> list[Chunk]:
        """Passes that the other processes make and this one would not: each gathers the weights of all shards."""
        missing = self.world.largest(made) - made
        some = next((record for unit in drawn for record in unit), None)
        if some is None:
            return []
        return list(self.passes.idle(self.objective, self.records[some], missing))

    def _perturbation(self) -> Perturbation:
        """What moves the weights along a direction, made anew where the masks changed."""
        weights = self.weights
        if self._perturb is None or self._masks is not weights.masks:
            self._masks = weights.masks
            self._perturb = perturbation(
                self.objective.model, weights.parameters, weights.directions,
                masks=weights.masks, mode=self.passes.mode, cache=weights.cache,
            )  # fmt: skip
        return self._perturb


def of_units(
    differences: Tensor, losses: Tensor, rows: Sequence[Sequence[int]], *, reduction: str
) -> tuple[Tensor, Tensor]:
    """Differences (P, U) and losses (U,) of units, from those of their rows: a difference is linear in the losses."""
    of = torch.repeat_interleave(torch.tensor([len(unit) for unit in rows], dtype=torch.long))
    each = [unit_losses(row, of, len(rows), reduction=reduction) for row in (*differences, losses)]
    return torch.stack(each[:-1]) if len(differences) else differences.new_zeros(0, len(rows)), each[-1]


def _release(stage: ZOStage, differences: Tensor, noise: Noise) -> list[float]:
    clipped = clip_differences(differences, stage.plan.clipping_norm, stage.clip)
    return release(
        clipped,
        noise_std=stage.plan.noise_std,
        normaliser=stage.plan.normaliser,
        noise=noise,
        mechanism=stage.mechanism,
    )
