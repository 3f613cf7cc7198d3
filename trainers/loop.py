"""The bare training loop: draw, count, clip, one noise, one update; also for empty draws."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import Tensor, nn

from dpaudit import Journal, Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, StorageFailed
from dpaudit.trainers.contribution import Clipper, RunningSum, Summing, summing
from dpaudit.trainers.counted import refuse_uncounted
from dpaudit.trainers.distributed.examination import refuse_faulty_release
from dpaudit.trainers.distributed.reduction import OneProcess, Reduction, count_together, refuse_unshared
from dpaudit.trainers.distributed.shards import gather_nothing, has_shards
from dpaudit.trainers.draw import Draw, clipped_sum
from dpaudit.trainers.heartbeat import Heartbeat
from dpaudit.trainers.noise import Noise, NoiseSource
from dpaudit.trainers.observer import Canaries, Observers, contribution_of, refuse_undrawn
from dpaudit.trainers.optimizers import DPOptimizer, OptimizerSettings
from dpaudit.trainers.physical import PhysicalBatch
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.preflight.before import before_training
from dpaudit.trainers.preflight.check import PreflightReport
from dpaudit.trainers.refusals import refuse_compiled, refuse_wrapped
from dpaudit.trainers.release import Releaser, clipper_for
from dpaudit.trainers.sampling import Sampler, countable, sampler_for
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.step import (
    Batch,
    LossFunction,
    PrivateStep,
    trainable,
)
from dpaudit.trainers.stopping import TrainingStopped, sealed
from dpaudit.trainers.target import check
from dpaudit.trainers.units import Units, draws_of
from dpaudit.trainers.witness import ReleaseRecorder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a callback sees after a step. Everything but ``private`` may be published.

    Parameters
    ----------
    step : int
        Steps executed so far in the whole run, this one included.
    planned_steps : int
        T of the plan.
    learning_rate, clipping_norm : float
        Those of this step (adaptive clipping's norm is a function of earlier releases).
    released : tuple of Tensor
        The noisy mean gradient (fp32), in the model's parameter order.
    private : PrivateStep
        Noise-free values; keep them in memory or in ``private/``.
    """

    step: int
    planned_steps: int
    learning_rate: float
    clipping_norm: float
    released: tuple[Tensor, ...] = dataclasses.field(repr=False)
    private: PrivateStep = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What ran.

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
    recorder: ReleaseRecorder | None = None,
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
    physical_batch_size : int or "auto"
        Records in one micro-batch: a speed option, without influence on the result. Halves on out-of-memory; "auto"
        fits it to the memory that the first steps leave free.
    callback : callable or None
        Called after every step with a :class:`StepReport`; True ends the run after this step. A stop decided from
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
        releases' energy. With several processes a ``sampler`` has to draw the canaries too: that of
        ``distributed_options`` draws records alone, and is refused beside canaries.
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
    TrainingStopped
        When the journal or the callback could not write a file; it holds the result of the steps that ran.
    """
    stage = plan.stage(0)
    validate.integer_at_least(0, start_step=start_step)
    if start_step > plan.steps:
        raise InvalidValue(f"start_step={start_step} must be <= steps={plan.steps}; the plan is used up.")
    refuse_uncounted(journal, start_step)
    settings = optimizer or OptimizerSettings()
    check(plan)
    together = OneProcess() if reduction is None else reduction
    if has_shards(model):
        gather_nothing(model)
    refuse_wrapped(model)
    refuse_compiled(model)
    parameters = trainable(model)
    refuse_unshared(model, together)
    updates = DPOptimizer(together.owned(parameters.values()), settings)
    if optimizer_state is not None:
        updates.load_state_dict(dict(optimizer_state))
    contributors = draws_of(plan, countable(records), units)
    observers = Observers(plan, contributors.count, canaries=canaries, recorder=recorder)
    draws = sampler_for(plan, observers.drawn_from) if sampler is None else sampler
    refuse_undrawn(draws, observers.drawn_from)
    source = _source(plan) if noise is None else noise
    is_test = bool(source.is_test or draws.is_test or contributors.is_test)
    micro = PhysicalBatch(physical_batch_size)
    report = None
    if start_step < plan.steps:
        report = before_training(
            model,
            records,
            collate=collate,
            loss_fn=loss_fn,
            physical_batch_size=micro.size,
            wanted=clipper is None if preflight is None else preflight,
            rows=rows_per_record,
            forward_only=together.shares_passes,
        )
    held: AbstractContextManager[Any] = nullcontext()
    if clipper is None:
        clipper = held = clipper_for(model, plan, updates.param_groups[0].get("clipping_norm"), rows=rows_per_record)
    if canaries is not None:
        contribution_of(clipper, plan.clipping_norm)  # refuses a rule that gives a canary no one bound
    modes, state = {module: module.training for module in model.modules()}, ModelState(model)
    begun, executed = time.monotonic(), 0
    beat = Heartbeat(plan, lambda: dataclasses.replace(plan.ledger(), stages=(plan.stage(start_step + executed),)))
    trained = list(parameters.values())
    sums = RunningSum(trained)
    reason, failure = "interrupted", None
    if together.shares_passes and start_step < plan.steps:
        refuse_faulty_release(model, trained, together, source)
    with held:
        release = Releaser(plan, clipper, source, reduction=together)
        journal.begin(stage)
        try:
            for step in range(start_step, plan.steps):
                for module, mode in modes.items():  # also of the modules that stand apart from the model's own
                    module.training = mode
                indices = draws.draw().tolist()
                drawn = Draw.of(records, contributors.rows(observers.records_of(indices)))
                passes = count_together(journal, together, model, drawn.passes(micro.size))
                executed += 1
                bound = release.clipping_norm
                private, total = clipped_sum(
                    model,
                    drawn,
                    micro=micro,
                    collate=collate,
                    loss_fn=loss_fn,
                    clipper=summing(clipper, trained, bound),
                    sums=sums,
                    bound=bound,
                    state=state,
                    reduction=plan.unit_reduction if plan.draws_units else None,
                    rows=rows_per_record,
                    passes=passes if together.shares_passes else None,
                    stand_in=lambda: records[0],
                )
                totals = total.totals(trained)
                observers.add_to(totals, indices, clipper, bound)
                released = release(total, totals)
                observers.observe(released.gradients, clipper, bound)
                rate = settings.rate(step, plan.steps)
                for group in updates.param_groups:
                    group["lr"], group["clipping_norm"] = rate, release.clipping_norm
                updates.receive(released.gradients, released.noise_std)
                updates.step()
                beat.step(step + 1)
                if callback is not None:
                    told = callback(
                        StepReport(
                            step=step + 1,
                            planned_steps=plan.steps,
                            learning_rate=rate,
                            clipping_norm=released.clipping_norm,
                            released=tuple(released.gradients),
                            private=private,
                        )
                    )
                    if together.any(told is True):
                        break
            reason = "completed"
        except StorageFailed as error:
            failure = error
        finally:
            sums.clear()
            beat.end(start_step + executed)
            failure = sealed(journal, reason, failure, is_test=is_test)
    result = TrainingResult(
        status="test" if is_test else "completed",
        steps=start_step + executed,
        stage=dataclasses.replace(stage, steps=executed),
        optimizer_state=updates.state_dict(),
        physical_batch_size=micro.size,
        seconds=time.monotonic() - begun,
        preflight=report,
    )
    if failure is not None:
        raise TrainingStopped.after(failure, result) from failure
    return result


def _source(plan: PrivacyPlan) -> Noise:
    return NoiseSource(secure=True) if plan.secure_noise else NoiseSource()
