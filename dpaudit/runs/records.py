"""The records of a run: private ones to train on and public ones to evaluate on, from files of any kind.

Class labels are numbered once, for private and public records alike. The classes are declared in the configuration or
derived from the public records: the released head has one output for each, so they may not follow private labels.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue, PrivacyRefusal
from dpaudit.privacy.validate import name_some
from dpaudit.runs.config import Config, Data
from dpaudit.runs.sources import resolve
from dpaudit.storage.commitment import sha256_bytes, sha256_file
from dpaudit.storage.readers import read_bytes
from dpaudit.storage.tables import RECORDS, Table, format_of, label_text, load_table
from dpaudit.storage.text import read_text, text_lines

PROMPT_END = "\x1f"
"""Between a prompt and its text, which together are the record (``data.prompt_columns``)."""
_NO_NAMES = frozenset({"none", "nan", "null", "na", "n/a", "<na>"})
"""Names that a missing cell takes when a table passes through another program; declared, they are plain classes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """Texts with optional class numbers, in file order.

    Attributes
    ----------
    classes : tuple of str or None
        Names of the classes, in the order of their numbers.
    units : tuple of str or None
        Name of each record's unit of privacy, where a column tells it.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: list[int]) -> Records:
        """The records at these positions."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        units = None if self.units is None else tuple(self.units[i] for i in indices)
        return Records(tuple(self.texts[i] for i in indices), labels, self.classes, units)


@dataclasses.dataclass(frozen=True, slots=True)
class RawRecords:
    """Texts with the labels as written (blanks and ``1.0`` for ``1`` aside), and where each stands in its file."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    places: tuple[str, ...]
    units: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: list[int]) -> RawRecords:
        """The records at these positions."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        places = tuple(self.places[i] for i in indices)
        units = None if self.units is None else tuple(self.units[i] for i in indices)
        return RawRecords(self.name, tuple(self.texts[i] for i in indices), labels, places, units)

    def numbered(self, classes: tuple[str, ...] | None) -> Records:
        """The labels as positions among the classes; one that is not among them is refused with its place."""
        if self.labels is None or classes is None:
            return Records(self.texts, units=self.units)
        number = {name: i for i, name in enumerate(classes)}
        for label, place in zip(self.labels, self.places, strict=True):
            if label not in number:
                raise InvalidValue(_unknown(self.name, place, label, classes))
        return Records(self.texts, tuple(number[label] for label in self.labels), classes, self.units)


def read_records(data: Data, path: Path, *, needs_labels: bool) -> RawRecords:
    """Read all records of a file: a line, or a row of a table, each.

    Raises
    ------
    InvalidValue
        For an empty text, a missing label, a wrong digest or a file that can be read in two ways; in one sentence.
    """
    kind = format_of(path)
    if data.sha256:
        if kind == "dataset":
            raise InvalidValue(f"data.sha256 is the digest of one file and {path.name} is a folder; leave it out.")
        if (digest := sha256_file(path)) != data.sha256:
            raise InvalidValue(
                f"data file {path.name} has SHA-256 {digest} and the configuration expects {data.sha256}."
            )
    if kind is None:
        raise InvalidValue(
            f"data file {path.name} has an ending that is not known; give .txt (one record a line), .csv, .jsonl or"
            " .parquet, plain or as .gz or .xz, or a folder written by save_to_disk."
        )
    try:
        return _lines(data, path, needs_labels) if kind == "text" else _rows(data, path, needs_labels)
    except InvalidEvidence as error:
        missing = "has no column" in str(error)
        column = " (data.text_column, data.label_column and data.unit_column name others)" if missing else ""
        raise InvalidValue(f"data file {str(error).rstrip('.')}{column}.") from None


def private_and_public(config: Config, base: Path) -> tuple[Records, Records]:
    """Private training records and public evaluation records.

    The public part is either a file of its own or a share of the file chosen by the public seed, which the
    configuration thereby declares public.
    """
    data, needs_labels = config.data, config.model.task != "causal-lm"
    path = resolve(data.path, base, key="data.path")
    private = read_records(data, path, needs_labels=needs_labels)
    if data.heldout is not None:
        other = resolve(data.heldout, base, key="data.heldout")
        _refuse_same(path, other)
        public = read_records(
            data.model_copy(update={"sha256": None, "unit_column": None}), other, needs_labels=needs_labels
        )
    else:
        private, public = split_by_text(private, data.heldout_fraction, config.run.seed)
    private = bounded(limited(private, data, config.run.seed), config)
    classes = class_names(data, public) if needs_labels else None
    return private.numbered(classes), public.numbered(classes)


def refuse_empty(data: Data, private: Records, public: Records) -> None:
    """Refuse a run without public records to measure on, or without private ones to train on, before it writes."""
    if not len(public):
        had = "is missing and" if data.heldout is None else f"={data.heldout!r} with"
        raise InvalidValue(
            f"data.heldout {had} data.heldout_fraction={data.heldout_fraction:g} leaves no public record to evaluate"
            " on; name a file of public records in data.heldout, or raise data.heldout_fraction (the share of"
            " data.path that is declared public)."
        )
    if not len(private):
        raise InvalidValue(
            f"data.heldout_fraction={data.heldout_fraction:g} makes every record of data.path public and leaves none to"
            " train on; lower it."
        )


