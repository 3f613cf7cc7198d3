"""Made-up records in the form of a data set's: its keys, types and lengths, and none of its content."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WORDS = "time year people way day man thing woman life child world school state family student group country problem"
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id", "decoder_start_token_id")


class CannotMake(Exception):
    """Raised for a kind of record that cannot be made up; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """From which range whole numbers are drawn, where nothing says what they number.

    Parameters
    ----------
    vocabulary : int
        Of token ids, which are known by name.
    classes : int
        Of class labels.
    others : int
        Of everything else; tried from wide to narrow, since a model refuses what is out of range.
    labels_are_tokens : bool
        Whether labels with one entry for each token are the tokens themselves.
    avoided : frozenset of int
        Special tokens, which collators and models may look for.
    once : int or None
        A token that every record holds exactly once, as a prompt holds its mask.
    """

    vocabulary: int
    classes: int
    others: int
    labels_are_tokens: bool
    avoided: frozenset[int] = frozenset()
    once: int | None = None


def ranges_to_try(model: nn.Module) -> list[Ranges]:
    """Ranges from wide to narrow; on CUDA a narrow one alone, since an index out of range ends the process there."""
    config = getattr(model, "config", None)
    vocabulary = int(getattr(config, "vocab_size", 0) or 0) or rows_of_first_embedding(model)
    classes = int(getattr(config, "num_labels", 2) or 2)
    tokens = not _head_name(model).endswith("ForTokenClassification")
    ids = (getattr(config, name, None) for name in _SPECIAL)
    avoided = frozenset(i for i in ids if isinstance(i, int)) if vocabulary > 16 else frozenset()
    first = Ranges(
        vocabulary=vocabulary, classes=max(1, classes), others=vocabulary, labels_are_tokens=tokens, avoided=avoided
    )
    narrow = [dataclasses.replace(first, others=2)]
    narrow += [dataclasses.replace(first, others=2, classes=2, labels_are_tokens=not tokens)]
    narrow += [dataclasses.replace(first, others=1, classes=1, labels_are_tokens=False)]
    if any(p.is_cuda for p in model.parameters()):
        return narrow[:1]
    prompts = [dataclasses.replace(narrow[0], once=once, avoided=avoided | {once}) for once in _masks(vocabulary)]
    return [first, *narrow, *prompts]


def _masks(vocabulary: int) -> list[int]:
    """Ids that mask tokens have in the families of masked language models, and the first few."""
    return [i for i in (103, vocabulary - 1, *range(10), 50264, 250001, 128000) if 0 <= i < vocabulary]


