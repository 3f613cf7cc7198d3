"""The TOML configuration of a run: every privacy decision is written down, none is defaulted."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from dpaudit.privacy.canaries import FEWEST_BEACONS
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.text import printable
from dpaudit.storage.readers import parse_toml
from dpaudit.storage.tables import format_of


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
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ClaimSection(_Section):
    """What the run is to be certified for."""

    epsilon: PositiveFloat = Field(examples=[3.0])
    """Claimed ε: what the accounted ε of the run must not exceed, and what the attack is held against."""
    delta: Fraction = Field(examples=[1e-5])
    """Claimed δ. Well below 1 / number of records: a δ of 1/N allows publishing one record in full."""
    relation: Literal["add_or_remove_one", "replace_one", "zero_out"] = Field(examples=["add_or_remove_one"])
    """Which two data sets count as neighbours. It says what is protected: that a record took part
    (add_or_remove_one, zero_out), or what it said (replace_one), which costs about twice the ε."""
    unit: str = Field(min_length=1, examples=["record"])
    """Unit of privacy, in words: "paragraph", "user". A claim for one paragraph protects no author of several."""
    max_records_per_unit: PositiveInt = Field(examples=[1])
    """Records one unit contributes at most. Above 1 the claim is accounted for groups of that size."""


def _claim(written: ClaimSection) -> Claim:
    """The claim as the frozen value that the whole run uses; the section only says what may stand in the file."""
    return Claim(**dict(written))


if TYPE_CHECKING:
    ClaimField = Claim
else:
    ClaimField = Annotated[
        ClaimSection, pydantic.AfterValidator(_claim), pydantic.PlainSerializer(Claim.to_dict, return_type=dict)
    ]


class Model(_Section):
    """The model to fine-tune."""

    path: str = Field(examples=["model"])
    """Folder of a Hugging Face model, relative to this file; or ``package:NAME/FOLDER`` inside an installed package."""
    gguf_file: str | None = Field(default=None, examples=["model.gguf"])
    """Name of a GGUF file in that folder, de-quantised on load."""
    task: Literal["causal-lm", "sequence-classification", "text-infilling"] = Field(examples=["causal-lm"])
    """What is learnt: to continue texts, to name their class by a new output layer, or to name it by a word that a
    masked language model puts into a gap, which needs no new layer and suits private training best."""
    template: str | None = Field(default=None, examples=["{0} It was <mask>."])
    """text-infilling only: the text as ``{0}``, and the gap as ``<mask>``, whatever the tokenizer calls it."""
    words: tuple[str, ...] | None = Field(default=None, examples=[["terrible", "great"]])
    """text-infilling only: the word for each class of ``data.labels``, in that order; each is one token."""
    trainable: Literal["all", "head", "bias", "lora"] = "all"
    """Which parameters are trained: every one, the output layer, biases, or low-rank adapters. Fewer parameters take
    less memory and often suffer less from noise; they may also learn less."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters, with ``trainable = "lora"``."""
    lora_alpha: PositiveInt = 16
    """Scale of the adapters: what they add is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] | None = Field(default=None, examples=[["q_proj", "v_proj"]])
    """Names of the layers that get adapters; left out, peft's choice for the architecture."""


