"""Privacy arguments beside Hugging Face's TrainingArguments, and the arguments that would break the guarantee."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.optimizers import OptimizerSettings
from dpaudit.trainers.plan import PrivacyPlan


def _told(text: str, **kwargs: Any) -> Any:
    return dataclasses.field(metadata={"help": text}, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyArguments:
    """What ``HfArgumentParser`` reads beside TrainingArguments; :meth:`plan` turns both into a plan.

    The number of steps is ``max_steps``, or ``num_train_epochs`` divided by q. ``per_device_train_batch_size`` is the
    physical micro-batch, a speed option; the logical batch is ``expected_batch_size``.
    """

    delta: float = _told("Delta of the claim, in (0, 1); a usual choice is 1/(2 public_size).")
    relation: str = _told("Neighbouring relation: add_or_remove_one, replace_one or zero_out.")
    sampling: str = _told("How minibatches are drawn: poisson, truncated_poisson or none.")
    unit: str = _told("Unit of privacy in words, such as record or user.")
    public_size: int = _told("Number of records as it may be published, fixed beforehand.")
    expected_batch_size: float = _told("Expected logical batch L; q = L / public_size, and sums are divided by L.")
    clipping_norm: float = _told("C, bound on the norm of one record's contribution.")
    target_epsilon: float | None = _told("Epsilon the noise is calibrated to; or give noise_multiplier.", default=None)
    noise_multiplier: float | None = _told("Noise on the clipped sum divided by C.", default=None)
    max_records_per_unit: int = _told("Records one unit contributes at most.", default=1)
    unit_column: str | None = _told(
        "Column that names each record's unit of privacy; without it the bound on its records is an assumption.",
        default=None,
    )
    max_records_rule: str = _told(
        "A unit with more records: refuse, or choose (at random, before anything is drawn).", default="refuse"
    )
    sampling_unit: str = _told("Draw each record, or whole units: record or unit.", default="record")
    records_per_unit: int | None = _told("Records of a drawn unit that a step takes.", default=None)
    unit_reduction: str = _told("mean or sum of a drawn unit's losses.", default="mean")
    clipping: str = _told("flat, per_layer, automatic or adaptive.", default="flat")
    quantile_sigma: float | None = _told("Noise on adaptive clipping's count query.", default=None)
    max_batch: int | None = _told("Cap of truncated_poisson.", default=None)
    secure_noise: bool = _told(
        "Take every bit of the noise from the operating system's cryptographic generator; slower.", default=False
    )
    allow_nonprivate_logs: bool = _told(
        "Publish noise-free training losses and evaluations of private records; a deviation.", default=False
    )
    evaluation_is_public: bool = _told(
        "The evaluation data is public, so that its metrics may be logged.", default=False
    )
    chunked_head: bool = _told(
        "Compute a causal model's head a few examples at a time: less memory, for one product more.", default=False
    )
    preflight: bool = _told("Check independence, coverage and sensitivity on generated records first.", default=True)

    def plan(self, *, max_steps: int = -1, num_train_epochs: float = 3.0) -> PrivacyPlan:
        """The plan, with ``max_steps`` steps, or as many as ``num_train_epochs`` expected passes take."""
        steps = (
            max_steps if max_steps > 0 else math.ceil(num_train_epochs * self.public_size / self.expected_batch_size)
        )
        return PrivacyPlan(
            delta=self.delta,
            relation=self.relation,
            sampling=self.sampling,
            unit=self.unit,
            public_size=self.public_size,
            expected_batch_size=self.expected_batch_size,
            steps=steps,
            clipping_norm=self.clipping_norm,
            target_epsilon=self.target_epsilon,
            noise_multiplier=self.noise_multiplier,
            max_records_per_unit=self.max_records_per_unit,
            clipping=self.clipping,
            quantile_sigma=self.quantile_sigma,
            max_batch=self.max_batch,
            secure_noise=self.secure_noise,
            sampling_unit=self.sampling_unit,
            records_per_unit=self.records_per_unit,
            unit_reduction=self.unit_reduction,
        )


def optimizer_settings(args: Any) -> OptimizerSettings:
    """DP optimizer settings of TrainingArguments; the schedule stays with Hugging Face."""
    name = str(getattr(args.optim, "value", args.optim))
    if not (name.startswith("adamw_torch") or name == "sgd"):
        raise PrivacyRefusal(
            f"optim={name!r} steps on gradients of its own; choose adamw_torch or sgd, whose DP forms run here."
        )
    return OptimizerSettings(
        algorithm="sgd" if name == "sgd" else "adamw",
        learning_rate=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )


def refuse_arguments(args: Any, privacy: PrivacyArguments | None, callbacks: list[Any]) -> None:
    """Refuse TrainingArguments under which the ledger would not describe the run.

    Raises
    ------
    PrivacyRefusal
        One sentence: the argument, its value, why, and what to set instead.
    """
    public = bool(privacy and privacy.evaluation_is_public)
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    strategy = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    metric_driven = scheduler in ("reduce_lr_on_plateau", "greedy")
    early = [type(c).__name__ for c in callbacks if _is_early_stopping(c)]
    refusals: list[tuple[bool, str, Any, str]] = [
        (args.fp16, "fp16", args.fp16, "its gradient scaler rescales what was clipped; set bf16=True or none"),
        (
            args.gradient_accumulation_steps != 1,
            "gradient_accumulation_steps",
            args.gradient_accumulation_steps,
            "one Poisson draw is one step here; set 1, and split it by per_device_train_batch_size",
        ),
        (
            strategy not in ("random", "None"),
            "train_sampling_strategy",
            strategy,
            "batches sorted by length are not Poisson draws; set 'random'",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size",
            True,
            "it restarts training, which would release steps again; set False: micro-batches halve by themselves",
        ),
        (
            args.label_smoothing_factor != 0,
            "label_smoothing_factor",
            args.label_smoothing_factor,
            "Hugging Face smooths over the whole batch; smooth inside per_example_loss",
        ),
        (
            args.dataloader_drop_last,
            "dataloader_drop_last",
            True,
            "a Poisson draw has no last batch to drop; set False",
        ),
        (
            args.load_best_model_at_end and not public,
            "load_best_model_at_end",
            True,
            "choosing by private records is not free; set False, or evaluation_is_public=True",
        ),
        (
            str(getattr(args.save_strategy, "value", args.save_strategy)) == "best" and not public,
            "save_strategy",
            "best",
            "choosing by private records is not free; save by steps, or set evaluation_is_public=True",
        ),
        (
            metric_driven and not public,
            "lr_scheduler_type",
            scheduler,
            "a rate that follows private metrics is not free; choose a schedule fixed beforehand",
        ),
        (bool(early) and not public, "callbacks", early, "stopping by private metrics is not free; remove it"),
        (args.torch_compile, "torch_compile", True, "compiled graphs bypass the clipping hooks; set False"),
        (args.use_liger_kernel, "use_liger_kernel", True, "fused losses bypass the clipped output layer; set False"),
        (
            str(args.include_num_input_tokens_seen) not in ("no", "False"),
            "include_num_input_tokens_seen",
            args.include_num_input_tokens_seen,
            "it publishes the realised batches' lengths; set 'no'",
        ),
        (bool(args.deepspeed), "deepspeed", args.deepspeed, "it owns the optimizer step; remove it"),
        (args.n_gpu > 1, "n_gpu", args.n_gpu, "DataParallel averages over devices; make one device visible"),
        (
            args.neftune_noise_alpha is not None,
            "neftune_noise_alpha",
            args.neftune_noise_alpha,
            "its hook changes embeddings behind the clipping hooks; set None",
        ),
        (
            "wandb" in args.report_to and os.environ.get("WANDB_WATCH") in ("all", "gradients"),
            "report_to",
            args.report_to,
            "WANDB_WATCH sends gradients before they are clipped and noised; unset it in the environment",
        ),
    ]
    for broken, name, value, why in refusals:
        if broken:
            raise PrivacyRefusal(f"{name}={value!r} cannot be used in private training: {why}.")


def _is_early_stopping(callback: Any) -> bool:
    kind = callback if isinstance(callback, type) else type(callback)
    return any(base.__name__ == "EarlyStoppingCallback" for base in kind.__mro__)
