"""Files at the edge: records to attack and scores to hand on, CSV or Parquet, joined by id.

Only the columns an attack needs are read: coins and memberships may stand in the same file and are never loaded.
"""

from __future__ import annotations

import os
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.canaries.canary import CanarySet, from_rows
from dpaudit.attacks.canaries.secret import is_secret, read_open
from dpaudit.attacks.scores.functions import FloatArray
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import integer_at_least

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class TextRecords:
    """Records as text: unique ids, texts, and class labels for classification."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[int, ...] | None


def name_some(names: Sequence[object], limit: int = 5) -> str:
    """The first few names, for a message."""
    return ", ".join(str(name) for name in names[:limit]) + (", …" if len(names) > limit else "")


def read_records(path: str | os.PathLike[str]) -> TextRecords:
    """Read columns ``id``, ``text`` and, where there is one, ``label``.

    Raises
    ------
    InvalidEvidence
        A column is absent, an id or text is empty or repeated: a record whose text occurs twice would be lost to
        deduplication or counted twice.
    """
    columns = _columns(path)
    missing = [name for name in ("id", "text") if name not in columns]
    if missing:
        raise InvalidEvidence(
            f"{path} has no column {' and '.join(missing)} (it has {name_some(columns, 12)}); add it."
        )
    frame = _load(path, [name for name in ("id", "text", "label") if name in columns])
    if not len(frame):
        raise InvalidEvidence(f"{path} holds no record; give at least one.")
    ids = _ids(frame, path)
    blank = [ids[i] for i, text in enumerate(frame["text"]) if not isinstance(text, str) or not text]
    if blank:
        raise InvalidEvidence(f"{path} has no text for {len(blank)} ids ({name_some(blank)}); fill or remove them.")
    texts = tuple(frame["text"])
    refuse_repeats(ids, texts, str(path))
    labels = None
    if "label" in frame:
        bad = [ids[i] for i, v in enumerate(frame["label"]) if not _is_class(v)]
        if bad:
            raise InvalidEvidence(f"{path} has no class number in label for {len(bad)} ids ({name_some(bad)}).")
        labels = tuple(int(float(v)) for v in frame["label"])
    return TextRecords(ids, texts, labels)


def refuse_repeats(ids: Sequence[str], contents: Sequence[object], where: str) -> None:
    """Refuse records of equal content under different ids."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, content in zip(ids, contents, strict=True):
        groups[content].append(name)
    same = [group for group in groups.values() if len(group) > 1]
    if same:
        raise InvalidEvidence(
            f"{where} holds {len(same)} records under more than one id (first: {name_some(same[0])}); deduplication "
            "would lose all but one, so keep one id each."
        )


def tokenize_records(tokenizer: Any, records: TextRecords, *, max_length: int | None, causal: bool) -> CanarySet:
    """Whole records as token ids, scored on every token but the first (causal) or on the label.

    Raises
    ------
    InvalidEvidence
        A record is longer than ``max_length`` and would be truncated, is too short to score, or equals another one
        once tokenised; each by id.
    """
    if not causal and records.labels is None:
        raise InvalidEvidence(
            "a classifier is attacked through its labels and the records have no column label; add it."
        )
    rows = [[int(t) for t in tokenizer(text, truncation=False)["input_ids"]] for text in records.texts]
    if max_length is not None:
        integer_at_least(1, max_length=max_length)
        long = [name for name, row in zip(records.ids, rows, strict=True) if len(row) > max_length]
        if long:
            raise InvalidEvidence(
                f"{len(long)} records are longer than max_length={max_length} tokens and would be truncated "
                f"({name_some(long)}); a truncated record was never trained on, so remove them or raise max_length."
            )
    shortest = 2 if causal else 1
    short = [name for name, row in zip(records.ids, rows, strict=True) if len(row) < shortest]
    if short:
        raise InvalidEvidence(
            f"{len(short)} records have fewer than {shortest} tokens ({name_some(short)}) and nothing to score; "
            "remove them."
        )
    refuse_repeats(records.ids, [tuple(row) for row in rows], "the tokenised file")
    scored = [range(1, len(row)) if causal else () for row in rows]
    labels = None if causal else records.labels
    return from_rows(records.texts, rows, scored, kind="records", params={}, labels=labels)


def holds_secret(path: str | os.PathLike[str]) -> bool:
    """Whether this is a secret canary file, whose token ids need no tokenizer."""
    return Path(path).suffix == ".parquet" and is_secret(path)