def classes_of(config: Config, base: Path) -> tuple[str, ...] | None:
    """Names of the classes of a configuration's task, None for language modelling; private labels play no part."""
    if config.model.task == "causal-lm":
        return None
    return declared_classes(config.data.labels) if config.data.labels else private_and_public(config, base)[1].classes


def _refuse_same(private: Path, public: Path) -> None:
    """Refuse the private file as its own public one: the exact quality on it would be published."""
    same = private.resolve() == public.resolve()
    if not same and private.is_file() and public.is_file():
        same = sha256_file(private) == sha256_file(public)
    if same:
        raise PrivacyRefusal(
            f"data.heldout={public.name} holds the private records of data.path; give public records, or set"
            " data.heldout_fraction to declare a share of them public."
        )


def class_names(data: Data, public: RawRecords) -> tuple[str, ...]:
    """Names of the classes: those of ``data.labels``, or of the public records in order; never of private ones."""
    if data.labels is not None:
        return declared_classes(data.labels)
    if not public.labels:
        raise InvalidValue(
            "data.labels is missing and there are no public records to take the classes from; declare them, as in"
            ' labels = ["ham", "spam"]: the released model has one output for each, so they may not follow private'
            " labels."
        )
    found = sorted(set(public.labels))
    if doubtful := [name for name in found if name.casefold() in _NO_NAMES]:
        raise InvalidValue(
            f"{public.name} has the label {doubtful[0]!r}, as missing cells are written; fill them, or declare"
            " data.labels."
        )
    folded: dict[str, str] = {}
    for name in found:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise InvalidValue(
                f"{public.name} has the labels {other!r} and {name!r}, which differ in case only; write one of them, or"
                " declare data.labels."
            )
    if all(name.removeprefix("-").isdecimal() for name in found):
        found.sort(key=int)
    if len(found) < 2:
        raise InvalidValue(
            f"{public.name} has only the label {found[0]!r} among its public records; classification needs two, so"
            " declare data.labels or give other public records."
        )
    return tuple(found)


def declared_classes(labels: Sequence[str | int]) -> tuple[str, ...]:
    """Names of ``data.labels`` in their order; missing and repeated ones are refused."""
    names = [label_text(label) for label in labels]
    known = tuple(name for name in names if name is not None)
    if len(known) != len(names) or len(set(known)) != len(known) or len(known) < 2:
        raise InvalidValue(f"data.labels={list(labels)} must name two or more different classes; mend the list.")
    return known


def limited(records: RawRecords, data: Data, seed: int) -> RawRecords:
    """At most ``data.limit`` records, in file order: the first, or those of the smallest digests of seed and text."""
    if data.limit is None or len(records) <= data.limit:
        return records
    if limit_rule(data) == "first":
        return records.take(list(range(data.limit)))
    marks = [_mark(seed, text) for text in records.texts]
    return records.take(sorted(sorted(range(len(marks)), key=marks.__getitem__)[: data.limit]))


def bounded(records: RawRecords, config: Config) -> RawRecords:
    """The records that stay when no unit has more than the claim says; unchanged where no column tells the units.

    Which records of a unit stay follows from their own texts and the public seed, so that no unit moves another's.

    Raises
    ------
    InvalidValue
        When a unit has more, and the rule is to refuse.
    """
    if records.units is None or config.privacy.sampling_unit == "unit":
        return records
    from dpaudit.trainers import bound_records

    kept = bound_records(
        records.units,
        config.claim.max_records_per_unit,
        rule=config.data.max_records_rule,
        unit=config.claim.unit,
        marks=[_mark(config.run.seed, text) for text in records.texts],
    )
    return records.take(kept.tolist())


def limit_rule(data: Data) -> str:
    """How ``data.limit`` chooses: as declared, else the first rows, or at random where a share is public."""
    return data.limit_by or ("first" if data.heldout is not None else "random")


def limit_of(data: Data) -> dict[str, int | str]:
    """How the records were chosen, for the certificate; empty where the whole file is used."""
    return {} if data.limit is None else {"limit": data.limit, "limit_by": limit_rule(data)}


def split_by_text(whole: RawRecords, fraction: float, seed: int) -> tuple[RawRecords, RawRecords]:
    """Private and public records of one file: a record is public where the digest of seed and text lies below a share.

    Where a column tells units of privacy, the digest of a unit's name decides for all its records. The side of a record
    depends on that record, or its unit, alone: were the shares drawn over positions or counts, adding one private
    record would move others, and the public evaluation would tell.

    Parameters
    ----------
    whole : RawRecords
        All records of the file.
    fraction : float
        Expected share of distinct texts that are public, in [0, 1).
    seed : int
        Public seed.
    """
    marks = [_mark(seed, key) for key in (whole.texts if whole.units is None else whole.units)]
    private = [i for i, mark in enumerate(marks) if mark >= fraction]
    return whole.take(private), whole.take([i for i, mark in enumerate(marks) if mark < fraction])


