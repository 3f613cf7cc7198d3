"""The training phase: segments between checkpoints, each counted in the ledger; resumes after any stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import RunInterrupted, StorageFailed
from dpaudit.runs.checkpoint import Checkpoint, CheckpointFile, load_weights, read_checkpoint
from dpaudit.runs.config import Config
from dpaudit.runs.prepare import Prepared, open_journal, refuse_overspending
from dpaudit.runs.records import Records
from dpaudit.runs.resume import refuse_lost_steps, whole_run
from dpaudit.runs.sources import load_model
from dpaudit.runs.steps_log import StepsLog
from dpaudit.storage.journal import DiskJournal

if TYPE_CHECKING:
    from dpaudit.trainers import TrainingStopped
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


def private_records(prepared: Prepared) -> list[dict[str, Any]]:
    """Tokenised private records, then the canaries whose coin is 1 (whole, never truncated)."""
    from dpaudit.attacks import inserted

    config = prepared.config
    records = encode(prepared, prepared.private)
    # A new-token canary trains on its secret positions alone: nothing else in it can be told from noise later.
    supervise = "scored" if config.canaries.kind == "new-token" else "all"
    records += inserted(prepared.secret.canaries, prepared.secret.coins, config.canaries.copies, supervise=supervise)
    return records


def encode(prepared: Prepared, records: Records) -> list[dict[str, Any]]:
    """Token ids of records, cut to ``data.max_length``; causal records stand between end-of-text tokens."""
    config, tokenizer = prepared.config, prepared.tokenizer
    length = config.data.max_length
    if _causal(config):
        eos = tokenizer.eos_token_id
        rows = tokenizer(list(records.texts), add_special_tokens=False)["input_ids"]
        ids = [[eos, *row, eos][:length] for row in rows]
        return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": list(row)} for row in ids]
    assert records.labels is not None
    rows = tokenizer(list(records.texts), truncation=True, max_length=length)["input_ids"]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": label}
        for row, label in zip(rows, records.labels, strict=True)
    ]


def collator(prepared: Prepared) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Right-pads a list of records to tensors; padding carries no label."""
    import torch

    pad, causal = prepared.tokenizer.pad_token_id, _causal(prepared.config)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

        labels = padded("labels", -100) if causal else torch.tensor([row["labels"] for row in rows])
        return {"input_ids": padded("input_ids", pad), "attention_mask": padded("attention_mask", 0), "labels": labels}

    return collate


def loss_function(prepared: Prepared) -> Callable[[Any, dict[str, Any]], Any]:
    """Per-example losses of the configured task."""
    from dpaudit.trainers import causal_lm_losses, sequence_classification_losses

    if _causal(prepared.config):
        return lambda model, batch: causal_lm_losses(model, **batch)
    return lambda model, batch: sequence_classification_losses(model, batch)


def public_quality(prepared: Prepared, model: Any) -> float:
    """Perplexity per token (causal) or accuracy (classification) on the PUBLIC records."""
    import torch

    collate, records = collator(prepared), encode(prepared, prepared.public)
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(records), 64):
            batch = collate(records[start : start + 64])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
            if _causal(prepared.config):
                target = batch["labels"][:, 1:]
                loss = torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1), target.flatten(), reduction="sum"
                )
                total, count = total + float(loss), count + int((target != -100).sum())
            else:
                total += float((logits.argmax(-1) == batch["labels"]).sum())
                count += len(batch["labels"])
    return float(torch.tensor(total / count).exp()) if _causal(prepared.config) else total / count


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
    if config.optimizer.threads:
        torch.set_num_threads(config.optimizer.threads)
    model = load_model(config, prepared.base, classes=prepared.public.classes)
    before = public_quality(prepared, model)
    model = select_trainable(model, config)
    checkpoint = read_checkpoint(prepared.folder.checkpoint)
    refuse_lost_steps(prepared.folder, checkpoint)
    load_weights(prepared.folder.checkpoint, checkpoint, model)
    with open_journal(prepared) as journal:
        return _continue(prepared, model, journal, checkpoint, before, advance)


