"""From records to batches and losses, alike for a run, its control and its audit of real records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import Config
from dpaudit.runs.records import Records
from dpaudit.runs.units import unit_names

if TYPE_CHECKING:
    import numpy as np

    from dpaudit.runs.prepare import Prepared
    from dpaudit.trainers import Infilling


def is_causal(config: Config) -> bool:
    return config.model.task == "causal-lm"


def infilling(config: Config, tokenizer: Any) -> Infilling | None:
    """The prompt and words of text infilling, None for another task.

    Raises
    ------
    InvalidValue
        When the tokenizer has no mask, a word is not one token, or ``data.max_length`` leaves no room for a text.
    """
    if config.model.task != "text-infilling":
        return None
    from dpaudit.trainers import Infilling

    assert config.model.template is not None and config.model.words is not None  # the configuration required them
    task = Infilling(tokenizer, config.model.template, config.model.words)
    try:
        task.encode([""], 0, length=config.data.max_length)
    except InvalidValue as error:
        raise InvalidValue(
            f"data.max_length={config.data.max_length} leaves no room for a text in model.template={task.template!r};"
            " raise it."
        ) from error
    return task


def private_records(prepared: Prepared) -> list[dict[str, Any]]:
    """Tokenised private records, then canaries and beacons whose coin is 1 (whole, never truncated)."""
    config, secret = prepared.config, prepared.secret
    records = encode(prepared, prepared.private)
    records += inserted_rows(config, secret.canaries, secret.coins, config.canaries.copies)
    if (beacons := prepared.beacons) is not None:
        records += inserted_rows(config, beacons.canaries, beacons.coins, beacons.copies)
    return records


def inserted_rows(config: Config, canaries: Any, coins: Any, copies: int) -> list[dict[str, Any]]:
    """Rows of the canaries whose coin is 1, alike for a run and for its control."""
    from dpaudit.attacks.canaries.canary import inserted

    # A new-token canary is scored on its secret positions alone, so only they are trained on.
    supervise = "scored" if config.canaries.kind == "new-token" else "all"
    return inserted(canaries, coins, copies, supervise=supervise)


def private_units(prepared: Prepared) -> Sequence[Any] | None:
    """Name of the unit of each of :func:`private_records`, None where no column tells them."""
    inserted = len(prepared.secret.canaries.present(prepared.secret.coins))
    beacons = 0 if prepared.beacons is None else int(prepared.beacons.coins.sum())
    return unit_names(prepared.config, prepared.private, inserted, beacons)


def encode(prepared: Prepared, records: Records) -> list[dict[str, Any]]:
    """Token ids of records, cut to ``data.max_length``; causal records stand between end-of-text tokens."""
    config, tokenizer = prepared.config, prepared.tokenizer
    length = config.data.max_length
    if config.data.prompt_columns:
        return [_answered(tokenizer, text, length) for text in records.texts]
    if is_causal(config):
        eos = tokenizer.eos_token_id
        rows = tokenizer(list(records.texts), add_special_tokens=False)["input_ids"]
        ids = [[eos, *row, eos][:length] for row in rows]
        return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": list(row)} for row in ids]
    assert records.labels is not None
    if (task := infilling(config, tokenizer)) is not None:
        rows = [
            task.encode([text], label, length=length) for text, label in zip(records.texts, records.labels, strict=True)
        ]
        return [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    rows = tokenizer(list(records.texts), truncation=True, max_length=length)["input_ids"]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": label}
        for row, label in zip(rows, records.labels, strict=True)
    ]


def _answered(tokenizer: Any, text: str, length: int) -> dict[str, Any]:
    """A prompt and the text after it, of which the text alone is learnt."""
    from dpaudit.runs.records import PROMPT_END
    from dpaudit.trainers.tasks.text import encode_pair

    prompt, _, answer = text.rpartition(PROMPT_END)
    row = encode_pair(tokenizer, prompt, answer, length=length)
    return {**row, "attention_mask": [1] * len(row["input_ids"])}


def collator(prepared: Prepared) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Right-pads a list of records to tensors; padding carries no label."""
    import torch

    pad, causal = prepared.tokenizer.pad_token_id, is_causal(prepared.config)
    device = prepared.config.optimizer.device

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows], device=device)

        labels = padded("labels", -100) if causal else torch.tensor([row["labels"] for row in rows], device=device)
        return {"input_ids": padded("input_ids", pad), "attention_mask": padded("attention_mask", 0), "labels": labels}

    return collate


def loss_function(prepared: Prepared) -> Callable[[Any, dict[str, Any]], Any]:
    """Per-example losses of the configured task, in the configured precision."""
    import torch

    from dpaudit.trainers import causal_lm_losses, sequence_classification_losses

    options, causal = prepared.config.optimizer, is_causal(prepared.config)
    task = infilling(prepared.config, prepared.tokenizer)
    plain = sequence_classification_losses if task is None else task.losses
    kind, low = options.device.partition(":")[0], options.precision == "bf16"

    def losses(model: Any, batch: dict[str, Any]) -> Any:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=low):
            found = causal_lm_losses(model, **batch) if causal else plain(model, batch)
        return found.float()

    return losses


def training_options(prepared: Prepared) -> dict[str, Any]:
    """What the configuration says of first-order training beside the plan: alike for a run and for its control."""
    from dpaudit.trainers import OptimizerSettings

    options = prepared.config.optimizer
    settings = OptimizerSettings(
        algorithm="adamw",
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        schedule=options.schedule,
    )
    return {
        "collate": collator(prepared),
        "loss_fn": loss_function(prepared),
        "optimizer": settings,
        "physical_batch_size": options.physical_batch_size,
    }


def public_quality(prepared: Prepared, model: Any) -> float:
    """Perplexity per token (causal) or accuracy (classification) on the PUBLIC records."""
    import torch

    collate, records = collator(prepared), encode(prepared, prepared.public)
    task = infilling(prepared.config, prepared.tokenizer)
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(records), 64):
            batch = collate(records[start : start + 64])
            if task is not None:
                logits = task.class_logits(model, batch).float()
            else:
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
            if is_causal(prepared.config):
                target = batch["labels"][:, 1:]
                loss = torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1), target.flatten(), reduction="sum"
                )
                total, count = total + float(loss), count + int((target != -100).sum())
            else:
                total += float((logits.argmax(-1) == batch["labels"]).sum())
                count += len(batch["labels"])
    return float(torch.tensor(total / count).exp()) if is_causal(prepared.config) else total / count


def losses_of(prepared: Prepared, model: Any, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Loss (n,) of each record in the run's own encoding, by a model in evaluation mode."""
    import numpy as np
    import torch

    collate, loss = collator(prepared), loss_function(prepared)
    model.eval()
    with torch.no_grad():
        parts = [loss(model, collate(list(rows[i : i + 64]))).double().cpu().numpy() for i in range(0, len(rows), 64)]
    return np.concatenate(parts)
