"""Troubleshooting quotes sentences that the code still says."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests import ROOT

PAGE = ROOT / "docs" / "howto" / "troubleshooting.md"
OF_OTHERS = {"field required", "extra inputs are not permitted"}
"""Beginnings of pydantic's messages, which tests of the configuration hold."""


def quotes() -> list[str]:
    """Phrases in quotation marks in the first column of each table."""
    rows = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [quote for row in rows for quote in re.findall(r'"([^"]+)"', row)]


@functools.cache
def said() -> str:
    """Every text of the code, one a line; where a value is filled in stands "…"."""

    def texts(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value

    files = (path for room in ("dpaudit", "trainers", "attacks") for path in (ROOT / room).rglob("*.py"))
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return "\n".join(text.replace("\n", " ") for tree in trees for text in texts(tree)).casefold()


def test_the_page_quotes_sentences() -> None:
    assert len(quotes()) > 25


@pytest.mark.parametrize("quote", sorted(set(quotes()) - OF_OTHERS))
def test_a_quoted_sentence_is_still_said(quote: str) -> None:
    for part in quote.casefold().split("…"):
        assert part.strip() in said(), part
