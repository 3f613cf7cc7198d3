"""The TOML configuration of a run: every privacy decision is written down, none is defaulted."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from dpaudit.privacy.errors import InvalidValue

PositiveFraction = Field(gt=0, lt=1)
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
    delta: float = PositiveFraction
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
    """One record a line (``.txt``, ``.txt.xz``) or CSV with columns text,label; or ``package:NAME/FILE``."""
    heldout: str | None = None
    """PUBLIC evaluation records in the same form; never private ones."""
    max_length: PositiveInt
    """Tokens of a record; longer records are cut, canaries never."""
    limit: PositiveInt | None = None
    """Use only the first records; these are then the data set that the claim protects."""
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Without ``heldout``: share of the file declared public and used for evaluation only. Each record's own text and
    the public seed decide, so that no record moves another to the other side."""
    sha256: str | None = None
    """Expected digest of the file."""
    source: str | None = None
    """CSV only: keep rows whose column ``source`` has this value."""


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
    calibrate_with: Literal["prv", "pld", "rdp"] = "prv"
    accountants: tuple[str, ...] = ("prv", "rdp")
    """Accountants in the certificate; the smallest certified bound decides, whatever their order."""


class ZerothOrder(_Section):
    """DP-ZOSO's schedule; step counts come from ``privacy.steps`` split geometrically over stages."""

    stages: PositiveInt = 3
    directions: PositiveInt = 1
    clip: Literal["per_direction", "joint"] = "per_direction"
    scale: PositiveFloat = 1e-3
    proximal: float = Field(default=0.0, ge=0)
    distribution: Literal["gaussian", "rademacher"] = "gaussian"


class Optimizer(_Section):
    """Does not change privacy."""

    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    physical_batch_size: PositiveInt = 64
    threads: int = Field(default=0, ge=0)
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
    alpha: float = PositiveFraction
    holdout_fraction: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the REAL records held out by fair coins for a membership audit; its results stay in ``private/``."""


class Run(_Section):
    """Public seeds and checkpoints; never noise, sampling or coins."""

    seed: int = 0
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
        if self.canaries.kind == "new-token" and self.model.task != "causal-lm":
            raise ValueError("canaries.kind='new-token' needs model.task='causal-lm'; use 'label-flip'")
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
        with Path(path).open("rb") as file:
            value = tomllib.load(file)
    except FileNotFoundError as error:
        raise InvalidValue(f"configuration {path} does not exist; start from examples/certify.toml.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"configuration {path} is not valid TOML: {error}.") from error
    return parse_config(value, str(path))


def parse_config(value: dict[str, Any], name: str) -> Config:
    """Check a configuration's keys and bounds; see :func:`read_config`."""
    try:
        return Config.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "configuration"
        shown = first.get("input")
        got = "" if first["type"] == "missing" or isinstance(shown, dict) else f"={shown!r}"
        message = str(first["msg"]).removeprefix("Value error, ")
        if key == "privacy.public_size" and first["type"] == "missing":
            raise InvalidValue(f"{name}: {key}: field required; {PUBLIC_SIZE_HINT}.") from error
        hint = {
            "missing": "add it; see examples/certify.toml",
            "extra_forbidden": "remove it or correct its spelling",
        }.get(first["type"], "correct it")
        raise InvalidValue(f"{name}: {key}{got}: {message[:1].lower() + message[1:]}; {hint}.") from error
