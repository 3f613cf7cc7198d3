"""Private preference tuning (DPO, IPO, hinge) in Hugging Face's conventions, on columns as TRL has them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainingArguments

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers.huggingface.arguments import PrivacyArguments
from dpaudit.trainers.huggingface.trainer import DPTrainer
from dpaudit.trainers.tasks.preferences import (
    PAIR,
    REFERENCE,
    PreferenceCollator,
    dpo_losses,
    preference_records,
    reward_accuracy,
    with_reference_logps,
)


class DPPreferenceTrainer(DPTrainer):
    """:class:`DPTrainer` on preference pairs: a pair is one record of two rows, clipped as one.

    Parameters
    ----------
    model : nn.Module
        A causal language model, whose weights now are the reference; with PEFT adapters, the model without them.
    args, privacy, **kwargs
        As in :class:`DPTrainer`. ``remove_unused_columns`` is switched off: a pair's columns are no model's.
    train_dataset : sequence or data set
        Rows with the texts ``prompt``, ``chosen`` and ``rejected``. A unit column of ``privacy`` stays.
    processing_class : tokenizer
    beta : float
        β > 0, strength of the pull to the reference.
    loss_type : str
        "sigmoid", "ipo" or "hinge".
    max_length : int
        Tokens of prompt and answer together.

    Raises
    ------
    PrivacyRefusal
        For losses that join pairs, and for an ``eval_dataset``: see :meth:`reward_accuracy`.

    Notes
    -----
    The reference's log-probabilities are computed once, when the trainer is made, from each pair alone. They are
    private and stay with the records.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        privacy: PrivacyArguments,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: Any,
        beta: float = 0.1,
        loss_type: str = "sigmoid",
        max_length: int = 512,
        **kwargs: Any,
    ) -> None:
        for name in ("per_example_loss", "data_collator", "rows_per_record"):
            if kwargs.get(name) is not None:
                raise InvalidValue(f"{name} follows from the pairs here; leave it out, or use DPTrainer.")
        if kwargs.get("eval_dataset") is not None:
            raise PrivacyRefusal(
                "eval_dataset would be scored as texts and not as pairs; call reward_accuracy on public pairs instead."
            )
        pad = processing_class.pad_token_id
        self._collate = PreferenceCollator(processing_class.eos_token_id if pad is None else pad)
        self._loss_type, self._max_length = loss_type, max_length
        args = copy.copy(args)
        args.remove_unused_columns = False
        keep = [] if privacy.unit_column is None else [privacy.unit_column]
        rows = [train_dataset[i] for i in range(len(train_dataset))]
        records = preference_records(rows, processing_class, max_length=max_length, keep=keep)
        loss = functools.partial(dpo_losses, beta=beta, loss_type=loss_type)
        self._refuse_early(model, loss)
        super().__init__(
            model,
            args,
            privacy=privacy,
            per_example_loss=loss,
            train_dataset=with_reference_logps(model, records, collate=self._collate, loss_type=loss_type),
            data_collator=self._collate,
            processing_class=processing_class,
            rows_per_record=PAIR,
            **kwargs,
        )

    def reward_accuracy(self, rows: Sequence[Mapping[str, Any]], *, reference: nn.Module) -> float:
        """Share of PUBLIC pairs of which the chosen answer gained more over ``reference`` than the rejected one.

        Parameters
        ----------
        rows : sequence
            With the texts ``prompt``, ``chosen`` and ``rejected``; never private ones, whose accuracy is not noised.
        reference : nn.Module
            The model before training.
        """
        records = preference_records(
            [rows[i] for i in range(len(rows))], self.processing_class, max_length=self._max_length
        )
        known = with_reference_logps(reference, records, collate=self._collate, loss_type=self._loss_type)
        return reward_accuracy(self.model, known, collate=self._collate, loss_type=self._loss_type)

    def _refuse_early(self, model: nn.Module, loss: Any) -> None:
        """Refuse a loss before the reference is computed over the whole data set."""
        pair = {"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0], **dict.fromkeys(REFERENCE, 0.0)}
        device = next(model.parameters()).device
        loss(model, {k: v.to(device) for k, v in self._collate([pair]).items()})
