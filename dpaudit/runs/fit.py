"""The training phase: segments between checkpoints, each counted in the ledger; resumes after any stop."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import InvalidEvidence, RunInterrupted, StorageFailed
from dpaudit.privacy.protocols import LastingJournal
from dpaudit.runs.checkpoint import Checkpoint, CheckpointFile, load_weights, read_checkpoint
from dpaudit.runs.config import Config
from dpaudit.runs.encoding import (
    collator,
    is_causal,
    loss_function,
    private_records,
    private_units,
    public_quality,
    training_options,
)
from dpaudit.runs.fit_zeroth_order import segment as zeroth_order_segment
from dpaudit.runs.in_run.planning import SCALARS_BLOCK
from dpaudit.runs.in_run.watch import BYTES_PER_STEP, Watch, watch_of
from dpaudit.runs.prepare import Prepared, open_journal, refuse_overspending
from dpaudit.runs.processes import Team, gathered
from dpaudit.runs.resume import refuse_lost_steps, whole_run
from dpaudit.runs.segment import Part, Segment
from dpaudit.runs.sources import load_model, merged, select_trainable
from dpaudit.runs.steps_log import StepsLog
from dpaudit.storage.journal import DiskJournal

if TYPE_CHECKING:
    from dpaudit.trainers.stopping import Interruption


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained model and what the training phase measured on public text."""

    model: Any
    status: str
    steps_counted: int
    steps_lost: int
    """Steps that were counted and whose update was lost to a crash."""
    heldout_before: float
    heldout_after: float
    watch: Watch = dataclasses.field(default_factory=Watch, repr=False)
    """What the in-run audit saw."""


def fit(prepared: Prepared, advance: Callable[[int], None] = lambda n: None) -> Fitted:
    """Run or continue the training phase to the planned number of counted steps.

    After a crash the steps counted since the last checkpoint are lost to the model but stay charged: the run
    continues from the checkpoint with the steps that remain, so that the ledger never exceeds the plan. Ctrl-C or
    SIGTERM finishes the step, saves and raises :class:`RunInterrupted`.

    Raises
    ------
    InvalidEvidence
        When the ledger holds fewer steps than the checkpoint knows of.
    PrivacyRefusal
        When ledger and remaining plan are above the claim.
    StorageFailed
        When a file could not be written; what ran is saved first.
    """
    import torch

    config = prepared.config
    checkpoint = read_checkpoint(prepared.folder.checkpoint)
    refuse_lost_steps(prepared.folder, checkpoint)
    with open_journal(prepared) as journal, gathered(prepared, journal) as team:
        if config.optimizer.threads:
            torch.set_num_threads(config.optimizer.threads)
        model = load_model(config, prepared.base, classes=prepared.public.classes)
        before = public_quality(prepared, model)
        model = select_trainable(model, config)
        load_weights(prepared.folder.checkpoint, checkpoint, model)
        return _continue(prepared, model, journal, team, checkpoint, before, advance)


def _continue(
    prepared: Prepared,
    model: Any,
    journal: DiskJournal,
    team: Team,
    checkpoint: Checkpoint,
    before: float,
    advance: Callable[[int], None],
) -> Fitted:
    from dpaudit.trainers.stopping import finish_the_step

    config, planned = prepared.config, sum(plan.steps for plan in prepared.plans)
    watch = _watch(prepared, model)
    watch.resume(checkpoint.observers)
    counted = journal.steps
    lost = counted - checkpoint.steps
    advance(counted)
    file = CheckpointFile(prepared.folder.checkpoint)
    statuses = set(checkpoint.statuses)
    weights: Mapping[str, Any] | None = None
    try:
        if counted < planned:
            if counted:
                refuse_overspending(config, whole_run(journal.ledger(), prepared.plans), counted=counted)
            # A checkpoint also holds AdamW's two fp32 moments, or the fp32 copy that a zeroth-order stage pulls
            # towards.
            file.reserve(
                model,
                bytes_per_number=4 if config.privacy.method == "dp-zoso" else 8,
                beside=watch.bytes + planned * BYTES_PER_STEP,
            )
            check_sensitivity(prepared, model)
            with finish_the_step() as told:
                for segment in _segments(prepared, model, team, checkpoint.optimizer, watch, advance, told):
                    statuses.add(segment.status)
                    weights = segment.weights
                    _keep(file, journal, model, segment, segment.steps - lost, statuses, watch)
                    if team.any(told.signal is not None):
                        raise RunInterrupted(
                            f"stopped by {told.name or 'a signal to another process'} after {segment.steps} of"
                            f" {planned} private steps, which are saved; run the same command again to go on.",
                            told.signal or signal.SIGTERM,
                        )
                    if segment.steps < planned:
                        file.reserve_next()
    finally:
        file.give_back()
    if lost >= planned:
        raise InvalidEvidence(
            f"all {planned} charged steps of {prepared.folder.root} were lost to stops before a checkpoint, so that its"
            " weights are those it began with; start a new run folder, with more run.checkpoints if stops are likely."
        )
    if weights is not None:
        model = _whole_again(prepared, weights)
    model = merged(model).eval()
    return Fitted(
        model=model,
        status="test" if "test" in statuses else "completed",
        steps_counted=journal.steps,
        steps_lost=lost,
        heldout_before=before,
        heldout_after=public_quality(prepared, model),
        watch=watch,
    )


def _whole_again(prepared: Prepared, weights: Mapping[str, Any]) -> Any:
    """The trained model, whole in the first process, where it was trained in shards."""
    model = load_model(prepared.config, prepared.base, classes=prepared.public.classes)
    model = select_trainable(model, prepared.config)
    model.load_state_dict(weights)
    return model


