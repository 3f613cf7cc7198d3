"""TrainingArguments under which the ledger would not describe the run: one line for each, with why."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.huggingface.arguments import PrivacyArguments


class Rule(NamedTuple):
    """One argument: which values are refused, and what to do instead.

    ``of_private_records`` rules hold only where the evaluation set is private.
    """

    name: str
    refused: Callable[[Any], bool]
    why: str
    of_private_records: bool = False


RULES = (
    Rule("fp16", bool, "its gradient scaler rescales what was clipped; set bf16=True or none"),
    Rule(
        "gradient_accumulation_steps",
        lambda n: n != 1,
        "one Poisson draw is one step here; set 1, and split it by per_device_train_batch_size",
    ),
    Rule(
        "train_sampling_strategy",
        lambda strategy: strategy not in ("random", None),
        "batches sorted by length are not Poisson draws; set 'random'",
    ),
    Rule(
        "auto_find_batch_size",
        bool,
        "it restarts training, which would release steps again; set False: micro-batches halve by themselves",
    ),
    Rule(
        "label_smoothing_factor",
        lambda factor: factor != 0,
        "Hugging Face smooths over the whole batch; smooth inside per_example_loss",
    ),
    Rule("dataloader_drop_last", bool, "a Poisson draw has no last batch to drop; set False"),
    Rule(
        "load_best_model_at_end",
        bool,
        "choosing by private records is not free; set False, or evaluation_is_public=True",
        of_private_records=True,
    ),
    Rule(
        "save_strategy",
        lambda strategy: strategy == "best",
        "choosing by private records is not free; save by steps, or set evaluation_is_public=True",
        of_private_records=True,
    ),
    Rule(
        "lr_scheduler_type",
        lambda kind: kind in ("reduce_lr_on_plateau", "greedy"),
        "a rate that follows private metrics is not free; choose a schedule fixed beforehand",
        of_private_records=True,
    ),
    Rule("torch_compile", bool, "compiled graphs bypass the clipping hooks; set False"),
    Rule("use_liger_kernel", bool, "fused losses bypass the clipped output layer; set False"),
    Rule(
        "include_num_input_tokens_seen",
        lambda counted: str(counted) not in ("no", "False"),
        "it publishes the realised batches' lengths; set 'no'",
    ),
    Rule("deepspeed", bool, "it owns the optimizer step; remove it"),
    Rule("n_gpu", lambda devices: devices > 1, "DataParallel averages over devices; make one device visible"),
    Rule(
        "neftune_noise_alpha",
        lambda alpha: alpha is not None,
        "its hook changes embeddings behind the clipping hooks; set None",
    ),
    Rule(
        "report_to",
        lambda trackers: "wandb" in trackers and os.environ.get("WANDB_WATCH") in ("all", "gradients"),
        "WANDB_WATCH sends gradients before they are clipped and noised; unset it in the environment",
    ),
)


def refuse_arguments(args: Any, privacy: PrivacyArguments | None, callbacks: list[Any]) -> None:
    """Refuse TrainingArguments under which the ledger would not describe the run.

    Raises
    ------
    PrivacyRefusal
        One sentence: the argument, its value, why, and what to set instead.
    """
    public = bool(privacy and privacy.evaluation_is_public)
    for rule in RULES:
        value = getattr(args, rule.name)
        value = getattr(value, "value", value)  # the name of an enumeration's member
        if rule.refused(value) and not (public and rule.of_private_records):
            raise _refusal(rule.name, value, rule.why)
    early = [type(c).__name__ for c in callbacks if _is_early_stopping(c)]
    if early and not public:
        raise _refusal("callbacks", early, "stopping by private metrics is not free; remove it")


def _refusal(name: str, value: Any, why: str) -> PrivacyRefusal:
    return PrivacyRefusal(f"{name}={value!r} cannot be used in private training: {why}.")


def _is_early_stopping(callback: Any) -> bool:
    kind = callback if isinstance(callback, type) else type(callback)
    return any(base.__name__ == "EarlyStoppingCallback" for base in kind.__mro__)
