"""Reading the records that an attack scores, and writing the scores, joined by id.

An attack reads texts and never coins. Columns that the audit needs afterwards (memberships, runs, copies, pairs) are
copied beside the scores once these are made.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import name_some
from dpaudit.storage.files import write_atomically
from dpaudit.storage.tables import RECORDS, Table, identifiers, is_missing, label_text, load_table

OUT = (".csv", ".parquet")
KEPT = ("member", "run", "copies", "pair")
"""Columns of ``dpaudit audit`` that the records may bring and the score file keeps."""


@dataclass(frozen=True, slots=True)
class TextRecords:
    """Records as text: unique ids, texts, and class labels as written, where there are any."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None


def read_text_records(path: Path) -> TextRecords:
    """Read columns ``id``, ``text`` and, where there is one, ``label``.

    Raises
    ------
    InvalidEvidence
        A column is absent, or an id, text or label is missing or an id is repeated.
    """
    table = load_table(path, columns=("id", "text"), optional=("label",), limits=RECORDS)
    if not len(table):
        raise InvalidEvidence(f"{path} holds no record; give at least one.")
    ids = _ids(table)
    cells = table.columns["text"]
    if blank := [ids[i] for i, text in enumerate(cells) if not isinstance(text, str) or not text]:
        raise InvalidEvidence(f"{path} has no text for {len(blank)} ids ({name_some(blank)}); fill or remove them.")
    labels = None
    if "label" in table.columns:
        found = [label_text(cell) for cell in table.columns["label"]]
        if bad := [ids[i] for i, label in enumerate(found) if label is None]:
            raise InvalidEvidence(f"{path} has no label for {len(bad)} ids ({name_some(bad)}); fill or remove them.")
        labels = tuple(label for label in found if label is not None)
    return TextRecords(ids, tuple(cells), labels)


def read_values(path: Path, column: str) -> dict[str, float]:
    """Finite numbers by id, from columns ``id`` and ``column``."""
    table = load_table(path, columns=("id", column), limits=RECORDS)
    ids = _ids(table)
    values = {name: _finite(cell) for name, cell in zip(ids, table.columns[column], strict=True)}
    if bad := [name for name, value in values.items() if not np.isfinite(value)]:
        raise InvalidEvidence(
            f"{path} has no finite {column} for {len(bad)} ids ({name_some(bad)}); remove or mend them."
        )
    return values


def read_ids(path: Path) -> tuple[str, ...]:
    """The unique ids of a table's column ``id``."""
    return _ids(load_table(path, columns=("id",), limits=RECORDS))


def read_kept(path: Path, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Columns that an audit needs beside the scores, in the order of ``ids``; those that the file has."""
    table = load_table(path, columns=("id",), optional=KEPT, limits=RECORDS)
    place = {name: i for i, name in enumerate(_ids(table))}
    rows = [place[name] for name in ids]
    kept = table.take(rows).columns
    return {column: kept[column] for column in KEPT if column in kept}


def write_scores(
    path: Path, ids: Sequence[str], scores: NDArray[np.float64], attack: str, kept: Mapping[str, Sequence[Any]]
) -> None:
    """Write columns ``id``, ``score``, ``attack`` and the kept ones, ordered by id, atomically; by the suffix."""
    check_out(path)
    import pandas as pd

    order = np.argsort(np.asarray(ids, dtype=object))  # file order must not tell the canaries' order
    columns = {name: [cells[i] for i in order] for name, cells in kept.items()}
    frame = pd.DataFrame({"id": [ids[i] for i in order], "score": scores[order], "attack": attack, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        content = frame.to_csv(index=False).encode("utf-8")
    else:
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    write_atomically(path, content)


def check_out(path: Path) -> None:
    """Refuse an output path whose ending is no format of score files."""
    if path.suffix not in OUT:
        raise InvalidValue(f"out={str(path)!r} must end in .csv or .parquet.")


def _ids(table: Table) -> tuple[str, ...]:
    cells = table.columns["id"]
    if empty := sum(map(is_missing, cells)):
        raise InvalidEvidence(f"{table.name} has {empty} rows without an id; every record needs its own.")
    ids = tuple(identifiers(cells, name=table.name))
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise InvalidEvidence(f"{table.name} repeats {len(repeated)} ids ({name_some(repeated)}); ids must be unique.")
    return ids


def _finite(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
