"""Private training with forward passes alone: everything is checked first, then the stages run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dpaudit import Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.protocols import Journal
from dpaudit.trainers.counted import refuse_uncounted
from dpaudit.trainers.distributed.shards import has_shards
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.noise import Noise, NoiseSource
from dpaudit.trainers.objective import LossFunction, Objective
from dpaudit.trainers.observer import refuse_undrawn
from dpaudit.trainers.preflight.before import before_training
from dpaudit.trainers.sampling import Sampler, countable, sampler_for
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.stopping import TrainingStopped
from dpaudit.trainers.target import check
from dpaudit.trainers.units import Units, draws_of
from dpaudit.trainers.witness import ReleaseRecorder
from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.distributed import OneProcess, World, refuse_apart_from_shards
from dpaudit.trainers.zeroth_order.log import ZOLog, ZOLogWriter
from dpaudit.trainers.zeroth_order.perturb import BitCache
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage, as_plan
from dpaudit.trainers.zeroth_order.step import refuse_data_dependent
from dpaudit.trainers.zeroth_order.steps import Passes, StageParts, ZOReport, ZOSteps
from dpaudit.trainers.zeroth_order.watched import ScalarCanaries, Watched
from dpaudit.trainers.zeroth_order.weights import ZOWeights, refuse_mask_of_shards


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZOResult:
    """What one call of :func:`dpaudit.trainers.zo_train` executed.

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
        Trainable parameters are those with ``requires_grad``; they must be fp32 or fp64. After ``fully_shard`` (FSDP2)
        each process moves its own shard; every one of them passes ``world=TorchWorld("records")``.
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
        Called after every step with a ``ZOReport``; True ends the run after this step. A stop decided from
        ``private`` values is not free.
    sampler, noise : optional
        Injected for tests and planted faults.
    world : World or None
        Processes that share the step's directions or records; see ``TorchWorld``.
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

    Returns
    -------
    ZOResult
        Status, the stages that ran, the log, and the state for the next call; the model itself is changed in place.

    Raises
    ------
    InvalidValue, PrivacyRefusal, UnsupportedModel
        Before the first step, with what to change.
    StorageFailed
        When the journal, the log or the callback could not write a file; its ``result`` is of the steps that ran.
    """
    plan = as_plan(stages)
    refuse_data_dependent(directions)
    known = units if isinstance(units, Units) or units is None else Units.named(units, records=countable(records))
    validate.integer_at_least(1, physical_batch_size=physical_batch_size)
    parts = list(_parts(plan, countable(records), known, sampler, canaries, recorder))
    check(plan)
    trainable_parameters(model)  # refuses weights of a type that no step can move, before the preflight runs them
    world = OneProcess() if world is None else world
    if has_shards(model):
        refuse_apart_from_shards(world)
        for stage in plan.stages:
            refuse_mask_of_shards(stage.mask)
    objective = Objective(model=model, collate=collate, loss_fn=loss_fn)
    with evaluating(model):
        before_training(
            objective, records, physical_batch_size=physical_batch_size, wanted=preflight, forward_only=True
        )
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
    steps = ZOSteps(
        objective=dataclasses.replace(objective, state=ModelState(model)),
        records=records,
        weights=weights,
        passes=Passes(size=physical_batch_size, pad=pad_batches, mode=perturbation_mode),
        journal=journal,
        log=writer,
        world=world,
        noise=source,
        callback=callback,
    )
    begun, is_test = time.monotonic(), bool(source.is_test)
    with evaluating(model):
        for number, first, last in _spans(plan, start, stop):
            is_test = is_test or parts[number].is_test
            if not steps.run_stage(parts[number], first, last, is_test=is_test):
                break
    result = ZOResult(
        status="test" if is_test else "completed",
        stages=tuple(steps.executed),
        log=writer.value(),
        state=weights.state(),
        seconds=time.monotonic() - begun,
    )
    if steps.failure is not None:
        raise TrainingStopped.after(steps.failure, result) from steps.failure
    return result


def _parts(
    plan: ZOPlan,
    records: int,
    units: Units | None,
    sampler: Sampler | None,
    canaries: ScalarCanaries | None,
    recorder: ReleaseRecorder | None,
) -> Iterator[StageParts]:
    """What draws for each stage and what watches it; σ is known and the sampler can be named, before anything runs."""
    before = 0
    for number, stage in enumerate(plan.stages):
        stage.plan.stage()
        contributors = draws_of(stage.plan, records, units)
        watched = Watched(stage, contributors.count, canaries=canaries, recorder=recorder)
        draws = sampler_for(stage.plan, watched.drawn_from) if sampler is None else sampler
        refuse_undrawn(draws, watched.drawn_from, canaries=canaries is not None)
        yield StageParts(
            number=number, stage=stage, before=before, contributors=contributors, watched=watched, sampler=draws
        )
        before += stage.plan.steps


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
