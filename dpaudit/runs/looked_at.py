"""What can be told of a data file and a model folder without reading a record or a weight."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import name_some
from dpaudit.storage.readers import read_json
from dpaudit.storage.tables import column_names, format_of

TEXTS = ("text", "body", "content", "message", "sentence", "review", "document", "prompt")
LABELS = ("label", "labels", "class", "category", "target")
OWNERS = ("user", "sender", "author", "customer", "patient", "person", "client", "speaker", "account", "email", "from")
_LARGE = 300_000_000
"""Bytes of weights above which adapters are proposed instead of full fine-tuning."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LookedAtData:
    """A data file and the columns that hold texts, labels and whom a record is of; all None for plain lines."""

    path: Path
    text_column: str | None = None
    label_column: str | None = None
    owner_column: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LookedAtModel:
    """A model folder: its task, its longest record, how large it is, and how many tokens it reserves for canaries."""

    path: Path
    task: Literal["causal-lm", "sequence-classification"]
    gguf_file: str | None
    longest: int | None
    is_large: bool
    reserved_tokens: int


def look_at_data(
    path: Path, *, text_column: str | None, label_column: str | None, wants_labels: bool | None
) -> LookedAtData:
    """Find the columns by their names.

    Parameters
    ----------
    wants_labels : bool or None
        Whether labels are needed; None takes them where a column is called so.

    Raises
    ------
    InvalidValue
        When no column, or none of the given name, can be meant; with the names that there are.
    """
    if not path.exists():
        raise InvalidValue(f"data {str(path)!r} does not exist; give a file of records, as in: dpaudit init mails.csv.")
    kind = format_of(path)
    if kind is None:
        raise InvalidValue(
            f"data {path.name!r} has an ending that is not known; give .txt (one record a line), .csv, .jsonl or"
            " .parquet, plain or as .gz or .xz, or a folder written by save_to_disk."
        )
    if kind == "text":
        if text_column or label_column or wants_labels:
            raise InvalidValue(f"{path.name} has plain lines and no columns; give a table for labels.")
        return LookedAtData(path=path)
    try:
        names = column_names(path)
    except InvalidEvidence as error:
        raise InvalidValue(str(error)) from None
    text = _named(path, names, text_column, "--text-column") or _likely(names, TEXTS)
    label = _named(path, names, label_column, "--label-column") or _likely(names, LABELS)
    if text == label and text_column is None:
        text = _likely([name for name in names if name != label], TEXTS)
    rest = [name for name in names if name != label]
    if text is None and len(rest) == 1:
        text = rest[0]
    if text is None:
        raise InvalidValue(
            f"{path.name} has the columns {name_some(names)}; say which holds the texts with --text-column."
        )
    if text == label and text_column and label_column:
        raise InvalidValue(f"--text-column and --label-column both name {text!r}; the class is another column.")
    if wants_labels and label is None:
        raise InvalidValue(
            f"{path.name} has the columns {name_some(names)}; say which holds the class with --label-column."
        )
    owners = [*OWNERS, *(f"{name}_id" for name in OWNERS)]
    return LookedAtData(
        path=path,
        text_column=text,
        label_column=None if wants_labels is False else label,
        owner_column=_likely([name for name in rest if name != text], owners),
    )


def look_at_model(
    path: Path, *, task: Literal["causal-lm", "sequence-classification"] | None, has_labels: bool
) -> LookedAtModel:
    """Read the model's configuration and the names of its tokens; never its weights.

    Raises
    ------
    InvalidValue
        When the folder holds no model, or one that cannot do the task.
    """
    if not path.is_dir():
        hub = "; models of the Hugging Face hub are not downloaded: save it with save_pretrained and give its folder"
        raise InvalidValue(f"model {str(path)!r} is no folder{hub if not path.exists() else '; give its folder'}.")
    gguf = sorted(file.name for file in path.glob("*.gguf"))
    if not (path / "config.json").is_file() and not gguf:
        raise InvalidValue(f"model {str(path)!r} holds no config.json; give a folder written by save_pretrained.")
    config = _read(path / "config.json")
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    continues = bool(gguf) or any(name.endswith(("LMHeadModel", "ForCausalLM")) for name in architectures)
    chosen = task or ("sequence-classification" if has_labels else "causal-lm")
    if chosen == "causal-lm" and not continues:
        raise InvalidValue(
            f"model {path.name!r} {_is(architectures)}, which cannot continue texts;"
            " give a causal model, or a table with labels (--label-column) to classify."
        )
    size = sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".gguf"))
    lengths = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    return LookedAtModel(
        path=path,
        task=chosen,
        gguf_file=gguf[0] if gguf and not (path / "config.json").is_file() else None,
        longest=next((n for n in lengths if isinstance(n, int) and n > 1), None),
        is_large=size > _LARGE,
        reserved_tokens=_reserved(path / "tokenizer.json"),
    )


def _is(architectures: Sequence[str]) -> str:
    return f"is a {' or '.join(architectures)}" if architectures else "names no architecture"


def _reserved(tokens: Path) -> int:
    """Number of tokens <canary_...> that a tokenizer's file names."""
    text = tokens.read_text(encoding="utf-8", errors="replace") if tokens.is_file() else ""
    return len(set(re.findall(r'"(<canary_[^"]{1,60})"', text)))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except InvalidEvidence as error:
        raise InvalidValue(f"model: {error}") from None
    return value if isinstance(value, dict) else {}


def _named(path: Path, names: Sequence[str], wanted: str | None, option: str) -> str | None:
    if wanted is not None and wanted not in names:
        raise InvalidValue(f"{option}={wanted!r} is no column of {path.name}; it has {name_some(names)}.")
    return wanted


def _likely(names: Sequence[str], usual: Sequence[str]) -> str | None:
    folded = {name.strip().casefold(): name for name in names}
    return next((folded[name] for name in usual if name in folded), None)
