"""The one CSV reader, for scores, canaries, references, coins and training data alike.

Comma-separated, UTF-8, one header line of unique names, and in every row as many cells as the header has. A file that
could be read in two ways (another delimiter, an unquoted comma, an open quote, a lone carriage return) is refused:
a guess would join scores to the wrong coins, or make several records of one.
"""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence

_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def parse_csv(text: str, *, name: str, rows: int, cell: int) -> tuple[dict[str, list[Any]], array[int]]:
    """Columns of a CSV text and the line on which each row ends.

    Parameters
    ----------
    rows, cell : int
        Limits on the rows and on the characters of a cell.

    Returns
    -------
    columns : dict of str to list of str
        In the order of the header, cells as written.
    lines : array of int
        Line number of each row; the header is line 1.

    Raises
    ------
    InvalidEvidence
        Names the line and what is wrong with it.
    """
    # Only a file without a single newline may end its lines with carriage returns: there nothing else can.
    end = "\n" if "\n" in text else "\r"
    with _cells_up_to(cell):
        reader = csv.reader(io.StringIO(text, newline=end), strict=True)
        try:
            header = next(reader, [])
            _check_header(header, name)
            body, lines = _plain_rows(text, end, header, rows) or _rows(reader, header, name, rows)
        except csv.Error as error:
            raise InvalidEvidence(f"{name} line {reader.line_num}: {_explain(str(error), cell)}.") from None
    return {column: list(map(itemgetter(i), body)) for i, column in enumerate(header)}, lines


def _plain_rows(text: str, end: str, header: list[str], limit: int) -> tuple[list[list[str]], array[int]] | None:
    """Rows of a well-formed file with one line a row (fast); None where :func:`_rows` has to look and name the fault.

    Much faster for millions of rows, since no row passes through this program by itself.
    """
    if '"' in text or len(header) < 2:
        return None
    reader = csv.reader(io.StringIO(text, newline=end), strict=True)
    try:
        next(reader)
        body = list(itertools.islice(reader, limit + 1))
    except csv.Error:
        return None
    plain = set(map(len, body)) == {len(header)} and reader.line_num == len(body) + 1 and len(body) <= limit
    if not plain or header in body or not all(map(itemgetter(0), body)):
        return None
    return body, array("q", range(2, len(body) + 2))


def _rows(reader: Any, header: list[str], name: str, limit: int) -> tuple[list[list[str]], array[int]]:
    body: list[list[str]] = []
    lines = array("q")
    blank = 0
    for row in reader:
        if not row:
            blank = blank or reader.line_num
            continue
        if blank and len(header) == 1:
            raise InvalidEvidence(
                f'{name} line {blank} is blank between rows; remove it, or write "" for a cell without text.'
            )
        if len(row) != len(header):
            raise InvalidEvidence(_uneven(row, header, name, reader.line_num))
        if len(row) > 1 and row == header:
            raise InvalidEvidence(f"{name} line {reader.line_num} repeats the header; remove that line.")
        if len(row) > 1 and not any(row):
            raise InvalidEvidence(f"{name} line {reader.line_num} holds empty cells only; remove that line.")
        if len(body) >= limit:
            raise InvalidEvidence(f"{name} has more than {limit} rows; split the file.")
        body.append(row)
        lines.append(reader.line_num)
    return body, lines


def _check_header(header: list[str], name: str) -> None:
    if not header:
        raise InvalidEvidence(f"{name} is empty; it needs a header line and a row for each record.")
    if not any(header):
        raise InvalidEvidence(f"{name} needs a header line with unique column names; add one.")
    if len(header) == 1 or (len(header) == 2 and header[0].lower() == "sep="):
        for delimiter, what in _OTHER_DELIMITERS.items():
            if delimiter in header[0]:
                raise InvalidEvidence(
                    f"{name} separates its columns with {what}; save it with commas between cells and a point in"
                    " decimal numbers."
                )
    if header[0].lower().startswith("sep="):
        raise InvalidEvidence(f"{name} begins with a line {header[0]!r}, which only Excel reads; remove that line.")
    if twice := [column for i, column in enumerate(header) if column in header[:i]]:
        raise InvalidEvidence(f"{name} has two columns named {twice[0]!r}; give each column its own name.")


def _uneven(row: list[str], header: list[str], name: str, line: int) -> str:
    hint = (
        "put quotes around a cell that holds a comma"
        if len(row) > len(header)
        else "write every cell, also the empty ones"
    )
    return f"{name} line {line} has {len(row)} cells and the header has {len(header)}; {hint}."


def _explain(reason: str, cell: int) -> str:
    if "field limit" in reason:
        return f"a cell has more than {cell} characters, or a quote is not closed; mend it"
    if "new-line character" in reason:
        return "a carriage return stands outside quotes and is not a line end here; quote the cell or remove it"
    if "unexpected end" in reason:
        return "a quote is not closed; close it"
    if "expected after" in reason:
        return 'text follows a closing quote; double the quotes inside a quoted cell, as in ""'
    return f"is not valid CSV ({reason}); mend it"


@contextmanager
def _cells_up_to(limit: int) -> Iterator[None]:
    """Raise the csv module's limit on the length of a cell within the context; the limit is global to the process."""
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)
