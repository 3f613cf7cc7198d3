"""Text of others as it may be shown: no character that moves the cursor, hides, or turns the direction of writing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# Cc control, Cf invisible formatting (direction marks, joiners), Cs surrogates, Zl and Zp separators of lines and
# paragraphs; Cn (unassigned) and Co (private use) have no agreed shape.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def printable(text: str, *, keep: str = "") -> str:
    r"""Text in which every character without a shape of its own is spelt as an escape.

    Parameters
    ----------
    text : str
        Text that somebody else wrote.
    keep : str, default=""
        Characters that stay as they are, such as a newline in text of several lines.

    Examples
    --------
    >>> print(printable("model\n= signature \x1b[8m"))
    model\n= signature \x1b[8m
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _hidden(c) else _escape(c) for c in text)


def _hidden(character: str) -> bool:
    return not character.isprintable() and (character.isascii() or unicodedata.category(character) in _HIDDEN)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def table(rows: Iterable[Iterable[str]]) -> str:
    """Align columns of text with two spaces; a cell stays on its line whatever it holds."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
