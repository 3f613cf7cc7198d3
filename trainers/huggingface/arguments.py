"""Privacy arguments beside Hugging Face's TrainingArguments, and the arguments that would break the guarantee."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.optimizers import OptimizerSettings
from dpaudit.trainers.plan import PrivacyPlan

C = TypeVar("C", bound="type[Any]")


def told(text: str, **kwargs: Any) -> Any:
    """A field with its help, as ``HfArgumentParser`` prints it."""
    return dataclasses.field(metadata={"help": text}, **kwargs)


def described(kind: C) -> C:
    """The dataclass with a section on parameters in its docstring, made of its fields' help: one home for each text."""
    rows = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else f", default={field.default!r}"
        rows += [f"    {field.name} : {field.type}{default}", f"        {field.metadata['help']}"]
    kind.__doc__ = "\n".join([(kind.__doc__ or "").rstrip(), "", "    Parameters", "    ----------", *rows, "    "])
    return kind


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyArguments:
    """What ``HfArgumentParser`` reads beside TrainingArguments; :meth:`plan` turns both into a plan.

    The number of steps is ``max_steps``, or ``num_train_epochs`` divided by q. ``per_device_train_batch_size`` is the
    physical micro-batch, a speed option; the logical batch is ``expected_batch_size``.
    """

    delta: float = told("Delta of the claim, in (0, 1); a usual choice is 1/(2 public_size).")
    relation: str = told("Neighbouring relation: add_or_remove_one, replace_one or zero_out.")
    sampling: str = told("How minibatches are drawn: poisson, truncated_poisson or none.")
    unit: str = told("Unit of privacy in words, such as record or user.")
    public_size: int = told("Number of records as it may be published, fixed beforehand.")
    expected_batch_size: float = told("Expected logical batch L; q = L / public_size, and sums are divided by L.")
    clipping_norm: float = told("C, bound on the norm of one record's contribution.")
    target_epsilon: float | None = told("Epsilon the noise is calibrated to; or give noise_multiplier.", default=None)
    noise_multiplier: float | None = told("Noise on the clipped sum divided by C.", default=None)
    max_records_per_unit: int = told("Records one unit contributes at most.", default=1)
    unit_column: str | None = told(
        "Column that names each record's unit of privacy; without it the bound on its records is an assumption.",
        default=None,
    )
    max_records_rule: str = told(
        "A unit with more records: refuse, or choose (at random, before anything is drawn).", default="refuse"
    )
    sampling_unit: str = told("Draw each record, or whole units: record or unit.", default="record")
    records_per_unit: int | None = told("Records of a drawn unit that a step takes.", default=None)
    unit_reduction: str = told("mean or sum of a drawn unit's losses.", default="mean")
    clipping: str = told("flat, per_layer, automatic or adaptive.", default="flat")
    quantile_sigma: float | None = told("Noise on adaptive clipping's count query.", default=None)
    max_batch: int | None = told("Cap of truncated_poisson.", default=None)
    secure_noise: bool = told(
        "Take every bit of the noise from the operating system's cryptographic generator directly; slower.",
        default=False,
    )
    allow_nonprivate_logs: bool = told(
        "Publish noise-free training losses and evaluations of private records; a deviation.", default=False
    )
    evaluation_is_public: bool = told(
        "The evaluation data is public, so that its metrics may be logged.", default=False
    )
    chunked_head: bool = told(
        "Compute a causal model's head a few examples at a time: less memory, for one product more.", default=False
    )
    preflight: bool = told("Check independence, coverage and sensitivity on generated records first.", default=True)

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
