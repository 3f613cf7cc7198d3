"""From records to batches and losses, alike for a run, its control and its audit of real records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.runs.config import Config
from dpaudit.runs.records import Records
from dpaudit.runs.units import unit_names

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


def is_causal(config: Config) -> bool:
    return config.model.task == "causal-lm"


def private_records(prepared: Prepared) -> list[dict[str, Any]]:
    """Tokenised private records, then the canaries whose coin is 1 (whole, never truncated)."""
    from dpaudit.attacks.canaries.canary import inserted

    config = prepared.config
    records = encode(prepared, prepared.private)
    # A new-token canary trains on its secret positions alone: nothing else in it can be told from noise later.
    supervise = "scored" if config.canaries.kind == "new-token" else "all"
    records += inserted(prepared.secret.canaries, prepared.secret.coins, config.canaries.copies, supervise=supervise)
    return records


def private_units(prepared: Prepared) -> Sequence[Any] | None:
    """Name of the unit of each of :func:`private_records`, None where no column tells them."""
    return unit_names(prepared.config, prepared.private, len(prepared.secret.canaries.present(prepared.secret.coins)))


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
    kind, low = options.device.partition(":")[0], options.precision == "bf16"

    def losses(model: Any, batch: dict[str, Any]) -> Any:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=low):
            found = causal_lm_losses(model, **batch) if causal else sequence_classification_losses(model, batch)
        return found.float()

    return losses


def public_quality(prepared: Prepared, model: Any) -> float:
    """Perplexity per token (causal) or accuracy (classification) on the PUBLIC records."""
    import torch

    collate, records = collator(prepared), encode(prepared, prepared.public)
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(records), 64):
            batch = collate(records[start : start + 64])
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
