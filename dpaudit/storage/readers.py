"""Bounded readers for files that somebody else wrote: JSON, TOML and score tables.

Every reader states its limits and refuses beyond them with one sentence. Nothing here unpickles, evaluates, follows
a link out of the folder it was given, or reads a file whose size it has not checked first.
"""

from __future__ import annotations

import csv
import io
import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.parquet import read_parquet

MAX_JSON_BYTES = 64 * 2**20
MAX_TABLE_BYTES = 256 * 2**20
MAX_DEPTH = 32
MAX_NODES = 4_000_000
MAX_ROWS = 2_000_000
MAX_CELL = 10_000


def read_bytes(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises
    ------
    InvalidEvidence
        When the file is absent, is not a regular file (a pipe, a device), or is larger than the limit.
    """
    try:
        mode = path.stat()
        if not stat.S_ISREG(mode.st_mode):
            raise InvalidEvidence(f"{path} is not a regular file; give the path of a file.")
        if mode.st_size > limit:
            raise InvalidEvidence(f"{path} has {mode.st_size} bytes and the limit is {limit}; give the original file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InvalidEvidence(
            f"{path} cannot be read ({_reason(error)}); check the path and its permissions."
        ) from None
    if len(data) > limit:
        raise InvalidEvidence(f"{path} grew beyond the limit of {limit} bytes while it was read; copy it first.")
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
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite_float
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
    return value


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Read and parse one JSON file within the limits of :func:`parse_json`."""
    return parse_json(read_bytes(path, limit=limit), name=path.name, limit=limit)


def read_toml(path: Path, *, limit: int = 2**20) -> dict[str, Any]:
    """Read one TOML file (1 MiB at most)."""
    import tomllib

    data = read_bytes(path, limit=limit)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidEvidence(f"{path.name} is not valid TOML ({_reason(error)}); mend the line it names.") from None


def inside(folder: Path, relative: str) -> Path:
    """Path of ``relative`` under ``folder``; refuses absolute paths, ``..`` and links that lead outside."""
    if not relative or "\x00" in relative or "\\" in relative or Path(relative).is_absolute():
        raise InvalidEvidence(f"path {relative!r} must be relative to the run folder; give a plain relative path.")
    root = folder.resolve()
    try:
        target = (root / relative).resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidEvidence(f"path {relative[:80]!r} cannot be resolved ({_reason(error)}).") from None
    if target == root or root not in target.parents:
        raise InvalidEvidence(f"path {relative!r} leads outside the run folder; evidence lies inside it.")
    return target


def read_table(path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Read named columns of a CSV or Parquet file.

    Parameters
    ----------
    columns, optional : names
        Required columns, and those taken when present. Other columns are ignored.

    Returns
    -------
    dict
        Column name to list of cells, all of equal length (2,000,000 rows at most). CSV cells are strings.
    """
    if path.suffix.lower() in {".parquet", ".pq"}:
        data = read_bytes(path, limit=MAX_TABLE_BYTES)
        wanted = (*columns, *optional)
        table = read_parquet(data, wanted, name=path.name, rows=MAX_ROWS, size=2 * MAX_TABLE_BYTES)
    else:
        table = _read_csv(path)
    if missing := [c for c in columns if c not in table]:
        raise InvalidEvidence(
            f"{path.name} has no column {missing[0]!r}; it needs {', '.join(columns)} and has {', '.join(table)[:200]}."
        )
    return {c: table[c] for c in (*columns, *optional) if c in table}


def number(value: Any, *, name: str) -> float:
    """Read a finite number from a cell (a string or a number)."""
    try:
        if isinstance(value, bool):
            raise ValueError
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidEvidence(f"{name}={str(value)[:40]!r} must be a number; mend that cell.") from None
    if not math.isfinite(result):
        raise InvalidEvidence(f"{name}={value} must be finite; remove NaN and infinite values.")
    return result


def _read_csv(path: Path) -> dict[str, list[Any]]:
    text = read_bytes(path, limit=MAX_TABLE_BYTES)
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidEvidence(f"{path.name} is not UTF-8 text; save it as UTF-8 CSV or as Parquet.") from None
    rows = csv.reader(io.StringIO(decoded, newline=""))
    try:
        header = next(rows, [])
        if not header or len(set(header)) != len(header):
            raise InvalidEvidence(f"{path.name} needs a header line with unique column names; add one.")
        body: list[list[str]] = []
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InvalidEvidence(
                    f"{path.name} line {rows.line_num} has {len(row)} cells and the header has {len(header)};"
                    " mend that line."
                )
            if len(body) >= MAX_ROWS:
                raise InvalidEvidence(f"{path.name} has more than {MAX_ROWS} rows; split the file.")
            if any(len(cell) > MAX_CELL for cell in row):
                raise InvalidEvidence(f"{path.name} line {rows.line_num} has a cell above {MAX_CELL} characters.")
            body.append(row)
    except csv.Error as error:
        raise InvalidEvidence(f"{path.name} is not valid CSV ({_reason(error)}); mend that line.") from None
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [k for k, _ in pairs]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise InvalidEvidence(f"key {twice[:60]!r} stands twice in one object; a record has each key once.")
    return result


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
        level, depth = below, depth + 1


def _reason(error: BaseException) -> str:
    text = str(error) if not isinstance(error, OSError) else (error.strerror or type(error).__name__)
    return (text.splitlines() or [type(error).__name__])[0][:160].rstrip(".")