class Maker:
    """Makes records like two given ones.

    Parameters
    ----------
    one, two : object
        Records of a data set; keys, types and shapes are read.
    ranges : Ranges
    vary : str
        Which lengths follow the one asked for: "all", "tokens" (sequences of whole numbers and texts) or "none".
    generator : torch.Generator
    """

    def __init__(self, one: Any, two: Any, *, ranges: Ranges, vary: str, generator: torch.Generator) -> None:
        self._one, self._two, self._ranges, self._vary, self._rng = one, two, ranges, vary, generator
        self.length = _main_length(one) or 1
        self._asked = self.length
        self._ids: list[int] | None = None

    @property
    def one_length(self) -> bool:
        """Whether every record has the length of the given ones, whatever is asked for."""
        return self._vary == "none"

    def make(self, length: int | None = None) -> Any:
        """One record, with ``length`` entries in its main sequence where lengths vary."""
        if isinstance(self._one, (int, np.integer)):
            raise CannotMake("whole numbers, which stand for rows kept elsewhere")
        self._asked = self.length if length is None else length
        self._ids = None
        if isinstance(self._one, Mapping) and "input_ids" in self._one:
            self._ids = self._tokens(self._extent(len(self._one["input_ids"]), tokens=True))
        return self._like(self._one, self._two, "")

    def _like(self, one: Any, two: Any, name: str) -> Any:
        if one is None:
            return None if two is None else self._like(two, two, name)
        if isinstance(one, bool):
            return bool(self._draw(2))
        if isinstance(one, (int, np.integer)):
            return self._number(name)
        if isinstance(one, (float, np.floating)):
            return float(torch.randn((), generator=self._rng))
        if isinstance(one, str):
            return self._text(name)
        if isinstance(one, (Tensor, np.ndarray)):
            return self._array(one, name)
        if isinstance(one, Mapping):
            return {k: self._like(v, two[k] if isinstance(two, Mapping) and k in two else v, k) for k, v in one.items()}
        if isinstance(one, tuple) and hasattr(one, "_fields"):
            return type(one)(*(self._like(v, v, field) for field, v in zip(one._fields, one, strict=True)))
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            fields = (f.name for f in dataclasses.fields(one) if f.init)
            return dataclasses.replace(one, **{f: self._like(getattr(one, f), getattr(one, f), f) for f in fields})
        if isinstance(one, (list, tuple)):
            return type(one)(self._sequence(one, name))
        if hasattr(one, "mode") and hasattr(one, "tobytes") and hasattr(one, "size"):
            return self._image(one)
        raise CannotMake(f"{name!r} of type {type(one).__name__}" if name else f"type {type(one).__name__}")

    def _sequence(self, one: Sequence[Any], name: str) -> list[Any]:
        if not len(one):
            return []
        kinds = {(type(v), getattr(v, "shape", None)) for v in one}
        if len(kinds) > 1 or (isinstance(one, tuple) and not _is_numbers(one)):
            return [self._like(v, v, f"{name}.{i}") for i, v in enumerate(one)]  # a pair of two things
        if _is_numbers(one):
            return self._numbers(name, self._extent(len(one), tokens=True))
        count = self._extent(len(one), tokens=isinstance(one[0], str))
        return [self._like(one[0], one[0], name) for _ in range(count)]

    def _array(self, one: Any, name: str) -> Any:
        shape = tuple(one.shape)
        whole = not (one.is_floating_point() if isinstance(one, Tensor) else one.dtype.kind == "f")
        if not shape:
            values = torch.tensor(self._number(name) if whole else float(torch.randn((), generator=self._rng)))
        elif whole and len(shape) == 1:
            values = torch.tensor(self._numbers(name, self._extent(shape[0], tokens=True)), dtype=torch.long)
        else:
            shape = (self._extent(shape[0], tokens=whole), *shape[1:])
            top = max(1, self._bound(name))
            values = (
                torch.randint(0, top, shape, generator=self._rng) if whole else torch.randn(shape, generator=self._rng)
            )
        return values.to(one.dtype) if isinstance(one, Tensor) else values.numpy().astype(one.dtype)

    def _extent(self, length: int, *, tokens: bool) -> int:
        if self._vary == "none" or (self._vary == "tokens" and not tokens):
            return length
        apart = length - self.length
        return max(1, self._asked + apart if abs(apart) <= 2 else round(length * self._asked / self.length))

    def _tokens(self, count: int) -> list[int]:
        ids = [self._draw(self._ranges.vocabulary) for _ in range(count)]
        if self._ranges.once is not None:
            ids[count // 2] = self._ranges.once
        return ids

    def _numbers(self, name: str, count: int) -> list[int]:
        if name.endswith("mask"):
            return [0 if "special" in name else 1] * count
        if name == "position_ids":
            return list(range(count))
        if self._ids is not None and len(self._ids) == count and name == "input_ids":
            return self._ids
        if is_label(name) and self._ids is not None and len(self._ids) == count and self._ranges.labels_are_tokens:
            return list(self._ids)
        if name == "":
            return self._tokens(count)
        return [self._draw(self._bound(name, sequence=True)) for _ in range(count)]

    def _number(self, name: str) -> int:
        if "length" in name or name.endswith("len"):
            return self._asked
        return self._draw(self._bound(name, sequence=False), avoid=False)

    def _bound(self, name: str, *, sequence: bool = True) -> int:
        ranges = self._ranges
        if name in ("input_ids", "decoder_input_ids") or (name == "" and sequence):
            return ranges.vocabulary
        if name == "token_type_ids":
            return 1
        if is_label(name) or not sequence:
            return ranges.vocabulary if sequence and ranges.labels_are_tokens else ranges.classes
        return ranges.others

    def _draw(self, top: int, *, avoid: bool = True) -> int:
        for _ in range(20):
            drawn = int(torch.randint(0, max(1, top), (1,), generator=self._rng))
            if not avoid or drawn not in self._ranges.avoided:
                break
        return drawn

    def _text(self, name: str) -> str:
        if is_label(name):
            raise CannotMake(f"{name!r}, a label in words")
        words = _WORDS.split()
        count = 12 if self._vary == "none" else self._asked
        return " ".join(words[self._draw(len(words), avoid=False)] for _ in range(count))

    def _image(self, one: Any) -> Any:
        size = len(one.tobytes())
        noise = torch.randint(0, 256, (size,), generator=self._rng, dtype=torch.uint8).numpy().tobytes()
        return type(one).frombytes(one.mode, one.size, noise) if hasattr(type(one), "frombytes") else one.copy()


def positions(model: nn.Module) -> int:
    """Tokens a record may have in this model, less a few for tokens that a collator adds."""
    config = getattr(model, "config", None)
    names = ("max_position_embeddings", "npositions", "max_sourcepositions")
    values = [getattr(config, name, None) for name in names]
    rope = getattr(config, "rope_parameters", None)
    values.append(rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None)
    limits = [value for value in values if isinstance(value, int) and value > 0]
    return max(2, min(limits) - 3) if limits else 1 << 30


def rows_of_first_embedding(model: nn.Module) -> int:
    """Rows of the model's first embedding table, 2 where it has none."""
    return next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 2)


def is_label(name: str) -> bool:
    """Whether a field's name says that it holds labels."""
    return name.rpartition(".")[2] in ("label", "labels", "target", "targets", "y", "class")


def _is_numbers(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values)


def _main_length(record: Any) -> int | None:
    """Length of the sequence that the others follow: the token ids, or the first sequence of whole numbers."""
    if isinstance(record, Mapping):
        named = [record["input_ids"]] if "input_ids" in record else list(record.values())
        found = [_main_length(value) for value in named if not isinstance(value, Mapping)]
        return next((length for length in found if length), None)
    if isinstance(record, (Tensor, np.ndarray)):
        return int(record.shape[0]) if record.ndim else None
    if isinstance(record, str):
        return 12
    if isinstance(record, (list, tuple)) and len(record):
        return len(record) if _is_numbers(record) else next((n for n in map(_main_length, record) if n), len(record))
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        values = (getattr(record, f.name) for f in dataclasses.fields(record))
        return next((n for n in map(_main_length, values) if n), None)
    return None


def _head_name(model: nn.Module) -> str:
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # peft
        inner = inner.get_base_model()
    return type(inner).__name__
