"""The TOML configuration of a run: every privacy decision is written down, none is defaulted."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.text import printable
from dpaudit.storage.readers import parse_toml


def _number(value: Any) -> Any:
    """Refuse text and true/false where a number belongs, which would otherwise be read as one."""
    if isinstance(value, (str, bool)):
        raise ValueError("must be a number, without quotes")
    return value


_Number = pydantic.BeforeValidator(_number)
PositiveInt = Annotated[int, _Number, Field(gt=0)]
Whole = Annotated[int, _Number, Field(ge=0)]
Integer = Annotated[int, _Number]
PositiveFloat = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, _Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, _Number, Field(gt=0, lt=1)]
PUBLIC_SIZE_HINT = (
    "add the number of private records as it may be published: q, σ and the normaliser derive from it and stand in the"
    " ledger, and were it counted from the records, the ledger would tell whether one of them was there"
)


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Claim(_Section):
    """What the run is to be certified for."""

    epsilon: PositiveFloat
    """Claimed ε."""
    delta: Fraction
    """Claimed δ."""
    relation: Literal["add_or_remove_one", "replace_one", "zero_out"]
    """Neighbouring relation."""
    unit: str = Field(min_length=1)
    """Unit of privacy, in words: "paragraph", "user"."""
    max_records_per_unit: PositiveInt
    """Records one unit contributes at most."""


class Model(_Section):
    """The model to fine-tune."""

    path: str
    """Folder of a Hugging Face model, relative to this file; or ``package:NAME/FOLDER`` inside an installed package."""
    gguf_file: str | None = None
    """Name of a GGUF file in that folder, de-quantised on load."""
    task: Literal["causal-lm", "sequence-classification"]
    trainable: Literal["all", "head", "bias", "lora"] = "all"
    """Which parameters are trained."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters, with ``trainable = "lora"``."""


class Data(_Section):
    """Private records, and public text to evaluate on."""

    path: str
    """One record a line (``.txt``) or a row (``.csv``, ``.jsonl``, ``.parquet``), plain or as ``.gz`` or ``.xz``; or a
    folder written by ``save_to_disk``; or ``package:NAME/FILE``."""
    heldout: str | None = None
    """PUBLIC evaluation records in one of these forms, with the same columns; never private ones."""
    text_column: str = Field(default="text", min_length=1)
    """Tables only: column of the texts."""
    label_column: str = Field(default="label", min_length=1)
    """Tables only: column of the class labels, for sequence classification."""
    labels: tuple[str | int, ...] | None = None
    """Names of the classes, in the order of the model's outputs. Without them they are those of the PUBLIC records: the
    released model has one output for each and carries their names, so they never follow the private labels."""
    max_length: PositiveInt
    """Tokens of a record; longer records are cut, canaries never."""
    limit: PositiveInt | None = None
    """Use at most so many records; these are then the data set that the claim protects."""
    limit_by: Literal["first", "random"] | None = None
    """``first``: the first rows of the file, whatever their order means. ``random``: those whose digest of the public
    seed and the text is smallest. Left out: the first rows with ``heldout``, at random with ``heldout_fraction``."""
    heldout_fraction: Annotated[float, _Number, Field(ge=0, lt=1)] = 0.0
    """Without ``heldout``: share of the file declared public and used for evaluation only. Each record's own text and
    the public seed decide, so that no record moves another to the other side."""
    sha256: str | None = None
    """Expected digest of the file."""
    source: str | None = None
    """Tables only: keep rows whose ``source_column`` has this value."""
    source_column: str = Field(default="source", min_length=1)
    """Tables only: column that ``source`` looks at."""


class Privacy(_Section):
    """The mechanism."""

    method: Literal["dp-adam", "dp-zoso"]
    sampling: Literal["poisson"]
    public_size: PositiveInt
    """Number of private records as it may be published. q, σ and the normaliser derive from it (and from half of the
    canary copies) and are published with the ledger, so it is declared and never counted from the records."""
    expected_batch_size: PositiveFloat
    """q times the public size; the constant normaliser."""
    clipping_norm: PositiveFloat
    steps: PositiveInt
    noise_multiplier: PositiveFloat | None = None
    """σ; when left out it is calibrated so that the accounted ε meets the claim."""
    secure_noise: bool = False
    """Take every bit of the noise from the operating system's cryptographic generator; five times as slow."""
    calibrate_with: Literal["prv", "pld", "rdp"] = "prv"
    accountants: tuple[str, ...] = ("prv", "rdp")
    """Accountants in the certificate; the smallest certified bound decides, whatever their order."""


class ZerothOrder(_Section):
    """DP-ZOSO's schedule; step counts come from ``privacy.steps`` split geometrically over stages."""

    stages: PositiveInt = 3
    directions: PositiveInt = 1
    clip: Literal["per_direction", "joint"] = "per_direction"
    scale: PositiveFloat = 1e-3
    proximal: NonNegative = 0.0
    distribution: Literal["gaussian", "rademacher"] = "gaussian"


class Optimizer(_Section):
    """Does not change privacy."""

    learning_rate: PositiveFloat
    weight_decay: NonNegative = 0.0
    warmup_steps: Whole = 0
    physical_batch_size: PositiveInt = 64
    threads: Whole = 0
    """CPU threads; 0 leaves torch's choice."""


