"""Per-example losses of the language tasks: each depends on its own example alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.ghost.uses import wide
from dpaudit.trainers.tasks.head import chunked_losses
from dpaudit.trainers.tasks.padding import refuse_stretched, shifted_targets, starting_left
from dpaudit.trainers.tasks.tokens import IGNORED as IGNORED
from dpaudit.trainers.tasks.tokens import token_losses as token_losses


def causal_lm_losses(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    chunked_head: bool = False,
) -> Tensor:
    """Mean next-token loss of each example over its own valid tokens.

    Parameters
    ----------
    model : nn.Module
        A causal language model in Hugging Face's calling convention (returns ``.logits`` of shape (B, T, V)).
    input_ids : Tensor of shape (B, T)
    attention_mask : Tensor of shape (B, T) or None
        0 marks padding, on either side. A target counts where it and the position that predicts it are attended; rows
        padded on the left are moved to their first column.
    labels : Tensor of shape (B, T) or None
        Unshifted labels with -100 where no loss is wanted (a prompt, a table); the inputs themselves if None.
    chunked_head : bool, default=False
        Compute the head and the losses a few examples at a time, so that the (B, T, V) logits never exist; for models
        whose logits are one linear layer of the last hidden state. Takes effect under a clipper, with a frozen head,
        and without gradients.

    Returns
    -------
    Tensor of shape (B,)
        In nats per token; 0 for an example without valid tokens. Unlike the model's own loss, it does not divide by
        the number of tokens in the batch, which would couple the examples.
    """
    batch = {"input_ids": input_ids, "labels": input_ids if labels is None else labels}
    if attention_mask is not None:
        batch["attention_mask"] = attention_mask
    return next_token_losses(model, batch, chunked_head=chunked_head)


def next_token_losses(model: nn.Module, batch: Mapping[str, Any], *, chunked_head: bool = False) -> Tensor:
    """Like :func:`causal_lm_losses`, for a batch with further fields of the model's (``position_ids``, …).

    Parameters
    ----------
    batch : mapping
        ``labels`` (B, T), unshifted, with -100 where no loss is wanted, and what the model is called with.
    """
    inputs = starting_left(batch)
    shifted = shifted_targets(inputs.pop("labels"), inputs.get("attention_mask"))
    refuse_stretched(model, shifted.shape[1] + 1)
    if chunked_head:
        return chunked_losses(model, inputs, shifted)
    logits = model(**inputs, use_cache=False).logits
    return token_losses(logits[:, :-1], shifted)


def classification_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example; logits (B, K) with K ≥ 2, integer labels (B,) in [0, K), returns (B,) in nats."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InvalidValue(
            f"logits of shape {tuple(logits.shape)} must be (B, K) with K >= 2 classes; select one position an example,"
            " and give ratings or scores a loss of their own."
        )
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise InvalidValue(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} must be {len(logits)} integers, one class"
            " for each example; give several labels an example or ratings a loss of their own."
        )
    classes = logits.shape[1]
    if bool(((labels >= classes) | ((labels < 0) & (labels != IGNORED))).any()):
        raise InvalidValue(
            f"labels must be in [0, {classes}), the model's classes; load it with num_labels=K of yours."
        )
    return F.cross_entropy(wide(logits), labels, reduction="none", ignore_index=IGNORED)


def sequence_classification_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Loss of each example of a batch with ``labels``, for a model that returns ``.logits`` of shape (B, K).

    Parameters
    ----------
    model : nn.Module
        Called with the batch but for its labels.
    batch : mapping of Tensor
        With ``labels`` (B,).

    Returns
    -------
    Tensor of shape (B,)
        Cross-entropy of each example, fp32.
    """
    inputs = starting_left(batch)
    labels = inputs.pop("labels")
    return classification_losses(model(**inputs).logits, labels)


def pad_tokens(records: list[list[int]], *, pad: int = 0, length: int | None = None) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels`` of token lists, cut to ``length``.

    Parameters
    ----------
    records : list of list of int
        Token ids.
    pad : int, default=0
        Token id to fill with, which the mask hides.
    length : int, optional
        Tokens that are kept of each record; all by default.

    Returns
    -------
    dict of str to Tensor
        int64 tensors (B, T) with T the longest record that is left; labels are −100 where padded, which losses
        skip.
    """
    cut = [tokens[:length] for tokens in records]
    width = max([1, *map(len, cut)])
    ids = torch.full((len(cut), width), pad, dtype=torch.long)
    mask = torch.zeros((len(cut), width), dtype=torch.long)
    for row, tokens in enumerate(cut):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}
