"""No bound is formatted with a rounding that may take it to the wrong side."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

FOLDERS = ("dpaudit", "trainers", "attacks", "reports")
BOUND = re.compile(
    r"^p$|epsilon|upper|lower|ceiling|power|accounted|tested|p_value|pvalue|_mu\b|\bmu\b|noise_multiplier"
)
ROUNDED = re.compile(r"[.,]?\.?\d*[gfe%]")
"""A specification that rounds to the nearest; ``:g`` does too, at six digits."""
HARMLESS = {"1 - value / lower", "value / lower", "value / upper"}
"""Ratios that compare two answers."""


def sources() -> list[Path]:
    return [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def rounded_bounds(path: Path) -> Iterator[str]:
    """Names that look like bounds and are formatted to the nearest."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FormattedValue) or not isinstance(node.format_spec, ast.JoinedStr):
            continue
        spec = "".join(str(p.value) for p in node.format_spec.values if isinstance(p, ast.Constant))
        value = ast.unparse(node.value)
        if ROUNDED.fullmatch(spec) and BOUND.search(value) and value not in HARMLESS:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {{{value}:{spec}}}"


def test_bounds_are_printed_through_the_rounding_of_their_direction() -> None:
    assert [line for path in sources() for line in rounded_bounds(path)] == []
