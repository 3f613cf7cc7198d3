"""Per-example losses of Hugging Face architectures, chosen by the head of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.tasks.losses import next_token_losses, sequence_classification_losses, token_losses
from dpaudit.trainers.tasks.padding import attended_targets, decoder_labels, starting_left


def per_example_losses(model: nn.Module, batch: Mapping[str, Any], *, chunked_head: bool = False) -> Tensor:
    """(B,) losses of a batch in Hugging Face's convention, never its own batch-averaged loss.

    Causal models shift their labels; masked, sequence-to-sequence and token-classification models do not; sequence
    classification takes one integer label an example. Token losses are means over each example's own counted tokens,
    and padding of the batch, on either side, moves none of them.

    Raises
    ------
    PrivacyRefusal
        If the head is another one, or the labels are not of its kind; pass ``per_example_loss`` then.
    """
    head = _head(model)
    if "labels" not in batch:
        raise PrivacyRefusal("the batch has no 'labels' for a per-example loss; let the collator add them.")
    labels: Tensor = batch["labels"]
    if head.endswith(("ForCausalLM", "LMHeadModel")):
        _refuse_labels(head, labels, axes=2)
        return next_token_losses(model, batch, chunked_head=chunked_head)
    if head.endswith("ForSequenceClassification"):
        _refuse_labels(head, labels, axes=1)
        if getattr(getattr(model, "config", None), "num_labels", 2) < 2:
            raise PrivacyRefusal(
                f"model {head} has num_labels=1, a score and no classes, and so no per-example loss here; pass"
                " per_example_loss=f with f(model, batch) -> (B,)."
            )
        return sequence_classification_losses(model, batch)
    if head.endswith(("ForMaskedLM", "ForTokenClassification")):
        _refuse_labels(head, labels, axes=2)
        inputs = starting_left(batch)
        labels = attended_targets(inputs.pop("labels"), inputs.get("attention_mask"))
        return token_losses(model(**inputs).logits, labels)
    if head.endswith("ForConditionalGeneration"):
        _refuse_labels(head, labels, axes=2)
        inputs = starting_left({k: v for k, v in batch.items() if not k.startswith(("decoder", "labels"))})
        decoder = {k: v for k, v in batch.items() if k.startswith("decoder")}
        if not decoder:
            labels = decoder_labels(labels)
        # These models make decoder inputs from labels themselves, and only when labels are passed, so they are passed.
        logits = model(**inputs, **decoder, labels=labels, use_cache=False).logits
        return token_losses(logits, attended_targets(labels, decoder.get("decoder_attention_mask")))
    raise PrivacyRefusal(
        f"model {head} has no per-example loss here; pass per_example_loss=f with f(model, batch) -> (B,)."
    )


def _refuse_labels(head: str, labels: Tensor, *, axes: int) -> None:
    shape = "(B,), one integer class" if axes == 1 else "(B, T), one integer for each token"
    if labels.ndim != axes or labels.is_floating_point():
        raise PrivacyRefusal(
            f"model {head} with labels of shape {tuple(labels.shape)} and type {labels.dtype} has no per-example loss"
            f" here, where they must be {shape} of an example; pass per_example_loss=f with f(model, batch) -> (B,)."
        )


def _head(model: nn.Module) -> str:
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    return type(inner).__name__
