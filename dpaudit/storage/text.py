"""Text files that somebody else wrote: plain or compressed bytes to Unicode text and its lines.

A line ends at a newline and nowhere else. ``str.splitlines`` also splits at ten other characters (U+2028, form feed,
a lone carriage return, …), which would turn one record into several.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib

from dpaudit.privacy.errors import InvalidEvidence

_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel file; save the table in it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save the table in it as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it, or compress it with gzip or xz"),
    (b"BZh", "compressed with bzip2; unpack it, or compress it with gzip or xz"),
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (b"ARROW1\x00\x00", "an Arrow file; save it as Parquet"),
)


def read_text(data: bytes, *, name: str, limit: int) -> str:
    """Unicode text of a file's bytes: UTF-8, with or without a byte-order mark, plain or inside gzip or xz.

    Parameters
    ----------
    limit : int
        Bytes it may unpack to.

    Raises
    ------
    InvalidEvidence
        For another encoding, another kind of file, a damaged archive or a NUL character; with the remedy.
    """
    content = _unpack(data, name, limit)
    for mark, encoding in _ENCODINGS:
        if content.startswith(mark):
            raise InvalidEvidence(f"{name} is {encoding} text; save it as UTF-8.")
    for magic, kind in _FOREIGN:
        if content.startswith(magic) and not (magic.isascii() and magic.isalnum() and _decodes(content)):
            raise InvalidEvidence(f"{name} is {kind}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidEvidence(
            f"{name} is not UTF-8 text (byte 0x{content[error.start]:02x} on line {line}); save it as UTF-8, for"
            " example with: iconv -f WINDOWS-1252 -t UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidEvidence(
            f"{name} holds a NUL character on line {line}, as UTF-16 text and binary files do; save it as UTF-8 text."
        )
    return text


def text_lines(text: str, *, name: str) -> list[str]:
    r"""Lines of a text, split at newlines only; a carriage return before a newline belongs to the line end.

    >>> text_lines("one\u2028still one\r\ntwo\n", name="a.txt")
    ['one\u2028still one', 'two']
    """
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise InvalidEvidence(
            f"{name} ends its lines with carriage returns and holds no newline; save it with newlines."
        )
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _unpack(data: bytes, name: str, limit: int) -> bytes:
    """Content of a gzip or xz file, at most ``limit`` bytes of it; other bytes as they are."""
    for ending, magic in ((".gz", _GZIP), (".xz", _XZ)):
        if name.lower().endswith(ending) and not data.startswith(magic):
            raise InvalidEvidence(f"{name} is not a whole {ending} file; give the original file.")
    if not data.startswith((_GZIP, _XZ)):
        return data
    kind, held = "gzip" if data.startswith(_GZIP) else "xz", io.BytesIO(data)
    try:
        with gzip.GzipFile(fileobj=held) if kind == "gzip" else lzma.LZMAFile(held) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InvalidEvidence(f"{name} is not a whole {kind} file ({error}); give the original file.") from None
    if len(content) > limit:
        raise InvalidEvidence(f"{name} unpacks to more than {limit} bytes; split the file.")
    return content


def _decodes(content: bytes) -> bool:
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False
