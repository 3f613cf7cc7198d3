"""Tables that somebody else wrote, by the ending of their names: CSV, JSON lines, Parquet, a saved dataset folder.

Every table of the project is read here: scores, canaries, references, coins and training data. Cells come as they were
written; what a missing cell, a number or an id is, is decided here once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.text import printable
from dpaudit.storage.csv_table import parse_csv
from dpaudit.storage.parquet import ParquetRequest, read_parquet
from dpaudit.storage.readers import inside, parse_json, read_bytes, read_json
from dpaudit.storage.text import read_text, text_lines


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one table may hold: bytes of the file (twice that unpacked), rows, and characters of a cell."""

    bytes: int
    rows: int
    cell: int


MAX_TABLE_BYTES = 256 * 2**20
SCORES = Limits(bytes=MAX_TABLE_BYTES, rows=2_000_000, cell=10_000)
"""For scores, coins and references."""
RECORDS = Limits(bytes=4 * 2**30, rows=50_000_000, cell=10_000_000)
"""For training data, whose owner is the one who reads them."""

_PACKED = (".gz", ".xz")
_FORMATS = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    "": "text",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)|nan", re.IGNORECASE | re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Named columns of equal length, and where each row stands in its file."""

    name: str
    columns: dict[str, list[Any]]
    places: Sequence[int]
    unit: str
    """``line`` for text files, ``row`` for Parquet."""

    def __len__(self) -> int:
        return len(self.places)

    def place(self, index: int) -> str:
        """Where a row stands, for a message: ``line 7``."""
        return f"{self.unit} {self.places[index]}"

    def take(self, rows: Sequence[int]) -> Table:
        """The rows at these positions."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return dataclasses.replace(self, columns=columns, places=[self.places[i] for i in rows])


def format_of(path: Path) -> str | None:
    """``csv``, ``jsonl``, ``parquet``, ``text`` or ``dataset`` (a folder); None for an ending that is not known.

    >>> format_of(Path("a.csv.gz")), format_of(Path("b.tsv"))
    ('csv', None)
    """
    if path.is_dir():
        return "dataset"
    plain = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    return _FORMATS.get(plain.suffix.lower())


def load_table(
    path: Path,
    *,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    binary: Sequence[str] = (),
    limits: Limits = SCORES,
) -> Table:
    """Read named columns of a table.

    Parameters
    ----------
    columns, optional : names
        Required columns, and those taken when present. Other columns are ignored.
    binary : names
        Columns that may hold bytes in Parquet; their cells become hexadecimal text.
    limits : Limits

    Returns
    -------
    Table
        CSV cells are strings; cells of the other formats have the type that the file gives them.

    Raises
    ------
    InvalidEvidence
        For a file that cannot be read in one way only; with its line, and the remedy.
    """
    wanted = (*columns, *optional)
    table, header = _read(path, wanted, tuple(binary), limits)
    if absent := [column for column in columns if column not in table.columns]:
        raise InvalidEvidence(_absent(path.name, absent[0], columns, header))
    return dataclasses.replace(table, columns={c: table.columns[c] for c in wanted if c in table.columns})


def column_names(path: Path, *, limits: Limits = RECORDS) -> list[str]:
    """Names of all columns of a table, in the order of the file; raises as :func:`load_table` does."""
    return _read(path, (), (), limits)[1]


def _read(path: Path, wanted: tuple[str, ...], binary: tuple[str, ...], limits: Limits) -> tuple[Table, list[str]]:
    """A table with the wanted columns (of a text format: all), and the names of all columns."""
    kind = format_of(path) or "csv"
    if kind in ("dataset", "parquet"):
        request = ParquetRequest(
            columns=wanted, binary=binary, rows=limits.rows, size=2 * limits.bytes, cell=limits.cell
        )
        if kind == "dataset":
            files, request = _dataset_files(path), dataclasses.replace(request, kind="arrow")
        else:
            files = [path]
        return _parquet(files, path.name, request, limits.bytes)
    text = read_text(read_bytes(path, limit=limits.bytes), name=path.name, limit=2 * limits.bytes)
    table = (_jsonl if kind == "jsonl" else _csv)(text, path.name, limits)
    return table, list(table.columns)


def read_table(
    path: Path, *, columns: Sequence[str], optional: Sequence[str] = (), binary: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """Columns of :func:`load_table`, without the places of the rows; 2,000,000 rows at most."""
    return load_table(path, columns=columns, optional=optional, binary=binary).columns


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, no text or blanks only."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def label_text(cell: Any) -> str | None:
    """A cell as the name of a class, None where it is missing; whole numbers in one spelling.

    Blanks around a name do not count, and ``1``, ``1.0`` and ``" 1"`` are one class: a spreadsheet that once held an
    empty cell writes 1.0 for 1.

    >>> label_text(" 1.0"), label_text(1), label_text("ham "), label_text("")
    ('1', '1', 'ham', None)
    """
    if is_missing(cell) or not isinstance(cell, (str, int, float)):
        return None
    text = str(cell).strip()
    return text.split(".")[0] if re.fullmatch(r"-?\d+\.0+", text, re.ASCII) else text


def identifiers(cells: Sequence[Any], *, name: str, column: str = "id") -> list[str]:
    """Cells as ids; a missing one is refused, since it would read as the id ``None``."""
    if set(map(type, cells)) == {str} and all(map(str.strip, cells)):
        return list(cells)
    for i, cell in enumerate(cells):
        if is_missing(cell) or not isinstance(cell, (str, int, float)):
            raise InvalidEvidence(f"{name} has no {column} in its row {i + 1} (the header not counted); fill it.")
    return [str(cell) for cell in cells]


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


def numbers(cells: Sequence[Any], *, name: str, ids: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Cells as floats (n,); infinities stay, and the first cell that is missing or no number is named.

    Numbers are written with a decimal point; a decimal comma, thousands separators and digits of other scripts are
    refused, since they can be read in two ways.

    Parameters
    ----------
    name : str
        Of the column, for messages.
    ids : sequence of str, optional
        What a bad row is named by; without ids by its number.
    """
    if (plain_numbers := _plain_numbers(cells)) is not None:
        return plain_numbers
    for i, cell in enumerate(cells):
        if is_missing(cell):
            raise InvalidEvidence(f"{name} of {_which(ids, i)} is empty; give each row a number.")
        plain = isinstance(cell, (int, float)) or (isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()))
        if not plain:
            raise InvalidEvidence(f"{name}={str(cell)[:40]!r} of {_which(ids, i)} must be a number; {_remedy(cell)}.")
    try:
        return np.array(cells, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidEvidence(f"column {name} cannot be read as numbers; mend it.") from None


def _plain_numbers(cells: Sequence[Any]) -> NDArray[np.float64] | None:
    """Cells that are text of digits, signs, points and exponents only, as floats; None leaves them to be looked at.

    Of such characters float() takes exactly the numbers that are plain.
    """
    if set(map(type, cells)) != {str}:
        return None
    try:
        if "".join(cells).encode("ascii").translate(None, b"0123456789+-.eE"):
            return None
        return np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
    except ValueError:
        return None


def coins(cells: Sequence[Any], *, name: str, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Cells as coins (n,): 1 inserted, 0 left out; anything else is named with its id."""
    if set(map(type, cells)) == {str} and set(cells) <= {"0", "1"}:
        return np.fromiter((cell == "1" for cell in cells), dtype=np.bool_, count=len(cells))
    for i, cell in enumerate(cells):
        if isinstance(cell, str) and cell.strip().lower() in ("true", "false", "yes", "no"):
            raise InvalidEvidence(f"{name}={cell[:40]!r} of id {ids[i]!r} must be 0 or 1; write the coin as 0 or 1.")
    values = numbers(cells, name=name, ids=ids)
    if (bad := np.flatnonzero((values != 0) & (values != 1))).size:
        i = int(bad[0])
        raise InvalidEvidence(f"{name}={str(cells[i])[:40]} of id {ids[i]!r} must be 0 or 1; give its coin.")
    return np.asarray(values == 1)


def _which(ids: Sequence[str] | None, i: int) -> str:
    return f"row {i + 1}" if ids is None else f"id {ids[i]!r}"


def _remedy(cell: Any) -> str:
    if isinstance(cell, str) and re.fullmatch(r"\s*[+-]?[\d.]*\d,\d+([eE][+-]?\d+)?\s*", cell):
        return "write a point for the decimal comma, and no thousands separators"
    if isinstance(cell, str) and "," in cell:
        return "write it without thousands separators"
    return "mend that cell"


def _csv(text: str, name: str, limits: Limits) -> Table:
    columns, lines = parse_csv(text, name=name, rows=limits.rows, cell=limits.cell)
    return Table(name, columns, lines, "line")


def _jsonl(text: str, name: str, limits: Limits) -> Table:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    if text.lstrip()[:1] == "[":
        raise InvalidEvidence(f"{name} is one JSON array; write one JSON object a line (JSON lines).")
    for place, line in enumerate(text_lines(text, name=name), start=1):
        if not line.strip():
            continue
        row = parse_json(line.encode("utf-8"), name=f"{name} line {place}")
        if not isinstance(row, dict):
            raise InvalidEvidence(f"{name} line {place} is no JSON object; write one object with the columns a line.")
        if len(rows) >= limits.rows:
            raise InvalidEvidence(f"{name} has more than {limits.rows} rows; split the file.")
        rows.append(row)
        places.append(place)
    header: dict[str, None] = {}
    for row in rows:
        header.update(dict.fromkeys(row))
    return Table(name, {column: [row.get(column) for row in rows] for column in header}, places, "line")


def _parquet(paths: Sequence[Path], name: str, request: ParquetRequest, size: int) -> tuple[Table, list[str]]:
    """Files of equal columns, one after the other, as one table; and the names of all their columns."""
    columns: dict[str, list[Any]] = {}
    header: list[str] = []
    rows = 0
    for path in paths:
        left = dataclasses.replace(request, rows=request.rows - rows)
        found, names, count = read_parquet(read_bytes(path, limit=size), left, name=path.name)
        if path is not paths[0] and names != header:
            raise InvalidEvidence(f"{name} holds files of different columns ({path.name}); save it again.")
        header, rows = names, rows + count
        for column, cells in found.items():
            columns.setdefault(column, []).extend(cells)
    return Table(name, columns, range(1, rows + 1), "row"), header


def _dataset_files(folder: Path) -> list[Path]:
    """Arrow files of a dataset that ``datasets.Dataset.save_to_disk`` wrote, in the order of ``state.json``."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json")
        names = splits.get("splits") if isinstance(splits, dict) else None
        shown = ", ".join(map(str, names)) if isinstance(names, list) else "several"
        raise InvalidEvidence(f"{folder.name} holds the splits {shown[:200]}; give the folder of one of them.")
    if not (folder / "state.json").is_file():
        raise InvalidEvidence(
            f"{folder.name or folder} is a folder and no saved dataset (it has no state.json); give a .txt, .csv,"
            " .jsonl or .parquet file, or a folder written by save_to_disk."
        )
    state = read_json(folder / "state.json")
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(files, list) or not files or not all(isinstance(f, dict) and "filename" in f for f in files):
        raise InvalidEvidence(f"{folder.name}/state.json names no data files; save the dataset again as Parquet.")
    if state.get("_indices_data_files"):
        raise InvalidEvidence(f"{folder.name} holds a selection of its rows; call flatten_indices() and save it again.")
    return [inside(folder, str(file["filename"])) for file in files]


def _absent(name: str, column: str, columns: Iterable[str], header: Sequence[str]) -> str:
    near = [other for other in header if other.strip().casefold() == column.casefold()]
    remedy = f"; rename {near[0]!r} to {column!r}" if near else ""
    shown = printable(", ".join(header))[:200] or "none"
    return f"{name} has no column {column!r}: it needs {', '.join(columns)} and has {shown}{remedy}."