def _watch(prepared: Prepared, model: Any) -> Watch:
    """The observers of this run, for the tensors that the method releases."""
    from dpaudit.trainers import trainable

    sizes = {SCALARS_BLOCK: prepared.plans[0].releases_per_step}
    if prepared.config.privacy.method != "dp-zoso":
        sizes = {name: p.numel() for name, p in trainable(model).items()}
    return watch_of(prepared.in_run, prepared.in_run_secret, prepared.plans, sizes)


def _segments(
    prepared: Prepared,
    model: Any,
    team: Team,
    state: Any,
    watch: Watch,
    advance: Callable[[int], None],
    told: Interruption,
) -> Iterator[Segment]:
    """Run what is left of every stage, a checkpoint's share at a time."""
    assert isinstance(team.journal, LastingJournal)
    config, start, counted = prepared.config, 0, team.journal.steps
    records, run = private_records(prepared), runner_of(config)
    log = StepsLog(prepared.folder.steps_log)

    unwritten: list[StorageFailed] = []

    def after_step(report: Any) -> bool:
        try:
            log.write(report.step, report.private)
        except StorageFailed as failure:
            if not team.sharded:
                raise
            unwritten.append(failure)  # the others have to hear of it before they give their shards
        advance(1)
        return told.signal is not None or bool(unwritten)

    for index, plan in enumerate(prepared.plans):
        done = min(max(counted - start, 0), plan.steps)
        while done < plan.steps:
            stop = min(plan.steps, done + max(1, -(-config.privacy.steps // config.run.checkpoints)))
            team.order(index, (done, stop), state if team.own is None else None)
            segment = run(
                Part(
                    prepared=prepared, model=model, records=records, team=team, stage=index, start=done,
                    stop=stop, state=state, after_step=after_step, watch=watch,
                )
            )  # fmt: skip
            done, state = segment.steps, segment.state
            failure = unwritten[0] if unwritten else segment.failure
            yield dataclasses.replace(segment, steps=start + done, failure=failure)
        start += plan.steps


def _keep(
    file: CheckpointFile,
    journal: DiskJournal,
    model: Any,
    segment: Segment,
    steps: int,
    statuses: set[str],
    watch: Watch,
) -> None:
    """Save what ran; when a file could not be written, save it all the same and then say so."""
    if segment.failure is not None:
        file.let_go()
    file.write(
        Checkpoint(
            steps=steps,
            counted=journal.steps,
            head=journal.head,
            statuses=tuple(sorted(statuses)),
            model=model.state_dict() if segment.weights is None else segment.weights,
            optimizer=segment.state,
            observers=watch.state(),
        )
    )
    if segment.failure is not None:
        told = str(segment.failure).rstrip(".")
        raise StorageFailed(f"{told}; the {steps} steps in the model are saved.") from segment.failure


def check_sensitivity(prepared: Prepared, model: Any) -> None:
    """Preflight on made-up records through the run's own collator: refuses what lacks the claimed sensitivity.

    One made-up record gives the form, so that no private record is read.
    """
    from dpaudit.trainers import CollatedRecords, preflight
    from dpaudit.trainers.preflight.check import preflight_losses

    config, loss_fn = prepared.config, loss_function(prepared)
    ids = [0] * max(2, min(20, config.data.max_length))
    row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids if is_causal(config) else 0}
    source = CollatedRecords([row], collator(prepared), config.optimizer.physical_batch_size)
    if config.privacy.method == "dp-zoso":
        preflight_losses(model, source, loss_fn=loss_fn, examples=2)
    else:
        preflight(model, source, loss_fn=loss_fn, examples=2)


def runner_of(config: Config) -> Callable[[Part], Segment]:
    """What runs one segment of the configured method."""
    return zeroth_order_segment if config.privacy.method == "dp-zoso" else _first_order


def _first_order(part: Part) -> Segment:
    from dpaudit.trainers import train
    from dpaudit.trainers.distributed.checkpoint import whole_weights
    from dpaudit.trainers.distributed.layers import whole_optimizer_state
    from dpaudit.trainers.stopping import TrainingStopped
    from dpaudit.trainers.units import draws_of

    prepared, failure, team = part.prepared, None, part.team
    units, plan = private_units(prepared), dataclasses.replace(prepared.plans[part.stage], steps=part.stop)
    team.shard(part.model)
    try:
        result = train(
            part.model,
            part.records,
            plan,
            units=units,
            callback=part.after_step,
            start_step=part.start,
            optimizer_state=_own(part),
            preflight=False,  # check_sensitivity did it once for all segments
            **training_options(prepared),
            **team.first_order(part.model, plan, draws_of(plan, len(part.records), units).count, part.watch),
        )
    except TrainingStopped as stopped:
        result, failure = stopped.result, stopped
    state: Any = result.optimizer_state
    weights = None
    if team.sharded:
        team.own = state
        state, weights = whole_optimizer_state(part.model, state), whole_weights(part.model)
    return Segment(status=result.status, steps=result.steps, state=state, weights=weights, failure=failure)


def _own(part: Part) -> Any:
    """The optimizer state that this process goes on from: with shards its own part, which no other needs to know."""
    from dpaudit.trainers.distributed.layers import own_optimizer_state

    if not part.team.sharded or part.team.own is not None:
        return part.state if part.team.own is None else part.team.own
    return None if part.state is None else own_optimizer_state(part.model, part.state)
