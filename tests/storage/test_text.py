"""Text of others: encodings are named, archives bounded, and lines end at newlines only."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit import InvalidEvidence
from dpaudit.storage.text import read_text, text_lines

NOT_LINE_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def read(data: bytes, limit: int = 10**6) -> str:
    return read_text(data, name="a.txt", limit=limit)


def lines(data: bytes) -> list[str]:
    return text_lines(read(data), name="a.txt")


@pytest.mark.parametrize("inside", NOT_LINE_ENDS, ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_a_line_ends_at_a_newline_only(inside: str, end: str) -> None:
    first = f"A letter to my aunt.{inside}She lives far away."
    assert lines(f"{first}{end}Second record.{end}".encode()) == [first, "Second record."]


@given(st.lists(TEXT.filter(lambda t: "\n" not in t and not t.endswith("\r")), min_size=2, max_size=5))
def test_lines_round_trip(rows: list[str]) -> None:
    rows[0] = "x" + rows[0]  # a byte-order mark at the very start belongs to the encoding
    for end in ("\n", "\r\n"):
        assert lines((end.join(rows) + end).encode()) == rows


def test_last_line_needs_no_newline_and_an_empty_file_has_no_line() -> None:
    assert lines(b"a\nb") == ["a", "b"] and lines(b"") == [] and lines(b"\n") == [""] and lines(b"a\r") == ["a"]


def test_carriage_returns_alone_are_refused_rather_than_read_as_one_record() -> None:
    with pytest.raises(InvalidEvidence, match="carriage returns and holds no newline"):
        lines(b"First.\rSecond.\rThird.")


def test_byte_order_mark_is_no_text() -> None:
    assert lines(codecs.BOM_UTF8 + b"First.\nSecond.\n") == ["First.", "Second."]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "text".encode("utf-16-be"), "is UTF-16 text"),
        ("text".encode("utf-32"), "is UTF-32 text"),
        ("text".encode("utf-16-le"), "NUL character on line 1"),
        ("one\ntwo é\n".encode("cp1252"), "byte 0xe9 on line 2.*iconv"),
        (b"one\ntw\0o\n", "NUL character on line 2"),
        (bz2.compress(b"text"), "bzip2"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "Zstandard"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel"),
        (b"PAR1\xff\x00PAR1", "Parquet file; let its name end in .parquet"),
        (gzip.compress(b"text" * 100, mtime=0)[:-9], "not a whole gzip file"),
        (lzma.compress(b"text" * 100)[:-9], "not a whole xz file"),
    ],
)
def test_what_is_no_utf8_text_is_named_with_its_remedy(data: bytes, words: str) -> None:
    with pytest.raises(InvalidEvidence, match=words) as raised:
        read(data)
    assert "\n" not in str(raised.value)


def test_a_spreadsheet_is_named() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(InvalidEvidence, match="Excel file; save the table in it as CSV"):
        read(file.getvalue())


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.XZ"])
def test_an_archive_in_name_only_is_refused(name: str) -> None:
    with pytest.raises(InvalidEvidence, match="is not a whole"):
        read_text(b"plain text", name=name, limit=100)


@pytest.mark.parametrize("start", ["BZh", "PAR1", "PK"])
def test_plain_text_that_begins_like_an_archive_is_text(start: str) -> None:
    assert read(f"{start} is how this record begins\n".encode()).startswith(start)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_archives_are_read_and_bounded(compress: object) -> None:
    assert lines(compress("naïve\nÄ\n".encode())) == ["naïve", "Ä"]  # type: ignore[operator]
    with pytest.raises(InvalidEvidence, match="unpacks to more than 1000 bytes"):
        read(compress(bytes(10**6)), limit=1000)  # type: ignore[operator]
