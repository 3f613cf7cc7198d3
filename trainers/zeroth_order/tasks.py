"""Losses and batches for forward-only training: prompts with a mask, answers after a prompt, one fixed length.

Each loss is one example's own, in fp32. A batch is padded to one length for the whole run, so that no record changes
the shape, and with it the rounding, in which another record's loss is computed: a difference of two passes is divided
by 2β and would show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.objective import Collate
from dpaudit.trainers.tasks.losses import IGNORED, classification_losses, token_losses
from dpaudit.trainers.tasks.padding import refuse_stretched, shifted_targets, starting_left

# (template, label words) of the field's few-shot tasks (LM-BFF, MeZO); label words start with a space.
PROMPTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sst-2": ("{0} It was <mask>.", ("terrible", "great")),
    "sst-5": ("{0} It was <mask>.", ("terrible", "bad", "okay", "good", "great")),
    "mnli": ("{0}? <mask>, {1}", ("No", "Yes", "Maybe")),
    "snli": ("{0}? <mask>, {1}", ("No", "Yes", "Maybe")),
    "rte": ("{0}? <mask>, {1}", ("Yes", "No")),
    "trec": ("<mask>: {0}", ("Description", "Entity", "Expression", "Human", "Location", "Number")),
    "subj": ("{0} This is <mask>.", ("subjective", "objective")),
}


def masked_prompt_losses(
    model: nn.Module, batch: Mapping[str, Tensor], *, mask_token: int, label_words: Sequence[int]
) -> Tensor:
    """Cross-entropy of each example's label word at its one mask.

    Parameters
    ----------
    model : nn.Module
        A masked language model in Hugging Face's calling convention.
    batch : mapping
        ``input_ids`` (B, T) with exactly one ``mask_token`` a row, ``labels`` (B,) as positions in ``label_words``,
        and anything else the model takes.
    label_words : sequence of int
        Token id of each class's word.

    Returns
    -------
    Tensor of shape (B,)
        In nats, fp32, over the label words alone.
    """
    inputs = starting_left(batch)
    labels = inputs.pop("labels")
    at = inputs["input_ids"] == mask_token
    if inputs.get("attention_mask") is not None:
        at = at & (inputs["attention_mask"] != 0)
    if not bool((at.sum(dim=1) == 1).all()):
        raise InvalidValue(
            f"every prompt must hold mask_token={mask_token} exactly once; shorten the text before the mask, not after."
        )
    logits = model(**inputs).logits[at][:, list(label_words)]
    return classification_losses(logits, labels)


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