def _mark(seed: int, text: str) -> float:
    return int(sha256_bytes(f"{seed}/{text}".encode())[:13], 16) / 16**13


def _lines(data: Data, path: Path, needs_labels: bool) -> RawRecords:
    if needs_labels:
        raise InvalidValue(
            f"data file {path.name} has no labels; classification needs a table (.csv, .jsonl, .parquet) with"
            " the columns text and label."
        )
    if data.source is not None:
        raise InvalidValue(f"data.source chooses rows of a table and {path.name} is plain text; leave it out.")
    if data.unit_column is not None:
        raise InvalidValue(
            f"data.unit_column={data.unit_column!r} names a column of a table and {path.name} is plain text; give a"
            " table with a column of authors, or leave it out."
        )
    text = read_text(read_bytes(path, limit=RECORDS.bytes), name=path.name, limit=2 * RECORDS.bytes)
    lines = text_lines(text, name=path.name)
    if not lines:
        raise InvalidValue(f"data file {path.name} is empty; give one record a line.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InvalidValue(f"data file {path.name}, line {number} is an empty text; remove it or fill it.")
    return RawRecords(f"data file {path.name}", tuple(lines), None, tuple(f"line {i + 1}" for i in range(len(lines))))


def _rows(data: Data, path: Path, needs_labels: bool) -> RawRecords:
    columns = [data.text_column]
    columns += data.prompt_columns
    columns += [data.label_column] if needs_labels else []
    columns += [data.source_column] if data.source is not None else []
    columns += [data.unit_column] if data.unit_column is not None else []
    table = load_table(path, columns=columns, limits=RECORDS)
    if data.source is not None:
        cells = table.columns[data.source_column]
        table = table.take([i for i, cell in enumerate(cells) if label_text(cell) == label_text(data.source)])
    if not len(table):
        chosen = "" if data.source is None else f" with {data.source_column}={data.source!r}; check data.source"
        raise InvalidValue(f"data file {path.name} has no rows{chosen}.")
    texts = _texts(table, data.text_column)
    if data.prompt_columns:
        texts = tuple(f"{p}{PROMPT_END}{t}" for p, t in zip(_prompts(table, data.prompt_columns), texts, strict=True))
    labels = _labels(table, data.label_column) if needs_labels else None
    places = tuple(table.place(i) for i in range(len(table)))
    units = None if data.unit_column is None else _units(table, data.unit_column)
    return RawRecords(f"data file {path.name}", texts, labels, places, units)


def _texts(table: Table, column: str) -> tuple[str, ...]:
    cells = table.columns[column]
    for i, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise InvalidValue(f"data file {table.name}, {table.place(i)} is an empty text; remove it or fill it.")
        if PROMPT_END in str(cell):
            raise InvalidValue(
                f"data file {table.name}, {table.place(i)} holds the control character U+001F; remove it from the text."
            )
        if not isinstance(cell, str):
            raise InvalidValue(
                f"data file {table.name}, {table.place(i)} holds {str(cell)[:40]} in {column!r}, which is no text;"
                " write text there, or name another column."
            )
    return tuple(cells)


def _prompts(table: Table, columns: Sequence[str]) -> list[str]:
    """What stands before each text: the one column, or several as name and value; a missing cell is left out."""
    prompts = []
    for i in range(len(table)):
        cells = {name: table.columns[name][i] for name in columns}
        told = {name: str(cell).strip() for name, cell in cells.items() if cell is not None and str(cell).strip()}
        several = " | ".join(f"{name} : {value}" for name, value in told.items())
        prompts.append("".join(told.values()) if len(columns) == 1 else several)
    return prompts


def _labels(table: Table, column: str) -> tuple[str, ...]:
    names = []
    for i, cell in enumerate(table.columns[column]):
        name = label_text(cell)
        if name is None:
            raise InvalidValue(
                f"data file {table.name}, {table.place(i)} has no label in {column!r}; fill it or remove the record."
            )
        names.append(name)
    return tuple(names)


def _units(table: Table, column: str) -> tuple[str, ...]:
    """Names of the units, alike where they differ in case or blanks."""
    from dpaudit.trainers.units import unit_name

    names = []
    for i, cell in enumerate(table.columns[column]):
        name = label_text(cell)
        if name is None:
            raise InvalidValue(
                f"data file {table.name}, {table.place(i)} names no unit of privacy in {column!r}; fill it, with a name"
                " of its own where the record belongs to nobody else."
            )
        names.append(unit_name(name))
    return tuple(names)


def _unknown(name: str, place: str, label: str, classes: tuple[str, ...]) -> str:
    near = [c for c in classes if c.casefold() == label.casefold()] or difflib.get_close_matches(label, classes, 1)
    hint = f"write {near[0]!r}" if near else "correct it, or declare every class in data.labels"
    return f"{name}, {place} has the label {label[:40]!r}, which is none of the classes {name_some(classes)}; {hint}."
