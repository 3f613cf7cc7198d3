"""One segment of a zeroth-order (DP-ZOSO) run inside the training phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.runs.checkpoint import CheckpointFile
from dpaudit.runs.config import Config

if TYPE_CHECKING:
    from dpaudit.runs.segment import Part, Segment
    from dpaudit.trainers import PrivacyPlan
    from dpaudit.trainers.zeroth_order.directions import Directions
    from dpaudit.trainers.zeroth_order.stages import ZOStage


def stages_of(config: Config, plans: Sequence[PrivacyPlan]) -> tuple[ZOStage, ...]:
    """The stages of DP-ZOSO that a configuration asks for, with the steps and σ of its plans."""
    from dpaudit.trainers.zeroth_order.stages import zoso

    options = config.zeroth_order
    assert options is not None  # the configuration required it
    steps = [plan.steps for plan in plans]
    return zoso(
        dataclasses.replace(plans[0], steps=sum(steps)),
        learning_rate=config.optimizer.learning_rate,
        scale=options.scale,
        stages=len(plans),
        steps=steps,
        proximal=options.proximal,
    ).stages


def directions_of(config: Config, purpose: str) -> Directions:
    """Public directions of one purpose: a run or an examination."""
    from dpaudit.trainers.zeroth_order.directions import Directions

    options = config.zeroth_order
    assert options is not None
    return Directions(run=f"{config.run.seed}/{purpose}", kind=options.distribution)  # type: ignore[arg-type]


def segment(part: Part) -> Segment:
    """Run one part of a stage.

    The (seed, coefficient) log grows in ``release/``: with the base model it rebuilds the weights.
    """
    from dpaudit.runs.encoding import collator, loss_function, private_units
    from dpaudit.runs.segment import Segment
    from dpaudit.trainers.distributed.checkpoint import whole_weights
    from dpaudit.trainers.distributed.layers import whole_by_name
    from dpaudit.trainers.stopping import TrainingStopped
    from dpaudit.trainers.zeroth_order.log import ZOLogWriter
    from dpaudit.trainers.zeroth_order.stages import ZOPlan
    from dpaudit.trainers.zeroth_order.tasks import fixed_length
    from dpaudit.trainers.zeroth_order.train import zo_train

    prepared, failure, team = part.prepared, None, part.team
    config = prepared.config
    team.shard(part.model)
    log = ZOLogWriter(prepared.folder.zeroth_order_log if team.leads else None)
    try:
        result = zo_train(
            part.model,
            part.records,
            ZOPlan(stages_of(config, prepared.plans)),
            collate=fixed_length(collator(prepared), config.data.max_length, pad=prepared.tokenizer.pad_token_id),
            loss_fn=loss_function(prepared),
            # Directions are public and two runs on the same records must not share them, so they follow from the
            # commitment.
            directions=directions_of(config, str(prepared.audit_plan.coin_commitment)),
            log=log,
            physical_batch_size=config.optimizer.physical_batch_size,
            callback=part.after_step,
            start=(part.stage, part.start),
            stop=(part.stage, part.stop),
            state=_own(part),
            units=private_units(prepared),
            canaries=part.watch.canaries,
            recorder=part.watch.recorder,
            preflight=False,  # check_sensitivity did it once for all segments
            **team.zeroth_order(part.model),
        )
    except TrainingStopped as stopped:
        result, failure = stopped.result, stopped
        if team.leads:
            # Makes room for the lines of the log that are still to be written.
            CheckpointFile(prepared.folder.checkpoint).let_go()
            log.flush()
    finally:
        log.close()
    steps = part.start + sum(stage.steps for stage in result.stages)
    state, weights = result.state, None
    if team.sharded:
        team.own = state
        anchor = whole_by_name(part.model, state["anchor"])
        state, weights = {**state, "anchor": anchor}, whole_weights(part.model)
    return Segment(status=result.status, steps=steps, state=state, weights=weights, failure=failure)


def _own(part: Part) -> Any:
    """What this process's weights go on from: with shards, its own part of the stage's anchor."""
    from dpaudit.trainers.distributed.layers import own_by_name

    state = part.state if part.team.own is None else part.team.own
    if state is None or not part.team.sharded or state is part.team.own:
        return state
    return {**state, "anchor": own_by_name(part.model, state["anchor"])}
