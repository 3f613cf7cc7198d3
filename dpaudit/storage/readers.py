"""Bounded readers for files that somebody else wrote: bytes, JSON and TOML.

Every reader states its limits and refuses beyond them with one sentence. Nothing here unpickles, evaluates, follows
a link out of the folder it was given, or reads a file whose size it has not checked first.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.text import printable
from dpaudit.storage.text import read_text

MAX_JSON_BYTES = 32 * 2**20
MAX_TOML_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 2_000_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises
    ------
    InvalidEvidence
        When the file is absent, is not a regular file (a pipe, a device), or is larger than the limit.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for a writer; what was opened is judged, not what a name meant.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            mode = os.fstat(handle)
            if not stat.S_ISREG(mode.st_mode):
                raise InvalidEvidence(f"{path} is not a regular file; give the path of a file.")
            if mode.st_size > limit:
                raise InvalidEvidence(
                    f"{path} has {mode.st_size} bytes and the limit is {limit}; give the original file."
                )
            data = file.read(mode.st_size + 1)  # a read of ``limit`` bytes would reserve as much
    except IsADirectoryError:
        raise InvalidEvidence(f"{path} is not a regular file; give the path of a file.") from None
    except (OSError, ValueError) as error:
        raise InvalidEvidence(
            f"{path} cannot be read ({_reason(error)}); check the path and its permissions."
        ) from None
    if len(data) > mode.st_size:
        raise InvalidEvidence(f"{path} grew while it was read; read it when nothing writes to it.")
    return data


def parse_json(data: bytes, *, name: str = "the file", limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly: UTF-8, no NaN or Infinity, no key twice, bounded size, depth and number of values.

    Raises
    ------
    InvalidEvidence
        Names what is wrong and where, in one sentence.
    """
    if len(data) > limit:
        raise InvalidEvidence(f"{name} has {len(data)} bytes and the limit is {limit}; give the original file.")
    # A parsed value takes 30 times the memory of its text, so values are counted before parsing: each but the first
    # follows one of these.
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > MAX_NODES:
        raise InvalidEvidence(f"{name} holds more than {MAX_NODES} values; give the original file.")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite_float,
            parse_int=_bounded_integer,
        )
    except InvalidEvidence as error:
        raise InvalidEvidence(f"{name}: {error}") from None
    except UnicodeDecodeError:
        raise InvalidEvidence(f"{name} is not UTF-8 text; give the file as it was written.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidEvidence(
            f"{name} is not valid JSON ({_reason(error)}); give the file as it was written."
        ) from None
    _check_shape(value, name)
    if _SURROGATE.search(data):
        _refuse_half_characters(value, name)
    return value


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Read and parse one JSON file within the limits of :func:`parse_json`."""
    return parse_json(read_bytes(path, limit=limit), name=path.name, limit=limit)


def parse_toml(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse TOML: UTF-8 without a byte-order mark.

    Raises
    ------
    InvalidEvidence
        Names the mark, the encoding or the line, and the remedy.
    """
    import tomllib

    if data.startswith(codecs.BOM_UTF8):
        raise InvalidEvidence(
            f"{name} begins with a byte-order mark (BOM), which TOML does not allow; save it as UTF-8 without BOM."
        )
    text = read_text(data, name=name, limit=MAX_TOML_BYTES)
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        if "int_max_str_digits" in str(error):
            raise InvalidEvidence(f"{name} holds a number of thousands of digits; give a smaller number.") from None
        remedy = "write / for \\ in paths" if "\\" in str(error) else "mend the line it names"
        raise InvalidEvidence(f"{name} is not valid TOML ({_reason(error)}); {remedy}.") from None
    _check_shape(value, name)
    return value


def read_toml(path: Path, *, limit: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Read one TOML file (1 MiB at most)."""
    return parse_toml(read_bytes(path, limit=limit), name=path.name)


def inside(folder: Path, relative: str) -> Path:
    """Path of ``relative`` under ``folder``; refuses absolute paths, ``..`` and links that lead outside.

    A name has one spelling: no empty part, no ``.``, no control character, so that two names are two files.
    """
    shown = printable(relative[:80])
    if not relative or "\\" in relative or Path(relative).is_absolute():
        raise InvalidEvidence(f"path '{shown}' must be relative to the run folder; give a plain relative path.")
    if shown != relative[:80] or printable(relative) != relative:
        raise InvalidEvidence(f"path '{shown}' holds characters that cannot be shown; give a plain relative path.")
    root = folder.resolve()
    try:
        target = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidEvidence(f"path '{shown}' cannot be resolved ({_reason(error)}).") from None
    if target == root or root not in target.parents:
        raise InvalidEvidence(f"path '{shown}' leads outside the run folder; evidence lies inside it.")
    if "/".join(part for part in relative.split("/") if part not in ("", ".", "..")) != relative:
        raise InvalidEvidence(f"path '{shown}' is not in its plain form; leave out '.', '..' and empty parts.")
    return target


def beside(folder: Path, name: str) -> Path | None:
    """Path of a file of evidence in ``folder``; None when nothing at all has that name.

    Raises
    ------
    InvalidEvidence
        When something stands there that is not a regular file of this folder: a folder, a pipe, a device, a link that
        leads out of it or nowhere.
    """
    path = folder / name
    try:
        if not os.path.lexists(path):
            return None
        target = inside(folder, name)
        if not stat.S_ISREG(target.stat().st_mode):
            raise InvalidEvidence(f"{name} is not a regular file; put the original file there.")
    except OSError as error:
        raise InvalidEvidence(f"{name} cannot be read ({_reason(error)}); put the original file there.") from None
    return target


def _refuse_half_characters(value: Any, name: str) -> None:
    """Refuse an escape such as ``\\ud800`` alone, half a character that no file, digest or tokenizer can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidEvidence(
            f"{name} holds half of a surrogate pair, which is no character; write the whole character."
        ) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [k for k, _ in pairs]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise InvalidEvidence(f"key {twice[:60]!r} stands twice in one object; a record has each key once.")
    return result


def _bounded_integer(text: str) -> int:
    """Read an integer, refusing one beyond 64 bits, which other JSON readers and later arithmetic cannot hold."""
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise InvalidEvidence(f"number {text[:20]}{'…' * (len(text) > 20)} is beyond 64 bits; give a smaller number.")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidEvidence(f"number {text[:40]} overflows; a record holds finite numbers.")
    return value


def _no_constant(text: str) -> NoReturn:
    raise InvalidEvidence(f"{text} is not a JSON number; a record holds finite numbers.")


def _check_shape(value: Any, name: str) -> None:
    level, depth, nodes = [value], 0, 0
    while level:
        nodes += len(level)
        if depth > MAX_DEPTH:
            raise InvalidEvidence(f"{name} nests deeper than {MAX_DEPTH} levels; give the original file.")
        if nodes > MAX_NODES:
            raise InvalidEvidence(f"{name} holds more than {MAX_NODES} values; give the original file.")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, int) and not -(2**63) <= item < 2**63:
                raise InvalidEvidence(f"{name} holds a number beyond 64 bits; give a smaller number.")
        level, depth = below, depth + 1


def _reason(error: BaseException) -> str:
    text = str(error) if not isinstance(error, OSError) else (error.strerror or type(error).__name__)
    return (text.splitlines() or [type(error).__name__])[0][:160].rstrip(".")