class Data(_Section):
    """Private records, and public text to evaluate on."""

    path: str = Field(examples=["mails.csv"])
    """The private records: one a line (``.txt``) or a row (``.csv``, ``.jsonl``, ``.parquet``), plain or as ``.gz`` or
    ``.xz``; or a folder written by ``save_to_disk``; or ``package:NAME/FILE``."""
    heldout: str | None = Field(default=None, examples=["public.csv"])
    """PUBLIC evaluation records in one of these forms, with the same columns; never private ones."""
    text_column: str = Field(default="text", min_length=1)
    """Tables only: column of the texts."""
    prompt_columns: tuple[str, ...] = Field(default=(), examples=[["question"]])
    """Tables only, causal models: columns that the model reads before the text and does not learn to write: a question,
    a dialogue so far, the fields of a table. One column stands as it is, several as ``name : value | name : value``."""
    label_column: str = Field(default="label", min_length=1)
    """Tables only: column of the class labels, for classification and infilling."""
    labels: tuple[str | int, ...] | None = Field(default=None, examples=[["ham", "spam"]])
    """Names of the classes, in the order of the model's outputs. Without them they are those of the PUBLIC records: the
    released model has one output for each and carries their names, so they never follow the private labels."""
    max_length: PositiveInt = Field(examples=[64])
    """Tokens of a record; longer records are cut, canaries never."""
    limit: PositiveInt | None = Field(default=None, examples=[2000])
    """Use at most so many records; these are then the data set that the claim protects."""
    limit_by: Literal["first", "random"] | None = Field(default=None, examples=["random"])
    """``first``: the first rows of the file, whatever their order means. ``random``: those whose digest of the public
    seed and the text is smallest. Left out: the first rows with ``heldout``, at random with ``heldout_fraction``."""
    heldout_fraction: Annotated[float, _Number, Field(ge=0, lt=1)] = 0.0
    """Without ``heldout``: share of the file declared public and used for evaluation only. Each record's own text and
    the public seed decide, so that no record moves another to the other side."""
    sha256: str | None = Field(
        default=None, examples=["d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"]
    )
    """Expected SHA-256 of the file; another file is refused."""
    source: str | None = Field(default=None, examples=["support"])
    """Tables only: keep rows whose ``source_column`` has this value."""
    source_column: str = Field(default="source", min_length=1)
    """Tables only: column that ``source`` looks at."""
    unit_column: str | None = Field(default=None, min_length=1, examples=["author"])
    """Tables only: column that names each record's unit of privacy, such as its author. The records of each unit are
    then counted and bounded, and a share of public records is chosen by unit. Without it the certificate lists as an
    assumption that no unit has more than ``claim.max_records_per_unit`` records. Names that differ in case or blanks
    are one unit."""
    max_records_rule: Literal["refuse", "choose"] = "refuse"
    """What becomes of a unit with more records than ``claim.max_records_per_unit``: the run is refused, or so many of
    them are chosen at random, before anything else is drawn, by each record's own text and the public seed."""


class Privacy(_Section):
    """The mechanism."""

    method: Literal["dp-adam", "dp-zoso"] = Field(examples=["dp-adam"])
    """dp-adam: clipped gradients. dp-zoso: forward passes only, in stages; needs the section ``[zeroth_order]``."""
    sampling: Literal["poisson"] = Field(examples=["poisson"])
    """How minibatches are drawn: every record by a coin of its own at each step, as the accounting assumes."""
    public_size: PositiveInt = Field(examples=[2000])
    """Number of private records as it may be published. q, σ and the normaliser derive from it (and from half of the
    canary copies) and are published with the ledger, so it is declared and never counted from the records."""
    sampling_unit: Literal["record", "unit"] = "record"
    """record: records are drawn and clipped one by one, and a unit with k of them costs what k records cost. unit:
    whole units of ``data.unit_column`` are drawn, and the gradient of a unit's records is clipped as one; public size
    and expected batch size then count units, and ``claim.max_records_per_unit`` is 1."""
    records_per_unit: PositiveInt | None = Field(default=None, examples=[4])
    """With ``sampling_unit = "unit"``: records of a drawn unit that a step takes, at random where it has more."""
    unit_reduction: Literal["mean", "sum"] = "mean"
    """With ``sampling_unit = "unit"``: learn from the mean or the sum of a unit's losses. Privacy is the same."""
    expected_batch_size: PositiveFloat = Field(examples=[200])
    """Expected number of records of a minibatch: q times the public size, and the constant that sums are divided by.
    The noise weighs less in larger batches, which cost more computing."""
    clipping_norm: PositiveFloat = Field(examples=[0.5])
    """C: the largest norm that one record's gradient may have in the sum. It scales the noise with it, so that it
    changes learning and not ε; near the usual norm of a gradient is a good start."""
    steps: PositiveInt = Field(examples=[110])
    """Private steps in all. More steps learn longer and take more noise each."""
    noise_multiplier: PositiveFloat | None = Field(default=None, examples=[1.1])
    """σ, noise on the sum divided by C; when left out it is calibrated so that the accounted ε meets the claim."""
    secure_noise: bool = False
    """Take every bit of the noise from the operating system's cryptographic generator directly, for CUDA devices
    too; more than three times as slow."""
    calibrate_with: Literal["prv", "pld", "rdp"] = "prv"
    """Accountant that finds σ; prv is the tightest with a proof."""
    accountants: tuple[str, ...] = ("prv", "rdp")
    """Accountants in the certificate; the smallest certified bound decides, whatever their order."""


