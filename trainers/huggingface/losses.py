"""Per-example losses of Hugging Face architectures, chosen by the head of the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.tasks.losses import IGNORED, causal_lm_losses, sequence_classification_losses, token_losses


def per_example_losses(model: nn.Module, batch: dict[str, Tensor], *, chunked_head: bool = False) -> Tensor:
    """(B,) losses of a batch in Hugging Face's convention, never its own batch-averaged loss.

    Causal models shift their labels; masked, sequence-to-sequence and token-classification models do not; sequence
    classification takes integer labels. Token losses are means over each example's own counted tokens.

    Raises
    ------
    PrivacyRefusal
        If the head is another one; pass ``per_example_loss`` then.
    """
    head = _head(model)
    if "labels" not in batch:
        raise PrivacyRefusal("the batch has no 'labels' for a per-example loss; let the collator add them.")
    if head.endswith(("ForCausalLM", "LMHeadModel")):
        extra = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask", "labels")}
        if not extra:
            mask = batch.get("attention_mask")
            return causal_lm_losses(model, batch["input_ids"], mask, batch["labels"], chunked_head=chunked_head)
        labels = batch["labels"]
        if (mask := batch.get("attention_mask")) is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return token_losses(model(**inputs, use_cache=False).logits[:, :-1], labels[:, 1:])
    if head.endswith("ForSequenceClassification") and not batch["labels"].is_floating_point():
        return sequence_classification_losses(model, batch)
    if head.endswith(("ForMaskedLM", "ForTokenClassification")):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return token_losses(model(**inputs).logits, batch["labels"])
    if head.endswith("ForConditionalGeneration"):
        # These models shift the labels into decoder inputs themselves, and only when labels are passed.
        return token_losses(model(**batch, use_cache=False).logits, batch["labels"])
    raise PrivacyRefusal(
        f"model {head} has no per-example loss here; pass per_example_loss=f with f(model, batch) -> (B,)."
    )


def _head(model: nn.Module) -> str:
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    return type(inner).__name__
