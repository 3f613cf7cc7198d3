"""The zeroth-order training loop, its weights' state, and the replay of its log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import Journal, Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue, PrivacyRefusal, StorageFailed
from dpaudit.trainers.counted import refuse_uncounted
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.noise import Noise, NoiseSource
from dpaudit.trainers.preflight.before import before_training
from dpaudit.trainers.sampling import Sampler, countable, sampler_for
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.stopping import TrainingStopped, sealed
from dpaudit.trainers.target import check
from dpaudit.trainers.units import Units, draws_of, unit_losses
from dpaudit.trainers.witness import ReleaseRecorder
from dpaudit.trainers.zeroth_order.coordinates import (
    Mask,
    check_masks,
    masks_digest,
    trainable_parameters,
    weights_digest,
)
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.distributed import OneProcess, World, counted_by_the_first
from dpaudit.trainers.zeroth_order.log import Release, StageEntry, ZOLog, ZOLogWriter
from dpaudit.trainers.zeroth_order.perturb import BitCache, perturbation
from dpaudit.trainers.zeroth_order.pruning import MaskRule, pruning_mask
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage, as_plan
from dpaudit.trainers.zeroth_order.step import (
    Chunk,
    LossFunction,
    apply_update,
    clip_differences,
    loss_differences,
    refuse_data_dependent,
    release,
)
from dpaudit.trainers.zeroth_order.watched import ScalarCanaries, Watched


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
class ZOResult:
    """What ran.

    Attributes
    ----------
    status : str
        "completed", or "test" when randomness was injected; such a run cannot be certified.
    stages : tuple of Stage
        Stages this call executed, with the steps it counted.
    log : ZOLog
        The (seed, coefficient) log; with the base model it rebuilds the weights.
    state : dict
        For a resume: anchor, mask and number of updates. It holds neither noise nor sampler state.
    """

    status: str
    stages: tuple[Stage, ...]
    log: ZOLog = dataclasses.field(repr=False)
    state: dict[str, Any] = dataclasses.field(repr=False)
    seconds: float


class ZOWeights:
    """The moving weights with their anchor and mask; training and replay drive the same object."""

    def __init__(self, model: nn.Module, directions: Directions, *, cache: BitCache | None = None) -> None:
        self.model, self.directions = model, directions
        self.parameters = trainable_parameters(model)
        self.cache = BitCache(0) if cache is None else cache
        self.masks: dict[str, Mask] | None = None
        self.anchor: dict[str, Tensor] | None = None
        self.updates = 0
        self.stage: int | None = None
        self._rule: MaskRule | None = None
        self._schedule: Mapping[str, Any] = {}

    def header(self) -> dict[str, Any]:
        """What the log says about base model and directions."""
        return {
            "run": self.directions.run,
            "generator": self.directions.generator,
            "kind": self.directions.kind.value,
            "clips": "slope (f+ - f-)/2β",
            "tensors": [[name, list(p.shape)] for name, p in sorted(self.parameters.items())],
            "base_sha256": weights_digest(self.parameters),
            "torch": torch.__version__.split("+")[0],
        }

    def begin(self, index: int, schedule: Mapping[str, Any], *, done: int, step: int) -> None:
        """Enter a stage: a fresh COPY of the weights as anchor, and the mask its rule asks for.

        A stage that already has updates in the weights goes on with the anchor and mask it has.
        """
        self._schedule = schedule
        if done and self.stage == index:
            return
        self.stage = index
        rule = None if schedule["mask"] is None else MaskRule(**schedule["mask"])
        if rule is None:
            self.masks = None
        elif rule.strategy != "static" or self._rule is None or rule.for_stage(0) != self._rule.for_stage(0):
            self._mask(rule, step)
        self._rule = rule
        self.anchor = None
        if schedule["proximal"]:
            # A copy: an alias would follow the in-place updates and make the pull zero for ever.
            self.anchor = {name: p.detach().clone() for name, p in self.parameters.items()}

    def refresh(self, *, done: int, step: int) -> None:
        """Recompute a dynamic mask where its rule says so; called before every step."""
        value = self._schedule["mask"]
        if value is None or not done or not value["refresh_every"] or done % value["refresh_every"]:
            return
        self._mask(MaskRule(**value), step)

    def apply(self, released: Sequence[float], *, step: int) -> None:
        """One update."""
        apply_update(
            self.parameters,
            self.directions,
            released,
            step=step,
            learning_rate=self._schedule["learning_rate"],
            proximal=self._schedule["proximal"],
            anchor=self.anchor,
            masks=self.masks,
            cache=self.cache,
        )
        self.updates += 1

    def _mask(self, rule: MaskRule, step: int) -> None:
        self.masks = pruning_mask(self.model, self.parameters, rule, self.directions, key=step, previous=self.masks)
        check_masks(self.parameters, self.masks)

    def state(self) -> dict[str, Any]:
        """Plain dict of tensors and numbers for a checkpoint."""
        masks = self.masks or {}
        return {
            "updates": self.updates,
            "stage": self.stage,
            "rule": None if self._rule is None else self._rule.to_dict(),
            "masked": self.masks is not None,
            "mask_index": {name: mask.index for name, mask in masks.items()},
            "mask_weight": {name: mask.weight for name, mask in masks.items() if mask.weight is not None},
            "anchor": self.anchor,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`state` back; the weights themselves come with the model."""
        self.updates, self.stage, self.anchor = int(state["updates"]), state["stage"], state["anchor"]
        self._rule = None if state["rule"] is None else MaskRule(**state["rule"])
        weights = state["mask_weight"]
        masks = {name: Mask(index=index, weight=weights.get(name)) for name, index in state["mask_index"].items()}
        self.masks = masks if state["masked"] else None


