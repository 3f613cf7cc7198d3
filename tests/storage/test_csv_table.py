"""The one CSV reader: it reads what was written, or refuses; it never guesses."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpaudit import InvalidEvidence
from dpaudit.storage import csv_table
from dpaudit.storage.csv_table import parse_csv

CELL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
AWKWARD = st.text(st.sampled_from(list('a,;"\r\n\t \u2028\x0c|')), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    width = draw(st.integers(1, 4))
    cell = CELL | AWKWARD
    header = draw(st.lists(cell.filter(bool), min_size=width, max_size=width, unique=True))
    return header, draw(st.lists(st.lists(cell, min_size=width, max_size=width), max_size=5))


def written(header: list[str], rows: list[list[str]], end: str, *, every: bool) -> str:
    """RFC 4180: quotes around every cell, or around those that need them."""

    def cell(text: str, alone: bool) -> str:
        quoted = every or (alone and not text) or any(mark in text for mark in ',"\r\n')
        return '"' + text.replace('"', '""') + '"' if quoted else text

    return "".join(",".join(cell(text, len(row) == 1) for text in row) + end for row in [header, *rows])


def parse(text: str) -> dict[str, list[str]]:
    return parse_csv(text, name="t.csv", rows=100, cell=1000)[0]


def as_written(header: list[str], rows: list[list[str]]) -> dict[str, list[str]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


@given(tables(), st.sampled_from(["\n", "\r\n"]))
def test_a_table_is_read_as_it_was_written(table: tuple[list[str], list[list[str]]], end: str) -> None:
    header, rows = table
    assume(len(header) > 1 or not any(mark in header[0] for mark in ";\t|"))
    assume(not header[0].lower().startswith("sep="))
    assume(all(any(row) and row != header for row in rows))
    for every in (True, False):
        assert parse(written(header, rows, end, every=every)) == as_written(header, rows)


@given(tables(), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_any_table_is_read_as_it_was_written_or_refused(
    table: tuple[list[str], list[list[str]]], end: str, every: bool
) -> None:
    header, rows = table
    try:
        found = parse(written(header, rows, end, every=every))
    except InvalidEvidence as error:
        assert "\n" not in str(error)
    else:
        assert found == as_written(header, rows)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | AWKWARD)
def test_any_text_is_a_table_of_even_rows_or_refused(text: str) -> None:
    try:
        columns, lines = parse_csv(text, name="t.csv", rows=100, cell=1000)
    except InvalidEvidence as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert {len(cells) for cells in columns.values()} == {len(lines)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a header line"),
        ("text;label\na;0\n", "separates its columns with semicolons; save it with commas"),
        ("score;member\n1,5;0\n", "semicolons.*a point in decimal numbers"),
        ("text\tlabel\na\t0\n", "with tabs"),
        ("sep=,\ntext,label\na,0\n", "'sep=', which only Excel reads"),
        ("sep=;\ntext;label\na;0\n", "which only Excel reads|semicolons"),
        ("text,label,text\na,0,b\n", "two columns named 'text'"),
        ("text,label\na,0\nthird\n", "line 3 has 1 cells and the header has 2; write every cell"),
        ("text,label\nhello, world,0\n", "line 2 has 3 cells and the header has 2; put quotes around"),
        ("text,label\na,0\n,\n", "line 3 holds empty cells only"),
        ("text,label\na,0\ntext,label\nb,1\n", "line 3 repeats the header; remove that line"),
        ('text,label\n"open,0\nb,1\n', "line 3: a quote is not closed"),
        ('text,label\n"a" b,0\n', "text follows a closing quote"),
        ("text,label\na\rb,0\n", "line 2: a carriage return stands outside quotes"),
        ("text\na\rb\n", "a carriage return stands outside quotes"),
        ("text\na\n\nb\n", 'line 3 is blank between rows; remove it, or write ""'),
        ("text\n" + "x" * 1001, "more than 1000 characters"),
        ("text\n" + "x\n" * 101, "more than 100 rows"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidEvidence, match=words):
        parse(text)


def test_rows_know_their_lines_and_trailing_blank_lines_do_no_harm() -> None:
    columns, lines = parse_csv('id,text\na,"two\nlines"\n\nb,x\n\n\n', name="t.csv", rows=9, cell=99)
    assert columns == {"id": ["a", "b"], "text": ["two\nlines", "x"]} and list(lines) == [3, 5]
    assert parse("text\na\nb\n\n\n") == {"text": ["a", "b"]}


def test_carriage_returns_end_lines_only_where_nothing_else_does() -> None:
    assert parse('id,text\ra,"x\ry"\rb,z\r') == {"id": ["a", "b"], "text": ["x\ry", "z"]}


def test_the_limit_on_cells_is_put_back() -> None:
    before = csv.field_size_limit()
    parse("text\nx\n")
    with pytest.raises(InvalidEvidence):
        parse("text\n" + "x" * 2000)
    assert csv.field_size_limit() == before


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["a,b", "1,2", "1,", ",2", ",", "", "1,2,3", "7", '"x",2', " 1,2 ", "a,b "]), max_size=6)
)
def test_the_fast_reader_answers_only_where_the_strict_one_says_the_same(lines: list[str]) -> None:
    text, header = "a,b\n" + "\n".join(lines), ["a", "b"]
    fast = csv_table._plain_rows(text, "\n", header, 4)
    if fast is None:
        return
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    next(reader)
    assert fast == csv_table._rows(reader, header, "x.csv", 4)


def test_most_files_take_the_fast_reader() -> None:
    text = "id,member,score\n" + "".join(f"c{i},{i % 2},{i / 7:.3f}\n" for i in range(100))
    assert csv_table._plain_rows(text, "\n", ["id", "member", "score"], 100) is not None
    assert csv_table._plain_rows(text, "\n", ["id", "member", "score"], 99) is None
