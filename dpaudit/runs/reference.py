"""What a configuration may say, read off its models: every key with its type, default, an example and its meaning."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import annotated_types
import pydantic
from pydantic.fields import FieldInfo

from dpaudit.runs.config import Config

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration.

    Attributes
    ----------
    kind : str
        Its type in words, with the bounds: "number > 0".
    required : bool
        Whether a section that stands must have it.
    default, example : object
        Values as Python has them; ``default`` is None for a key that may be left out and has none.
    meaning : str
        What it does, and why one would set it.
    """

    section: str
    name: str
    kind: str
    required: bool
    default: Any
    example: Any
    meaning: str


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """One table of a configuration, as ``[name]``."""

    name: str
    required: bool
    meaning: str
    keys: tuple[Key, ...]


def sections() -> Iterator[Section]:
    """Every section, in the order of the file."""
    for name, field in Config.model_fields.items():
        model = _model(field)
        assert model is not None
        yield from _with_inner(name, field.is_required(), model)


def _with_inner(name: str, required: bool, model: type[pydantic.BaseModel]) -> Iterator[Section]:
    """A section, and then those inside it."""
    plain = {key: inner for key, inner in model.model_fields.items() if _model(inner) is None}
    keys = tuple(_key(name, key, inner) for key, inner in plain.items())
    yield Section(name, required, " ".join((model.__doc__ or "").split()), keys)
    for key, inner in model.model_fields.items():
        if (below := _model(inner)) is not None:
            yield from _with_inner(f"{name}.{key}", inner.is_required(), below)


def _model(field: FieldInfo) -> type[pydantic.BaseModel] | None:
    """The section that a field holds; None for a plain value."""
    options = _options(field.annotation)
    return next((a for a in options if isinstance(a, type) and issubclass(a, pydantic.BaseModel)), None)


def _key(section: str, name: str, field: FieldInfo) -> Key:
    default = None if field.is_required() else field.default
    example = field.examples[0] if field.examples else default
    if example is None:
        raise AssertionError(f"{section}.{name} has neither a default nor an example; give Field(examples=[...])")
    if not field.description:
        raise AssertionError(f"{section}.{name} has no description; put a docstring under it")
    meaning = " ".join(field.description.split())
    return Key(section, name, kind_words(field), field.is_required(), default, example, meaning)


def kind_words(field: FieldInfo) -> str:
    """The type of a field in words, its choices or bounds with it."""
    words, bounds = [], list(field.metadata)
    for option in _options(field.annotation):
        if typing.get_origin(option) is typing.Annotated:
            option, *inner = typing.get_args(option)
            bounds += inner
        if option is type(None):
            continue
        if typing.get_origin(option) is Literal:
            words.append(" or ".join(toml(value) for value in typing.get_args(option)))
        elif typing.get_origin(option) is tuple:
            words.append("list of texts")
        else:
            words.append(_WORDS[option])
    return " ".join([" or ".join(words), *_bounds(bounds)])


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for part in metadata:
        for inner in part.metadata if isinstance(part, FieldInfo) else [part]:
            match inner:
                case annotated_types.Gt(gt=bound):
                    yield f"> {bound}"
                case annotated_types.Ge(ge=bound):
                    yield f"≥ {bound}"
                case annotated_types.Lt(lt=bound):
                    yield f"< {bound}"
                case annotated_types.Le(le=bound):
                    yield f"≤ {bound}"


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of ``A | B``, or the annotation alone."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def toml(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in value)
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    return repr(value)


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def markdown() -> str:
    """The reference page: one table for each section."""
    parts = [_HEAD]
    for section in sections():
        wanted = "" if section.required else " This section may be left out."
        parts.append(f"\n## `[{section.name}]`\n\n{section.meaning.rstrip('.')}.{wanted}\n")
        parts.append("| Key | Value | Meaning |\n|---|---|---|")
        parts += [_row(key) for key in section.keys]
    return "\n".join(parts) + "\n"


_HEAD = """# Configuration

Every key of the TOML file that `dpaudit train` and `dpaudit certify` read. This page is written from the models that
check the file, by `python docs/build_configuration.py`; a test compares the two. A key that is not here is refused, and
the one that was probably meant is named. Privacy has no silent defaults: what decides the guarantee is required.
`dpaudit init` writes a commented file for your data and model."""


def _row(key: Key) -> str:
    known = "no default" if key.default is None else f"default `{toml(key.default)}`"
    default = "**required**" if key.required else known
    shown = key.example != key.default and not key.kind.startswith('"')  # choices are their own example
    example = f"; example `{_short(toml(key.example))}`" if shown else ""
    cells = [f"`{key.name}`", f"{key.kind}; {default}{example}", key.meaning.replace("``", "`")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…{text[-6:]}"