def _continue(
    prepared: Prepared,
    model: Any,
    journal: DiskJournal,
    checkpoint: Checkpoint,
    before: float,
    advance: Callable[[int], None],
) -> Fitted:
    from dpaudit.trainers.stopping import finish_the_step

    config, planned = prepared.config, sum(plan.steps for plan in prepared.plans)
    counted = journal.steps
    lost = counted - checkpoint.steps
    advance(counted)
    file = CheckpointFile(prepared.folder.checkpoint)
    statuses = set(checkpoint.statuses)
    try:
        if counted < planned:
            if counted:
                refuse_overspending(config, whole_run(journal.ledger(), prepared.plans), counted=counted)
            # Beside the weights: AdamW's two fp32 moments, or a stage's fp32 anchor.
            file.reserve(model, bytes_per_number=4 if config.privacy.method == "dp-zoso" else 8)
            check_sensitivity(prepared, model)
            with finish_the_step() as told:
                for segment in _segments(prepared, model, journal, checkpoint.optimizer, advance, told):
                    statuses.add(segment.status)
                    _keep(file, journal, model, segment, segment.steps - lost, statuses)
                    if told.signal is not None:
                        raise RunInterrupted(
                            f"stopped by {told.name} after {segment.steps} of {planned} private steps, which are saved;"
                            " run the same command again to go on.",
                            told.signal,
                        )
                    if segment.steps < planned:
                        file.reserve_next()
    finally:
        file.give_back()
    model = merged(model).eval()
    return Fitted(
        model=model,
        status="test" if "test" in statuses else "completed",
        steps_counted=journal.steps,
        steps_lost=lost,
        heldout_before=before,
        heldout_after=public_quality(prepared, model),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What ran between two checkpoints."""

    status: str
    steps: int
    """Steps of the run so far, counted from its first."""
    state: Any
    """What the next segment continues from."""
    failure: TrainingStopped | None = None
    """Why it ended early, when a file could not be written."""


def _segments(
    prepared: Prepared,
    model: Any,
    journal: DiskJournal,
    state: Any,
    advance: Callable[[int], None],
    told: Interruption,
) -> Iterator[Segment]:
    """Run what is left of every stage, a checkpoint's share at a time."""
    config, start, counted = prepared.config, 0, journal.steps
    records = private_records(prepared)
    run = _zeroth_order if config.privacy.method == "dp-zoso" else _first_order
    log = StepsLog(prepared.folder.steps_log)

    def after_step(report: Any) -> bool:
        log.write(report.step, report.private)
        advance(1)
        return told.signal is not None

    for index, plan in enumerate(prepared.plans):
        done = min(max(counted - start, 0), plan.steps)
        while done < plan.steps:
            stop = min(plan.steps, done + max(1, -(-config.privacy.steps // config.run.checkpoints)))
            segment = run(prepared, model, records, index, journal, (done, stop), state, after_step)
            done, state = segment.steps, segment.state
            yield dataclasses.replace(segment, steps=start + done)
        start += plan.steps


def _keep(
    file: CheckpointFile, journal: DiskJournal, model: Any, segment: Segment, steps: int, statuses: set[str]
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
            model=model.state_dict(),
            optimizer=segment.state,
        )
    )
    if segment.failure is not None:
        raise StorageFailed(f"{segment.failure} (The {steps} steps in the model are saved.)") from segment.failure


def check_sensitivity(prepared: Prepared, model: Any) -> None:
    """Preflight on made-up records through the run's own collator: refuses what lacks the claimed sensitivity.

    One made-up record gives the form, so that no private record is read.
    """
    from dpaudit.trainers import CollatedRecords, preflight, preflight_losses

    config, loss_fn = prepared.config, loss_function(prepared)
    ids = [0] * max(2, min(20, config.data.max_length))
    row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids if _causal(config) else 0}
    source = CollatedRecords([row], collator(prepared), config.optimizer.physical_batch_size)
    if config.privacy.method == "dp-zoso":
        preflight_losses(model, source, loss_fn=loss_fn, examples=2)
    else:
        preflight(model, source, loss_fn=loss_fn, examples=2)


def _causal(config: Config) -> bool:
    return config.model.task == "causal-lm"


def select_trainable(model: Any, config: Config) -> Any:
    """The model with ``model.trainable`` trained and the rest frozen; for LoRA inside peft's wrapper."""
    from dpaudit.trainers import trained_parameters

    which = config.model.trainable
    return trained_parameters(model, which, **({"rank": config.model.lora_rank} if which == "lora" else {}))


def merged(model: Any) -> Any:
    """The model with its adapters, if any, added into the weights: what is released, scored and audited."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _first_order(
    prepared: Prepared,
    model: Any,
    records: list[dict[str, Any]],
    index: int,
    journal: DiskJournal,
    span: tuple[int, int],
    optimizer_state: Any,
    after_step: Callable[[Any], bool],
) -> Segment:
    from dpaudit.trainers import OptimizerSettings, TrainingStopped, train

    options, failure = prepared.config.optimizer, None
    try:
        result = train(
            model,
            records,
            dataclasses.replace(prepared.plans[index], steps=span[1]),
            collate=collator(prepared),
            loss_fn=loss_function(prepared),
            journal=journal,
            optimizer=OptimizerSettings(
                algorithm="adamw",
                learning_rate=options.learning_rate,
                weight_decay=options.weight_decay,
                warmup_steps=options.warmup_steps,
            ),
            physical_batch_size=options.physical_batch_size,
            callback=after_step,
            start_step=span[0],
            optimizer_state=optimizer_state,
            preflight=False,  # check_sensitivity did it once for all segments
        )
    except TrainingStopped as stopped:
        result, failure = stopped.result, stopped
    return Segment(status=result.status, steps=result.steps, state=result.optimizer_state, failure=failure)


def _zeroth_order(*arguments: Any) -> Segment:
    from dpaudit.runs.fit_zeroth_order import segment

    return segment(*arguments)