class Canaries(_Section):
    """Records inserted by independent fair coins."""

    kind: Literal["new-token", "random-token", "label-flip"]
    count: PositiveInt
    copies: PositiveInt = 1
    length: PositiveInt = 12
    positions: PositiveInt = 3
    """new-token only: positions of the reserved token."""


class Audit(_Section):
    """Pre-registered before the first step."""

    attack: Literal["loss-residual", "loss-drop", "loss"]
    alpha: Fraction
    holdout_fraction: Annotated[float, _Number, Field(ge=0, le=0.5)] = 0.0
    """Share of the REAL records held out by fair coins for a membership audit; its results stay in ``private/``."""


class Run(_Section):
    """Public seeds and checkpoints; never noise, sampling or coins."""

    seed: Integer = 0
    """PUBLIC seed of initialisation and directions only."""
    checkpoints: PositiveInt = 10
    """Checkpoints over the run, each seals a ledger segment."""


class Config(_Section):
    """A whole run."""

    claim: Claim
    model: Model
    data: Data
    privacy: Privacy
    optimizer: Optimizer
    canaries: Canaries
    audit: Audit
    zeroth_order: ZerothOrder | None = None
    run: Run = Run()

    @pydantic.model_validator(mode="after")
    def _joined(self) -> Config:
        if self.data.heldout is not None and self.data.heldout_fraction:
            raise ValueError("data.heldout and data.heldout_fraction both name the public records; give one of them")
        if self.data.limit_by is not None and self.data.limit is None:
            raise ValueError(f"data.limit_by={self.data.limit_by!r} chooses for data.limit, which is missing; add it")
        if self.data.labels is not None and self.model.task != "sequence-classification":
            raise ValueError("data.labels names classes and needs model.task='sequence-classification'; leave it out")
        if self.privacy.method == "dp-zoso" and self.zeroth_order is None:
            raise ValueError("zeroth_order is missing; method dp-zoso needs its section")
        if self.privacy.expected_batch_size > self.privacy.public_size:
            raise ValueError(
                f"privacy.expected_batch_size={self.privacy.expected_batch_size:g} must be <= privacy.public_size="
                f"{self.privacy.public_size}; lower the batch, or declare the size of the whole data set"
            )
        if self.privacy.calibrate_with not in self.privacy.accountants:
            raise ValueError(
                f"privacy.calibrate_with={self.privacy.calibrate_with!r} must be one of privacy.accountants"
                f" {list(self.privacy.accountants)}, or the certificate could miss its own claim"
            )
        if self.canaries.kind == "label-flip" and self.model.task != "sequence-classification":
            raise ValueError("canaries.kind='label-flip' needs model.task='sequence-classification'")
        if self.canaries.kind != "label-flip" and self.model.task != "causal-lm":
            raise ValueError(f"canaries.kind={self.canaries.kind!r} needs model.task='causal-lm'; use 'label-flip'")
        if self.canaries.kind == "new-token" and self.model.trainable != "all":
            raise ValueError(
                f"model.trainable={self.model.trainable!r} freezes the embeddings by which canaries.kind='new-token' is"
                " learnt; use canaries.kind='random-token', or model.trainable='all'"
            )
        return self


def read_config(path: Path) -> Config:
    """Read a TOML configuration.

    Raises
    ------
    InvalidValue
        One sentence with the key, what is wrong, and the file.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InvalidValue(f"configuration {path} does not exist; start from examples/certify.toml.") from error
    try:
        return parse_config(parse_toml(data, name=f"configuration {path}"), str(path))
    except InvalidEvidence as error:
        raise InvalidValue(str(error)) from None


def parse_config(value: dict[str, Any], name: str) -> Config:
    """Check a configuration's keys and bounds; see :func:`read_config`."""
    try:
        return Config.model_validate(value)
    except pydantic.ValidationError as error:
        found = error.errors()
        # A misspelt key is both unknown and missing under its right name: the first of the two says more.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = printable(".".join(str(part) for part in first["loc"]))[:80] or "configuration"
        got = "" if first["type"] == "missing" else _given(first.get("input"))
        message = str(first["msg"]).removeprefix("Value error, ")
        if key == "privacy.public_size" and first["type"] == "missing":
            raise InvalidValue(f"{name}: {key}: field required; {PUBLIC_SIZE_HINT}.") from error
        hint = {"missing": "add it; see examples/certify.toml"}.get(first["type"], "correct it")
        if first["type"] == "extra_forbidden":
            hint = _spelling(first["loc"])
        raise InvalidValue(f"{name}: {key}{got}: {message[:1].lower() + message[1:]}; {hint}.") from error


def _given(value: Any) -> str:
    """The value as the file has it, for a message; nothing for a section."""
    if isinstance(value, dict):
        return ""
    return f"={value[:80]!r}" if isinstance(value, str) else f"={printable(str(value))[:80]}"


def _spelling(location: tuple[int | str, ...]) -> str:
    """What an unknown key was probably meant to be: one of its own section, or the section that has it."""
    *sections, key = (str(part) for part in location)
    owner: Any = Config
    for section in sections:
        owner = _section(owner.model_fields[section].annotation)
    if near := difflib.get_close_matches(key, owner.model_fields, 1):
        return f"did you mean {near[0]}? Correct its spelling"
    for name, field in Config.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None and inner is not owner and key in inner.model_fields:
            return f"it belongs into [{name}]"
    return "remove it or correct its spelling"


def _section(annotation: Any) -> Any:
    """The section class of a field, also where the section may be left out; None for a plain value."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, _Section)), None)
