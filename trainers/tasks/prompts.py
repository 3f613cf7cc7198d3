"""Classification by prompts with one mask: the word that a masked language model expects there tells the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dpaudit.trainers.tasks.padding import starting_left

PROMPTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sst-2": ("{0} It was <mask>.", ("terrible", "great")),
    "sst-5": ("{0} It was <mask>.", ("terrible", "bad", "okay", "good", "great")),
    "mnli": ("{0}? <mask>, {1}", ("No", "Yes", "Maybe")),
    "snli": ("{0}? <mask>, {1}", ("No", "Yes", "Maybe")),
    "rte": ("{0}? <mask>, {1}", ("Yes", "No")),
    "trec": ("<mask>: {0}", ("Description", "Entity", "Expression", "Human", "Location", "Number")),
    "subj": ("{0} This is <mask>.", ("subjective", "objective")),
}
"""(template, label words) of the field's few-shot tasks (LM-BFF, MeZO); label words start with a space."""


def logits_at_the_mask(
    model: nn.Module, batch: Mapping[str, Tensor], *, mask_token: int, words: Sequence[int]
) -> Tensor:
    """(B, classes) logits of the class words at each example's mask.

    A row without a mask is read at its first position, and one with several at the first of them: no row stops a step,
    since an error would tell that such a record is there.

    Parameters
    ----------
    model : nn.Module
        A masked language model in Hugging Face's calling convention.
    batch : mapping
        ``input_ids`` (B, T), and anything else the model takes; ``labels`` are left out.
    mask_token : int
        Its id.
    words : sequence of int
        Token id of each class's word.
    """
    inputs = starting_left({key: value for key, value in batch.items() if key != "labels"})
    masked = inputs["input_ids"] == mask_token
    if inputs.get("attention_mask") is not None:
        masked = masked & (inputs["attention_mask"] != 0)
    rows = torch.arange(len(masked), device=masked.device)
    logits: Tensor = model(**inputs).logits[rows, masked.int().argmax(dim=1)]
    return logits[:, list(words)]