def load_canaries(
    path: str | os.PathLike[str], tokenizer: Any, *, max_length: int | None, causal: bool
) -> tuple[CanarySet, tuple[str, ...]]:
    """Canaries and ids from the secret file (columns of coins unread), or from a CSV or Parquet file of texts."""
    if holds_secret(path):
        canaries, ids = read_open(path)
        if causal != (canaries.labels is None):
            raise InvalidEvidence(
                f"{path} holds {canaries.kind} canaries, which a {'causal' if causal else 'classification'} model "
                "cannot be scored on; give the model that was trained with them."
            )
        long = [name for name, n in zip(ids, canaries.lengths, strict=True) if max_length and n > max_length]
        if long:
            raise InvalidEvidence(
                f"{len(long)} canaries are longer than max_length={max_length} tokens ({name_some(long)}); this is "
                "not the model that was trained with them, or they were truncated."
            )
        return canaries, ids
    records = read_records(path)
    return tokenize_records(tokenizer, records, max_length=max_length, causal=causal), records.ids


def read_values(path: str | os.PathLike[str], column: str) -> dict[str, float]:
    """Finite numbers by id, from columns ``id`` and ``column`` of a CSV or Parquet file."""
    columns = _columns(path)
    missing = [name for name in ("id", column) if name not in columns]
    if missing:
        raise InvalidEvidence(
            f"{path} has no column {' and '.join(missing)} (it has {name_some(columns, 12)}); add it."
        )
    frame = _load(path, ["id", column])
    ids = _ids(frame, path)
    values = {}
    bad = []
    for name, value in zip(ids, frame[column], strict=True):
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            values[name] = float("nan")
        if not np.isfinite(values[name]):
            bad.append(name)
    if bad:
        raise InvalidEvidence(
            f"{path} has no finite {column} for {len(bad)} ids ({name_some(bad)}); remove or mend them."
        )
    return values


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The unique ids of a CSV or Parquet file's column ``id``."""
    if "id" not in _columns(path):
        raise InvalidEvidence(f"{path} has no column id; add it.")
    return _ids(_load(path, ["id"]), path)


def join(ids: Sequence[str], values: dict[str, float], where: str) -> FloatArray:
    """Values in the order of ids; every id must occur on both sides."""
    lost, unknown = [i for i in ids if i not in values], sorted(set(values) - set(ids))
    if lost or unknown:
        raise InvalidEvidence(
            f"{where} cannot be joined: {len(lost)} ids are missing from it ({name_some(lost) or 'none'}) and "
            f"{len(unknown)} are unknown ({name_some(unknown) or 'none'}); both files must hold the same ids."
        )
    return np.array([values[i] for i in ids])


def write_scores(path: str | os.PathLike[str], ids: Sequence[str], scores: FloatArray, attack: str) -> None:
    """Write columns ``id``, ``score``, ``attack``, ordered by id, atomically; CSV or Parquet by the suffix."""
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise InvalidValue(f"out={str(target)!r} must end in .csv or .parquet.")
    import pandas as pd

    order = np.argsort(np.asarray(ids, dtype=object))  # file order must not tell the canaries' order
    frame = pd.DataFrame({"id": [ids[i] for i in order], "score": scores[order], "attack": attack})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            if target.suffix == ".csv":
                file.write(frame.to_csv(index=False).encode("utf-8"))
            else:
                frame.to_parquet(file, index=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _ids(frame: Any, path: object) -> tuple[str, ...]:
    empty = int(frame["id"].isna().sum()) + sum(str(i) == "" for i in frame["id"])
    if empty:
        raise InvalidEvidence(f"{path} has {empty} rows without an id; every record needs its own.")
    ids = tuple(str(i) for i in frame["id"])
    counts: dict[str, int] = defaultdict(int)
    for name in ids:
        counts[name] += 1
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise InvalidEvidence(f"{path} repeats {len(repeated)} ids ({name_some(repeated)}); ids must be unique.")
    return ids


def _is_class(value: object) -> bool:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return number >= 0 and number == int(number)


def _columns(path: str | os.PathLike[str]) -> list[str]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InvalidValue(f"{path} must end in .csv or .parquet.")
    try:
        if suffix == ".parquet":
            return list(pq.read_schema(path).names)
        return list(pd.read_csv(path, nrows=0).columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InvalidEvidence(f"{path} cannot be read ({str(error).splitlines()[0]}); check the path.") from error


def _load(path: str | os.PathLike[str], columns: list[str]) -> Any:
    import pandas as pd

    try:
        if Path(path).suffix == ".parquet":
            return pd.read_parquet(path, columns=columns)
        # Ids stay text ("007"), and "nan" or "" in a text column is what was written there.
        return pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)[columns]
    except (OSError, ValueError) as error:
        raise InvalidEvidence(f"{path} cannot be read ({str(error).splitlines()[0]}); check the file.") from error
