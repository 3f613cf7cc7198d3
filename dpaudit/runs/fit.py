"""The training phase: segments between checkpoints, each counted in the ledger; resumes after any stop."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.runs.config import Config
from dpaudit.runs.prepare import Prepared, open_journal
from dpaudit.runs.records import Records
from dpaudit.runs.sources import load_model
from dpaudit.storage.journal import DiskJournal

if TYPE_CHECKING:
    from dpaudit.trainers import PrivacyPlan


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
    continues from the checkpoint with the steps that remain, so that the ledger never exceeds the plan.
    """
    import torch

    config = prepared.config
    if config.optimizer.threads:
        torch.set_num_threads(config.optimizer.threads)
    model = load_model(config, prepared.base, classes=prepared.public.classes)
    before = public_quality(prepared, model)
    model = select_trainable(model, config)
    with open_journal(prepared) as journal:
        return _continue(prepared, model, journal, before, advance)


def _continue(
    prepared: Prepared, model: Any, journal: DiskJournal, before: float, advance: Callable[[int], None]
) -> Fitted:
    config = prepared.config
    state = _restore(prepared, model)
    counted = journal.ledger().steps
    lost = counted - int(state["steps"])
    advance(counted)
    if counted < sum(plan.steps for plan in prepared.plans):
        check_sensitivity(prepared, model)
    records, statuses = private_records(prepared), set(state["statuses"])
    optimizer_state, start = state["optimizer"], 0
    for index, plan in enumerate(prepared.plans):
        done = min(max(counted - start, 0), plan.steps)
        while done < plan.steps:
            stop = min(plan.steps, done + max(1, -(-config.privacy.steps // config.run.checkpoints)))
            run = _zeroth_order if config.privacy.method == "dp-zoso" else _first_order
            status, optimizer_state = run(
                prepared, model, records, plan, index, journal, done, stop, optimizer_state, advance
            )
            statuses.add(status)
            done = stop
            _save(prepared, model, optimizer_state, start + done - lost, lost, sorted(statuses))
        start += plan.steps
    model = merged(model).eval()
    return Fitted(
        model=model,
        status="test" if "test" in statuses else "completed",
        steps_counted=journal.ledger().steps,
        steps_lost=lost,
        heldout_before=before,
        heldout_after=public_quality(prepared, model),
    )


def check_sensitivity(prepared: Prepared, model: Any) -> None:
    """Preflight on generated records of the collator's schema: refuses a model or loss without the claimed sensitivity.

    Two short made-up records give the schema, so that no private record is read.
    """
    from dpaudit.trainers import preflight, preflight_losses

    config, collate, loss_fn = prepared.config, collator(prepared), loss_function(prepared)
    length = max(2, min(12, config.data.max_length - 5))  # preflight lengthens records by 5 tokens
    ids = [0] * length
    row = {"input_ids": ids, "attention_mask": [1] * length, "labels": ids if _causal(config) else 0}
    schema = collate([row, row])
    if config.privacy.method == "dp-zoso":
        preflight_losses(model, schema, loss_fn=loss_fn, examples=2)
    else:
        preflight(model, schema, loss_fn=loss_fn, examples=2)


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
    plan: PrivacyPlan,
    index: int,
    journal: DiskJournal,
    done: int,
    stop: int,
    optimizer_state: Any,
    advance: Callable[[int], None],
) -> tuple[str, Any]:
    from dpaudit.trainers import OptimizerSettings, train

    options = prepared.config.optimizer
    log = _PrivateLog(prepared.folder.private / "steps.jsonl")

    def callback(report: Any) -> None:
        log.write(report.step, report.private)
        advance(1)

    result = train(
        model,
        records,
        dataclasses.replace(plan, steps=stop),
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
        callback=callback,
        start_step=done,
        optimizer_state=optimizer_state,
    )
    return result.status, result.optimizer_state


def _zeroth_order(*arguments: Any) -> tuple[str, Any]:
    from dpaudit.runs.fit_zeroth_order import segment

    return segment(*arguments)


class _PrivateLog:
    """Realised batch sizes and mean losses, which are private."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, step: int, private: Any) -> None:
        losses = private.losses
        row = {
            "step": step,
            "batch_size": len(losses),
            "mean_loss": float(losses.mean()) if len(losses) else None,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _restore(prepared: Prepared, model: Any) -> dict[str, Any]:
    """Load the last checkpoint, or the state of a run that has not begun."""
    import torch

    path = prepared.folder.checkpoint
    if not path.exists():
        return {"steps": 0, "optimizer": None, "statuses": []}
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        model.load_state_dict(state.pop("model"))
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidEvidence(
            f"checkpoint {path} cannot be read ({type(error).__name__}); restore it, or start a new run folder."
        ) from error
    return state


def _save(prepared: Prepared, model: Any, optimizer: Any, steps: int, lost: int, statuses: list[str]) -> None:
    """Write a checkpoint atomically; it holds neither noise nor sampler state."""
    import torch

    path = prepared.folder.checkpoint
    temporary = path.with_name(path.name + ".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer, "steps": steps, "statuses": statuses}
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
