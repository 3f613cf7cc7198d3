"""Private first-order training in a bare loop: everything is checked first, then the plan's steps run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import nn

from dpaudit import Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, StorageFailed
from dpaudit.privacy.protocols import Journal
from dpaudit.trainers.contribution import Clipper, Summing
from dpaudit.trainers.counted import refuse_uncounted
from dpaudit.trainers.distributed.examination import refuse_faulty_release
from dpaudit.trainers.distributed.reduction import OneProcess, Reduction, refuse_unshared
from dpaudit.trainers.distributed.shards import gather_nothing, has_shards
from dpaudit.trainers.distributed.watched import refuse_observers_of_the_whole
from dpaudit.trainers.heartbeat import Heartbeat
from dpaudit.trainers.noise import Noise, NoiseSource
from dpaudit.trainers.objective import Batch, LossFunction, Objective
from dpaudit.trainers.observer import Canaries, Observers, Recorder, contribution_of, refuse_undrawn
from dpaudit.trainers.optimizers import DPOptimizer, OptimizerSettings
from dpaudit.trainers.physical import PhysicalBatch
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.preflight.before import before_training
from dpaudit.trainers.preflight.check import PreflightReport
from dpaudit.trainers.refusals import refuse_compiled, refuse_wrapped
from dpaudit.trainers.release import Releaser, clipper_for
from dpaudit.trainers.sampling import Sampler, countable, sampler_for
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.step import trainable
from dpaudit.trainers.steps import StepReport, Steps
from dpaudit.trainers.stopping import TrainingStopped, sealed
from dpaudit.trainers.target import check
from dpaudit.trainers.units import Units, draws_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What one call of :func:`dpaudit.trainers.train` executed.

    Parameters
    ----------
    status : str
        "completed", or "test" when a sampler or noise with injected randomness took part; such a run cannot be
        certified.
    steps : int
        Steps executed in the whole run, earlier segments included.
    stage : Stage
        The stage this call executed, with the steps it counted.
    optimizer_state : dict
        For a resume. It holds moments and never sampler or noise state.
    physical_batch_size : int
        Micro-batch in use at the end (smaller than asked for after an out-of-memory).
    seconds : float
        Wall-clock time.
    preflight : PreflightReport or None
        What was checked before the first step.
    """

    status: str
    steps: int
    stage: Stage
    optimizer_state: dict[str, Any] = dataclasses.field(repr=False)
    physical_batch_size: int
    seconds: float
    preflight: PreflightReport | None = None