def zo_train(
    model: nn.Module,
    records: Sequence[Any],
    stages: ZOPlan | ZOStage | Sequence[ZOStage],
    *,
    collate: Callable[[list[Any]], Any],
    loss_fn: LossFunction,
    journal: Journal,
    directions: Directions,
    log: ZOLogWriter | None = None,
    physical_batch_size: int = 16,
    pad_batches: bool = True,
    perturbation_mode: str = "per_layer",
    cache_bytes: int = 0,
    callback: Callable[[ZOReport], bool | None] | None = None,
    sampler: Sampler | None = None,
    noise: Noise | None = None,
    world: World | None = None,
    start: tuple[int, int] = (0, 0),
    stop: tuple[int, int] | None = None,
    state: Mapping[str, Any] | None = None,
    units: Units | Iterable[Any] | None = None,
    canaries: ScalarCanaries | None = None,
    recorder: ReleaseRecorder | None = None,
    preflight: bool | Sequence[Any] = True,
) -> ZOResult:
    """Fine-tune with forward passes alone, as the stages' plans say, in place.

    The model is in evaluation mode while it runs (dropout would join the two passes of a difference to chance).

    Parameters
    ----------
    model : nn.Module
        Trainable parameters are those with ``requires_grad``; they must be fp32 or fp64.
    records : sequence
        One item for each record; its length may differ from the plans' ``public_size``.
    stages : ZOPlan, ZOStage or sequence of ZOStage
        With σ known: calibrate before.
    collate : callable
        List of records to a batch. Pad to one length for all batches (``fixed_length``), so that no record changes
        the rounding of another's loss.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)`` in fp32 or fp64; each loss may depend on its own example alone.
    journal : Journal
        One stage is begun for each stage, and every step is counted before its noisy release, empty draws too.
    directions : Directions
        Public. Anything else is refused: directions that depend on private data need a budget of their own.
    log : ZOLogWriter or None
        Receives the released numbers.
    physical_batch_size, pad_batches : int, bool
        Records in one forward pass; a short last one is filled by repeating a record whose result is dropped, so
        that every pass has one shape.
    perturbation_mode : str
        "per_layer" (out of place, exact) or "in_place" (for weights that are read outside their module).
    cache_bytes : int
        Random bits of the current direction kept in memory, to be drawn once instead of three times. Speed only.
    callback : callable or None
        Called after every step with a :class:`ZOReport`; True ends the run after this step. A stop decided from
        ``private`` values is not free.
    sampler, noise : optional
        Injected for tests and planted faults.
    world : World or None
        Processes that share the step's directions or records; see :class:`TorchWorld`.
    start, stop : (stage, step) pairs
        Run from ``start`` (inclusive) up to ``stop`` (exclusive; default: the end), for checkpoints and resumes.
    state : mapping or None
        ``ZOResult.state`` of the call before, when ``start`` is inside the run.
    units : iterable, optional
        Name of each record's unit of privacy, as in ``train``; a drawn unit's loss differences are clipped as one.
    canaries, recorder : optional
        In-run canaries, which are drawn with the records' q and have known loss differences, and a record of the
        releases' energy (its one block has the step's P scalars). They belong to the first process of a world.
    preflight : bool or sequence
        Whether records made up in the form of ``records`` go through collator, model and loss first, and what couples
        them is refused (see ``preflight_losses``); or the made-up records to take.

    Raises
    ------
    InvalidValue, PrivacyRefusal, UnsupportedModel
        Before the first step, with what to change.
    TrainingStopped
        When the journal, the log or the callback could not write a file; it holds the result of the steps that ran.
    """
    plan = as_plan(stages)
    refuse_data_dependent(directions)
    known = units if isinstance(units, Units) or units is None else Units.named(units, records=countable(records))
    validate.integer_at_least(1, physical_batch_size=physical_batch_size)
    for stage in plan.stages:
        stage.plan.stage()  # σ is known and the sampler can be named, before anything runs
        if sampler is None:
            sampler_for(stage.plan, draws_of(stage.plan, countable(records), known).count)
    check(plan)
    trainable_parameters(model)  # refuses weights of a type that no step can move, before the preflight runs them
    with evaluating(model):
        before_training(
            model,
            records,
            collate=collate,
            loss_fn=loss_fn,
            physical_batch_size=physical_batch_size,
            wanted=preflight,
            forward_only=True,
        )
    world = OneProcess() if world is None else world
    weights = ZOWeights(model, directions, cache=BitCache(cache_bytes))
    if state is not None:
        weights.load(state)
    if world.rank == 0:
        refuse_uncounted(journal, max(weights.updates, sum(s.plan.steps for s in plan.stages[: start[0]]) + start[1]))
    writer = ZOLogWriter() if log is None else log
    begins = weights.header()
    if world.any(world.share(begins) != begins):
        raise PrivacyRefusal(
            "the processes hold different base weights or directions, so that their losses would be of different"
            " models; give every process rank 0's weights and the same run key."
        )
    writer.header(begins)
    writer.rewind(weights.updates)
    source = noise if noise is not None else NoiseSource(secure=True) if plan.secure_noise else NoiseSource()
    is_test = source.is_test
    executed: list[Stage] = []
    failure: StorageFailed | None = None
    begun = time.monotonic()
    forwards = ModelState(model)
    with evaluating(model):
        for index, first, last in _spans(plan, start, stop):
            stage = plan.stages[index]
            base = sum(earlier.plan.steps for earlier in plan.stages[:index])
            contributors = draws_of(stage.plan, countable(records), known)
            watched = Watched(stage, contributors.count, canaries=canaries, recorder=recorder)
            draws = sampler_for(stage.plan, watched.drawn_from) if sampler is None else sampler
            is_test = is_test or draws.is_test or contributors.is_test
            schedule = stage.schedule()
            weights.begin(index, schedule, done=first, step=base + first)
            writer.stage(
                StageEntry(index=index, done=first, schedule=schedule, mask_sha256=masks_digest(weights.masks))
            )
            if world.rank == 0:
                journal.begin(stage.plan.stage(0))
            reason, count, stopped = "interrupted", 0, False
            perturb, held = None, None
            try:
                for done in range(first, last):
                    step = base + done
                    weights.refresh(done=done, step=step)
                    if perturb is None or held is not weights.masks:
                        perturb = perturbation(
                            model, weights.parameters, directions,
                            masks=weights.masks, mode=perturbation_mode, cache=weights.cache,
                        )  # fmt: skip
                        held = weights.masks
                    indices: list[int] = world.share(draws.draw().tolist() if world.rank == 0 else None)
                    counted_by_the_first(world, journal)
                    count += 1
                    # Which of a unit's records take part is chosen once, for every process.
                    chosen = contributors.rows(watched.records_of(indices)) if world.rank == 0 else None
                    drawn: list[list[int]] = world.share(chosen)
                    rows = world.units(drawn)
                    own_records = [i for unit in rows for i in unit]
                    chunks = list(_chunks(records, own_records, collate, physical_batch_size, pad_batches))
                    forwards.refresh()
                    found, losses = loss_differences(
                        model,
                        chunks,
                        loss_fn,
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
                    released = world.share(_release(stage, joined, source) if world.rank == 0 else None)
                    watched.observe(step, released)
                    weights.apply(released, step=step)
                    writer.release(Release(step=step, values=tuple(released)))
                    told: bool | None = None
                    if callback is not None:
                        private = ZOPrivate(losses=losses, differences=differences, indices=tuple(own_records))
                        report = ZOReport(
                            step=step + 1, stage=index, schedule=stage, released=tuple(released), private=private
                        )
                        told = callback(report)
                    if stopped := world.any(told is True):
                        break
                reason = "completed"
            except StorageFailed as error:
                failure = error
            finally:
                if world.rank == 0:
                    failure = sealed(journal, reason, failure, is_test=is_test)
                executed.append(stage.plan.stage(count))
            if stopped or failure is not None:
                break
    result = ZOResult(
        status="test" if is_test else "completed",
        stages=tuple(executed),
        log=writer.value(),
        state=weights.state(),
        seconds=time.monotonic() - begun,
    )
    if failure is not None:
        raise TrainingStopped.after(failure, result) from failure
    return result


def replay(log: ZOLog, model: nn.Module) -> nn.Module:
    """Rebuild a run's weights in place from the base model and the log, bit for bit.

    Raises
    ------
    InvalidEvidence
        If the model is not the base the log was written for, the generator is another, or a mask recomputed from
        the weights differs from the recorded one.
    """
    return rebuild(log, model).model


def rebuild(log: ZOLog, model: nn.Module) -> ZOWeights:
    """Like :func:`replay`, with the anchor and mask in which the log ends, for a resume."""
    header = log.header
    weights = ZOWeights(model, Directions(run=str(header["run"]), kind=header["kind"]))
    for key in ("generator", "tensors", "base_sha256"):
        if weights.header()[key] != header.get(key):
            raise InvalidEvidence(
                f"the log's {key} does not fit this model; give the base model that the run began from."
            )
    done, pending = 0, None
    with evaluating(model):
        for entry in log.entries:
            if isinstance(entry, StageEntry):
                pending, done = entry, entry.done
                continue
            if pending is not None:
                weights.begin(pending.index, pending.schedule, done=pending.done, step=entry.step)
                if masks_digest(weights.masks) != pending.mask_sha256:
                    raise InvalidEvidence(
                        f"stage {pending.index}: the mask recomputed from the weights differs from the recorded one;"
                        " replay on the machine type that wrote the log."
                    )
                pending = None
            weights.refresh(done=done, step=entry.step)
            weights.apply(entry.values, step=entry.step)
            done += 1
    return weights


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


def _spans(plan: ZOPlan, start: tuple[int, int], stop: tuple[int, int] | None) -> Iterator[tuple[int, int, int]]:
    """(stage, first step, last step) of what is left to run, empty spans left out."""
    end = (len(plan.stages), 0) if stop is None else stop
    for index, stage in enumerate(plan.stages):
        first = start[1] if index == start[0] else 0 if index > start[0] else stage.plan.steps
        last = end[1] if index == end[0] else stage.plan.steps if index < end[0] else 0
        validate.integer_at_least(0, start_step=first, stop_step=last)
        if max(first, last) > stage.plan.steps:
            raise InvalidValue(
                f"stage {index} has {stage.plan.steps} planned steps and start={start}, stop={stop} go beyond; the plan"
                " is used up."
            )
        if first < last:
            yield index, first, last


def _chunks(
    records: Sequence[Any], indices: Sequence[int], collate: Callable[[list[Any]], Any], size: int, pad: bool
) -> Iterator[Chunk]:
    for at in range(0, len(indices), size):
        part = [records[i] for i in indices[at : at + size]]
        real = len(part)
        if pad:
            part += [part[0]] * (size - real)
        collated = len(part)
        yield Chunk(collate(part), real, collated)
