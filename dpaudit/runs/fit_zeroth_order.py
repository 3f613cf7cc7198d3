"""One segment of a zeroth-order (DP-ZOSO) run inside the training phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.runs.config import Config
from dpaudit.runs.prepare import Prepared
from dpaudit.storage.journal import DiskJournal

if TYPE_CHECKING:
    from dpaudit.trainers import PrivacyPlan
    from dpaudit.trainers.zeroth_order.directions import Directions
    from dpaudit.trainers.zeroth_order.stages import ZOStage

LOG_NAME = "zo_log.jsonl"


def stages_of(config: Config, plans: Sequence[PrivacyPlan]) -> tuple[ZOStage, ...]:
    """What a configuration makes of its stages' plans: the rate halves from stage to stage."""
    from dpaudit.trainers.zeroth_order.stages import ZOStage

    options = config.zeroth_order
    assert options is not None  # the configuration required it
    return tuple(
        ZOStage(
            plan=plan,
            learning_rate=config.optimizer.learning_rate * 0.5**number,
            scale=options.scale,
            proximal=options.proximal,
        )
        for number, plan in enumerate(plans)
    )


def directions_of(config: Config, purpose: str) -> Directions:
    """Public directions of one purpose: a run or an examination."""
    from dpaudit.trainers.zeroth_order.directions import Directions

    options = config.zeroth_order
    assert options is not None
    return Directions(run=f"{config.run.seed}/{purpose}", kind=options.distribution)  # type: ignore[arg-type]


def segment(
    prepared: Prepared,
    model: Any,
    records: list[dict[str, Any]],
    plan: PrivacyPlan,
    index: int,
    journal: DiskJournal,
    done: int,
    stop: int,
    state: Any,
    advance: Callable[[int], None],
) -> tuple[str, Any]:
    """Run stage ``index`` from step ``done`` up to ``stop``; returns the status and the state for the next segment.

    The (seed, coefficient) log grows in ``release/``: with the base model it rebuilds the weights.
    """
    from dpaudit.runs.fit import _PrivateLog, collator, loss_function
    from dpaudit.trainers.zeroth_order.log import ZOLogWriter
    from dpaudit.trainers.zeroth_order.stages import ZOPlan
    from dpaudit.trainers.zeroth_order.tasks import fixed_length
    from dpaudit.trainers.zeroth_order.train import zo_train

    config = prepared.config
    stages = ZOPlan(stages_of(config, prepared.plans))
    # Public, and of this run alone: two runs on the same records do not share directions.
    directions = directions_of(config, str(prepared.audit_plan.coin_commitment))
    private_log = _PrivateLog(prepared.folder.private / "steps.jsonl")

    def callback(report: Any) -> None:
        private_log.write(report.step, report.private)
        advance(1)

    log = ZOLogWriter(prepared.folder.release / LOG_NAME)
    try:
        result = zo_train(
            model,
            records,
            stages,
            collate=fixed_length(collator(prepared), config.data.max_length, pad=prepared.tokenizer.pad_token_id),
            loss_fn=loss_function(prepared),
            journal=journal,
            directions=directions,
            log=log,
            physical_batch_size=config.optimizer.physical_batch_size,
            callback=callback,
            start=(index, done),
            stop=(index, stop),
            state=state,
        )
    finally:
        log.close()
    return result.status, result.state