class ZerothOrder(_Section):
    """DP-ZOSO's schedule; step counts come from ``privacy.steps`` split geometrically over stages."""

    stages: PositiveInt = 3
    """Stages; each has twice the steps of the one before and half its learning rate."""
    directions: PositiveInt = 1
    """Random directions P that one minibatch is tried along; together they are one release."""
    clip: Literal["per_direction", "joint"] = "per_direction"
    """Whether C bounds a record's loss differences one by one or as a vector."""
    scale: PositiveFloat = 1e-3
    """Length of the step along a direction over which the loss difference is taken."""
    proximal: NonNegative = 0.0
    """Pull back to where the stage began."""
    distribution: Literal["gaussian", "rademacher"] = "gaussian"
    """Distribution of the directions' coordinates; rademacher (plus or minus one) is faster."""


class Optimizer(_Section):
    """How the released sums move the weights. Nothing here changes privacy."""

    learning_rate: PositiveFloat = Field(examples=[1e-3])
    """Learning rate after warm-up."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_steps: Whole = 0
    """Steps over which the rate rises to its value."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on: constant, or to zero at the last step. Fixed beforehand, it is free. dp-adam only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of forward and backward passes. Weights, norms, sums and noise are fp32 either way."""
    device: str = Field(default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$")
    """Torch device of the model, such as ``cuda``; ``--device`` of train and certify overrides it. A run may be resumed
    on another device."""
    physical_batch_size: PositiveInt = 64
    """Records computed at once. Lower it when memory runs out: results and privacy stay."""
    threads: Whole = 0
    """CPU threads; 0 leaves torch's choice."""


LABELLED = ("label-flip", "label-substitution")
"""Kinds of canaries for classifiers: public texts whose label the owner chose."""


class Canaries(_Section):
    """Artificial records, each inserted if a fair coin says so. The attack guesses the coins afterwards."""

    kind: Literal["new-token", "random-token", "label-flip", "label-substitution"] = Field(examples=["random-token"])
    """new-token: each owns a reserved token ``<canary_...>`` of the tokenizer, the strongest; random-token: random
    words, for any causal model; label-flip: public texts with a wrong label, for classifiers; label-substitution:
    public texts with the true or a wrong label, as the coin says, for classifiers whose ``claim.relation`` is
    replace_one."""
    count: PositiveInt = Field(examples=[1000])
    """Canaries, half of them inserted. Few canaries cannot decide a large ε; the command says so before it trains."""
    copies: PositiveInt = 1
    """Copies of an inserted canary. Above 1 the audit tests the weaker claim for groups of that many records."""
    length: PositiveInt = 12
    """Tokens of a canary (causal models only); at most ``data.max_length``."""
    positions: PositiveInt = 3
    """new-token only: positions of the reserved token."""
    beacons: Annotated[int, _Number, Field(ge=FEWEST_BEACONS, le=10_000)] | None = Field(default=None, examples=[40])
    """Further canaries, half of them inserted with ``beacon_copies`` copies each, that stand outside the audit: whether
    the attack finds them shows that it is alive, however little the run leaks of one record. Their copies are in the
    public size, and privacy is promised to their groups only. Left out: none, and the audit's own scores must show
    life."""
    beacon_copies: Annotated[int, _Number, Field(ge=2)] | None = Field(default=None, examples=[16])
    """Copies of an inserted beacon; needed with ``beacons``."""

    @pydantic.model_serializer(mode="wrap")
    def _without_absent_beacons(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A configuration without beacons is written, and digested, as it was before there were any."""
        value: dict[str, Any] = handler(self)
        absent = () if self.beacons is not None or self.beacon_copies is not None else ("beacons", "beacon_copies")
        return {key: item for key, item in value.items() if key not in absent}


class InRun(_Section):
    """Canaries inside the training steps, seen by whoever sees every noisy update. On where it can be."""

    enabled: bool | None = Field(default=None, examples=[True])
    """Left out: on where sampling, relation and model allow it, and the command says where they do not. true: refused
    where they do not. false: no such canaries; the energy of the releases is recorded all the same."""
    canaries: Annotated[int, _Number, Field(ge=100)] | None = Field(default=None, examples=[100_000])
    """Canaries, one trained number each, half of them in the data; a tenth of the trained numbers at most 100,000 when
    left out."""


class Audit(_Section):
    """Pre-registered before the first step."""

    attack: Literal["loss-residual", "loss-drop", "loss"] = Field(examples=["loss-residual"])
    """Score of a canary: its loss; how far training lowered it; or what is left of it after a line fitted on its loss
    under the base model."""
    alpha: Fraction = Field(examples=[0.05])
    """Chance of an error that the empirical lower bound may have; 0.05 is a 95 % bound."""
    holdout_fraction: Annotated[float, _Number, Field(ge=0, le=0.5)] = 0.0
    """Share of the REAL records held out by fair coins for a membership audit; its results stay in ``private/``. Whole
    units are held out where ``data.unit_column`` tells them."""
    in_run: InRun = InRun()


class OwnersStatement(_Section):
    """What only the owner of the model can say: it stands in the certificate as stated, and none of it is checked."""

    model: str | None = Field(default=None, max_length=2000, examples=["mail-writer 1.2"])
    """Name and version of the released model."""
    base_model: str | None = Field(default=None, max_length=2000, examples=["gpt2, revision 607a30d"])
    """Name and version of the model that training began with."""
    provider: str | None = Field(default=None, max_length=2000, examples=["Example Ltd, Berlin"])
    """Who answers for the model and issues the certificate."""
    contact: str | None = Field(default=None, max_length=2000, examples=["privacy@example.org"])
    """Where questions go."""
    data_name: str | None = Field(default=None, max_length=2000, examples=["Support mails 2025"])
    """Name of the private data."""
    data_origin: str | None = Field(default=None, max_length=2000, examples=["Own customers, by contract"])
    """Where the private data come from, and on what ground they are used."""
    intended_use: str | None = Field(default=None, max_length=2000, examples=["Drafts of replies, read by staff"])
    """What the model is for."""
    justification: str | None = Field(default=None, max_length=2000, examples=["Board decision of 2026-03-01"])
    """Why this ε, this δ and this unit were chosen."""
    previous_releases: str | None = Field(default=None, max_length=2000, examples=["None from these data"])
    """Other releases from the same data, whose ε adds up with this one."""


class Run(_Section):
    """Public seeds and checkpoints; never noise, sampling or coins."""

    seed: Integer = 0
    """PUBLIC seed of initialisation and directions only."""
    checkpoints: PositiveInt = 10
    """Checkpoints over the run, each seals a ledger segment."""
    processes: PositiveInt = 1
    """Processes that train together: on this machine, or as many as ``torchrun`` starts. On GPUs each takes one. The
    first one counts and writes. Each has a whole copy of the model, if ``run.sharding`` says nothing else."""
    sharding: Literal["fsdp2"] | None = Field(default=None, examples=["fsdp2"])
    """``"fsdp2"``: the processes train one model in shards (``fully_shard``), each with its part of the weights, of the
    optimizer's state and of the sums. Needs several processes."""


class Config(_Section):
    """A whole run."""

    claim: ClaimField
    model: Model
    data: Data
    privacy: Privacy
    optimizer: Optimizer
    canaries: Canaries
    audit: Audit
    zeroth_order: ZerothOrder | None = None
    run: Run = Run()
    statement: OwnersStatement = OwnersStatement()

    @pydantic.model_validator(mode="after")
    def _joined(self) -> Config:
        if self.data.heldout is not None and self.data.heldout_fraction:
            raise ValueError("data.heldout and data.heldout_fraction both name the public records; give one of them")
        if self.data.limit_by is not None and self.data.limit is None:
            raise ValueError(f"data.limit_by={self.data.limit_by!r} chooses for data.limit, which is missing; add it")
        self._check_classes()
        if self.data.prompt_columns and self.model.task != "causal-lm":
            raise ValueError("data.prompt_columns stand before a text to be written and need model.task='causal-lm'")
        if self.model.lora_targets is not None and self.model.trainable != "lora":
            raise ValueError('model.lora_targets needs model.trainable="lora"; leave it out, or train adapters')
        if self.privacy.method == "dp-zoso" and self.optimizer.schedule != "constant":
            raise ValueError(
                f"optimizer.schedule={self.optimizer.schedule!r} has no effect with privacy.method='dp-zoso', whose"
                " rate halves from stage to stage; leave it out"
            )
        if self.privacy.method == "dp-zoso" and self.zeroth_order is None:
            raise ValueError("zeroth_order is missing; method dp-zoso needs its section")
        if self.privacy.expected_batch_size > self.privacy.public_size:
            raise ValueError(
                f"privacy.expected_batch_size={self.privacy.expected_batch_size:g} must be <= privacy.public_size="
                f"{self.privacy.public_size}; lower the batch, or declare the size of the whole data set"
            )
        self._check_units()
        if self.privacy.calibrate_with not in self.privacy.accountants:
            raise ValueError(
                f"privacy.calibrate_with={self.privacy.calibrate_with!r} must be one of privacy.accountants"
                f" {list(self.privacy.accountants)}, or the certificate could miss its own claim"
            )
        if self.audit.in_run.enabled is False and self.audit.in_run.canaries is not None:
            raise ValueError(
                "audit.in_run.canaries counts what audit.in_run.enabled=false leaves out; drop one of them"
            )
        self._check_beacons()
        labelled = self.canaries.kind in LABELLED
        if labelled and self.model.task == "causal-lm":
            raise ValueError(
                f"canaries.kind={self.canaries.kind!r} needs model.task='sequence-classification', or 'text-infilling'"
            )
        if self.canaries.kind == "label-substitution" and self.model.task == "text-infilling":
            raise ValueError(
                "canaries.kind='label-substitution' is not made for model.task='text-infilling'; use 'label-flip'"
            )
        if self.canaries.kind == "label-substitution" and self.claim.relation != "replace_one":
            raise ValueError(
                f"canaries.kind='label-substitution' replaces a record by another and claim.relation="
                f"{str(self.claim.relation)!r} says nothing of that; use 'label-flip', or claim replace_one"
            )
        if not labelled and self.model.task != "causal-lm":
            raise ValueError(f"canaries.kind={self.canaries.kind!r} needs model.task='causal-lm'; use 'label-flip'")
        if self.canaries.kind == "new-token" and self.model.trainable != "all":
            raise ValueError(
                f"model.trainable={self.model.trainable!r} freezes the embeddings by which canaries.kind='new-token' is"
                " learnt; use canaries.kind='random-token', or model.trainable='all'"
            )
        return self

    def _check_beacons(self) -> None:
        """Keys of beacons that contradict others or lack their number of copies."""
        beacons, copies = self.canaries.beacons, self.canaries.beacon_copies
        if (beacons is None) != (copies is None):
            raise ValueError(
                f"canaries.beacons={beacons} with canaries.beacon_copies={copies}: set both to have beacons, or neither"
            )
        if beacons is None:
            return
        if self.canaries.kind == "label-substitution":
            raise ValueError(
                "canaries.beacons are in the data or not, and canaries.kind='label-substitution' replaces records;"
                " leave them out"
            )
        if self.privacy.sampling_unit == "unit":
            raise ValueError(
                "canaries.beacons are drawn record by record and privacy.sampling_unit='unit' draws whole units, of"
                " which a beacon is one however many copies it has; leave them out"
            )

    def _check_classes(self) -> None:
        """Keys of tasks with classes that contradict each other or have no effect."""
        task, template, words, labels = self.model.task, self.model.template, self.model.words, self.data.labels
        if labels is not None and task == "causal-lm":
            raise ValueError("data.labels names classes, which model.task='causal-lm' has not; leave it out")
        if task != "text-infilling" and (template is not None or words is not None):
            raise ValueError("model.template and model.words belong to model.task='text-infilling'; leave them out")
        if task == "text-infilling":
            if template is None or words is None or labels is None:
                raise ValueError(
                    "model.task='text-infilling' needs model.template (as '{0} It was <mask>.'), model.words and"
                    " data.labels, a word for each label in one order; add what is missing"
                )
            if "{0}" not in template:
                raise ValueError(f"model.template={template!r} has no place {{0}} for the text; add it")
            if len(words) != len(labels) or len(set(words)) != len(words):
                raise ValueError(
                    f"model.words={list(words)} must be {len(labels)} different words, one for each of data.labels"
                )

    def _check_units(self) -> None:
        """Keys on units of privacy that contradict each other or have no effect."""
        data, privacy = self.data, self.privacy
        if data.unit_column is None and data.max_records_rule != "refuse":
            raise ValueError(
                f"data.max_records_rule={data.max_records_rule!r} chooses among the records of a unit, which"
                " data.unit_column would tell; add it"
            )
        if (privacy.sampling_unit == "unit") != (privacy.records_per_unit is not None):
            raise ValueError(
                f"privacy.records_per_unit={privacy.records_per_unit} with privacy.sampling_unit="
                f"{privacy.sampling_unit!r}: set both to draw whole units, or neither to draw records"
            )
        if privacy.sampling_unit == "unit":
            if data.unit_column is None:
                raise ValueError("privacy.sampling_unit='unit' draws units, which data.unit_column would tell; add it")
            if self.claim.max_records_per_unit != 1:
                raise ValueError(
                    f"claim.max_records_per_unit={self.claim.max_records_per_unit} must be 1 with"
                    " privacy.sampling_unit='unit', where a unit contributes one clipped gradient whatever it holds;"
                    " privacy.records_per_unit bounds the records of a step"
                )


def read_config(path: Path) -> Config:
    """Read a TOML configuration.

    Raises
    ------
    InvalidValue
        One sentence with the key, what is wrong, and the file.
    """
    if Path(path).is_file() and format_of(Path(path)) is not None:
        raise InvalidValue(f"{path} is data and no configuration; 'dpaudit init {path}' writes one for it.")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InvalidValue(
            f"configuration {path} does not exist; 'dpaudit init' writes one for your data and model."
        ) from error
    try:
        return parse_config(parse_toml(data, name=f"configuration {path}"), str(path))
    except InvalidEvidence as error:
        raise InvalidValue(str(error)) from None


def with_device(config: Config, device: str | None) -> Config:
    """The configuration with another ``optimizer.device``; itself for None."""
    if device is None:
        return config
    value = config.model_dump(mode="json", exclude_none=True)
    value["optimizer"]["device"] = device
    return parse_config(value, "--device")


def parse_config(value: dict[str, Any], name: str) -> Config:
    """Check a configuration's keys and bounds; see :func:`read_config`."""
    try:
        return Config.model_validate(value)
    except pydantic.ValidationError as error:
        found = error.errors()
        # A misspelt key is both unknown and missing under its right name, so the error that names the spelling goes
        # first.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = printable(".".join(str(part) for part in first["loc"]))[:80] or "configuration"
        got = "" if first["type"] == "missing" else _given(first.get("input"))
        message = str(first["msg"]).removeprefix("Value error, ").removesuffix(".")
        if key == "privacy.public_size" and first["type"] == "missing":
            raise InvalidValue(f"{name}: {key}: field required; {PUBLIC_SIZE_HINT}.") from error
        if first["type"] == "value_error" and not first["loc"]:  # of several keys together; it names its own remedy
            raise InvalidValue(f"{name}: {message}.") from error
        missing = "add it; 'dpaudit init' writes a file with every key that is needed"
        hint = missing if first["type"] == "missing" else "correct it"
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
