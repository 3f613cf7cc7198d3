"""Losses and batches for forward-only training: prompts with a mask, answers after a prompt, one fixed length.

Each loss is one example's own, in fp32. A batch is padded to one length for the whole run, so that no record changes
the shape, and with it the rounding, in which another record's loss is computed: a difference of two passes is divided
by 2β and would show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.objective import Collate
from dpaudit.trainers.tasks.losses import IGNORED, classification_losses, token_losses
from dpaudit.trainers.tasks.padding import refuse_stretched, shifted_targets, starting_left


def answer_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean loss of each example's answer tokens: ``labels`` (B, T) hold −100 on the prompt and on padding.

    A target counts where it and the position that predicts it are attended; padding may stand on either side.

    Returns
    -------
    Tensor of shape (B,)
        In nats per answer token, fp32; 0 for an example without an answer.
    """
    inputs = starting_left(batch)
    shifted = shifted_targets(inputs.pop("labels"), inputs.get("attention_mask"))
    refuse_stretched(model, shifted.shape[1] + 1)
    logits = model(**inputs).logits
    return token_losses(logits[:, :-1], shifted)


def option_losses(model: nn.Module, batch: Mapping[str, Tensor], *, options: int) -> Tensor:
    """Cross-entropy over an example's candidate answers, each scored by its mean log-probability.

    Rows stand as (example, option); ``labels`` mark each option's tokens and ``correct`` (B,) the right option. Every
    example has the same number of options: padding a shorter list is the caller's, never a mean over the batch.
    """
    rows = {key: value for key, value in batch.items() if key != "correct"}
    scores = -answer_losses(model, rows)
    if scores.numel() % options:
        raise InvalidValue(f"{scores.numel()} rows are not a multiple of options={options}; give every option a row.")
    return classification_losses(scores.view(-1, options), batch["correct"])


def fixed_length(collate: Collate, length: int, *, pad: int) -> Collate:
    """The same collator with token fields padded on the right to one length.

    ``input_ids`` take ``pad``, 2-D ``labels`` −100, every other 2-D field (masks, types) 0.
    """

    def padded(rows: list[Any]) -> dict[str, Tensor]:
        batch = dict(collate(rows))
        for key, value in batch.items():
            if value.ndim != 2:
                continue
            if value.shape[1] > length:
                raise InvalidValue(
                    f"a batch has {value.shape[1]} tokens and length={length}; cut records when they are encoded."
                )
            fill = {"input_ids": pad, "labels": IGNORED}.get(key, 0)
            batch[key] = F.pad(value, (0, length - value.shape[1]), value=fill)
        return batch

    return padded