def train(
    model: nn.Module,
    records: Sequence[Any],
    plan: PrivacyPlan,
    *,
    collate: Callable[[list[Any]], Batch],
    loss_fn: LossFunction,
    journal: Journal,
    optimizer: OptimizerSettings | None = None,
    physical_batch_size: int | Literal["auto"] = 16,
    callback: Callable[[StepReport], bool | None] | None = None,
    sampler: Sampler | None = None,
    noise: Noise | None = None,
    clipper: Clipper | Summing | None = None,
    reduction: Reduction | None = None,
    start_step: int = 0,
    optimizer_state: Mapping[str, Any] | None = None,
    units: Units | Iterable[Any] | None = None,
    rows_per_record: int = 1,
    canaries: Canaries | None = None,
    recorder: Recorder | None = None,
    preflight: bool | Sequence[Any] | None = None,
) -> TrainingResult:
    """Train a model privately, as the plan says, in place.

    Every module keeps the mode (train or eval) it comes in, also after a callback that changed it. What forward passes
    write into buffers and attributes is put back after each, so that the noisy release alone remains of the records.

    Parameters
    ----------
    model : nn.Module
        Trainable parameters are those with ``requires_grad``.
    records : sequence
        One item for each record; its length may differ from the plan's ``public_size``.
    plan : PrivacyPlan
        With σ known: calibrate before.
    collate : callable
        List of records to a batch on any device.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``; each loss may depend on its own example alone (see :func:`preflight`).
    journal : Journal
        Every step is counted in it before its noisy release.
    optimizer : OptimizerSettings, optional
        How releases become updates; Adam with a constant rate by default.
    physical_batch_size : int or "auto"
        Records in one micro-batch: a speed option, without influence on the result. Halves on out-of-memory; "auto"
        fits it to the memory that the first steps leave free.
    callback : callable or None
        Called after every step with a ``StepReport``; True ends the run after this step. A stop decided from
        ``private`` values is not free.
    sampler, noise, clipper : optional
        Injected for tests, planted faults and other methods; by default what the plan says.
    reduction : optional
        What the processes of a run do together; see ``distributed_options``. With a sharded model (FSDP2), releases
        and optimizer state are this process's shards.
    start_step, optimizer_state : optional
        Resume after ``start_step`` steps, which a journal on disk must have counted. The sampler and the noise start
        afresh, always.
    units : iterable, optional
        Name of each record's unit of privacy. Records of which a unit has more than ``plan.max_records_per_unit`` are
        refused; with ``plan.sampling_unit="unit"`` the units are what is drawn and clipped. Without it the plan's bound
        is an assumption that nothing checked.
    rows_per_record : int
        Successive rows of a batch that are one record with one loss, such as the two of a preference pair: they are
        clipped as one.
    canaries, recorder : optional
        In-run canaries, which are drawn with the records' q and added to the clipped sums, and a record of the
        releases' energy. With several processes they are given to ``distributed_options``.
    preflight : bool, sequence or None
        Whether records made up in the form of ``records`` go through collator, model and loss first, and what couples
        them is refused (see :func:`preflight`); or the made-up records to take. By default they do, unless a clipper is
        injected, for whose sensitivity the caller then answers.

    Returns
    -------
    TrainingResult

    Raises
    ------
    InvalidValue, PrivacyRefusal, UnsupportedModel
        Before the first step, with what to change.
    StorageFailed
        When the journal or the callback could not write a file; its ``result`` is of the steps that ran.
    """
    together = OneProcess() if reduction is None else reduction
    settings = optimizer or OptimizerSettings()
    _refuse(model, plan, journal, start_step, together)
    parameters = trainable(model)
    updates = DPOptimizer(together.owned(parameters.values()), settings)
    if optimizer_state is not None:
        updates.load_state_dict(dict(optimizer_state))
    contributors = draws_of(plan, countable(records), units)
    refuse_observers_of_the_whole(together, canaries, recorder)
    observers = Observers(plan, contributors.count, canaries=canaries, recorder=recorder)
    draws = sampler_for(plan, observers.drawn_from) if sampler is None else sampler
    refuse_undrawn(draws, observers.drawn_from, canaries=canaries is not None)
    source = _source(plan) if noise is None else noise
    micro = PhysicalBatch(physical_batch_size)
    objective = Objective(model=model, collate=collate, loss_fn=loss_fn, rows=rows_per_record)
    report = None
    if start_step < plan.steps:
        report = before_training(
            objective,
            records,
            physical_batch_size=micro.size,
            wanted=clipper is None if preflight is None else preflight,
            forward_only=together.shares_passes,
        )
    held: AbstractContextManager[Any] = nullcontext()
    if clipper is None:
        clipper = held = clipper_for(model, plan, updates.param_groups[0].get("clipping_norm"), rows=rows_per_record)
    if canaries is not None:
        contribution_of(clipper, plan.clipping_norm)  # raises for a rule that gives a canary no single bound
    units_become = plan.unit_reduction if plan.draws_units else None
    modes = {module: module.training for module in model.modules()}
    objective = dataclasses.replace(objective, reduction=units_become, state=ModelState(model))
    trained = list(parameters.values())
    if start_step < plan.steps:
        refuse_faulty_release(model, trained, together, source)
    with held:
        steps = Steps(
            plan=plan, records=records, objective=objective, journal=journal, sampler=draws, contributors=contributors,
            observers=observers, clipper=clipper, release=Releaser(plan, clipper, source, reduction=together),
            updates=updates, settings=settings, micro=micro, together=together, parameters=trained, modes=modes,
        )  # fmt: skip
        is_test = bool(source.is_test or draws.is_test or contributors.is_test)
        return _run(steps, start_step, callback, report, is_test=is_test)


def _refuse(model: nn.Module, plan: PrivacyPlan, journal: Journal, start_step: int, together: Reduction) -> None:
    """Refuse what can be told to be wrong before anything is made."""
    plan.stage(0)  # raises where σ is still to be calibrated
    validate.integer_at_least(0, start_step=start_step)
    if start_step > plan.steps:
        raise InvalidValue(f"start_step={start_step} must be <= steps={plan.steps}; the plan is used up.")
    refuse_uncounted(journal, start_step)
    check(plan)
    if has_shards(model):
        gather_nothing(model)
    refuse_wrapped(model)
    refuse_compiled(model)
    trainable(model)
    refuse_unshared(model, together)


def _run(
    steps: Steps,
    start_step: int,
    callback: Callable[[StepReport], bool | None] | None,
    report: PreflightReport | None,
    *,
    is_test: bool,
) -> TrainingResult:
    """Run the steps that are left; the journal is sealed however they end."""
    plan, begun = steps.plan, time.monotonic()

    def done() -> int:
        return start_step + steps.executed

    beat = Heartbeat(plan, lambda: dataclasses.replace(plan.ledger(), stages=(plan.stage(done()),)))
    reason, failure = "interrupted", None
    steps.journal.begin(plan.stage(0))
    try:
        for number in range(start_step, plan.steps):
            told = steps.step(number)
            beat.step(number + 1)
            ends = callback is not None and steps.together.any(callback(told) is True)
            del told  # a release is as large as the model, and another is about to be made
            if ends:
                break
        reason = "completed"
    except StorageFailed as error:
        failure = error
    finally:
        steps.sums.clear()
        beat.end(done())
        failure = sealed(steps.journal, reason, failure, is_test=is_test)
    result = TrainingResult(
        status="test" if is_test else "completed",
        steps=done(),
        stage=dataclasses.replace(plan.stage(0), steps=steps.executed),
        optimizer_state=steps.updates.state_dict(),
        physical_batch_size=steps.micro.size,
        seconds=time.monotonic() - begun,
        preflight=report,
    )
    if failure is not None:
        raise TrainingStopped.after(failure, result) from failure
    return result


def _source(plan: PrivacyPlan) -> Noise:
    return NoiseSource(secure=True) if plan.secure_noise else NoiseSource()
