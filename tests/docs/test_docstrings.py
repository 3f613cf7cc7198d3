"""Docstrings of public names: every argument stands in them, and so does what is returned."""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests import DATA

PUBLIC = json.loads((DATA / "public_names.json").read_text())
NAMES = [f"{package}.{name}" for package, names in PUBLIC.items() for name in names]


def named(doc: str, title: str) -> set[str]:
    """Names on the left of the colons in one section of a docstring."""
    section = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", doc, re.M | re.S)
    heads = re.findall(r"^(\S[^:\n]*)", section[1], re.M) if section else []
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def gaps(value: Any) -> Iterator[str]:
    """What a docstring leaves out: arguments, and the value that a function returns."""
    if not callable(value) or getattr(value, "_is_protocol", False):
        return
    if isinstance(value, type) and issubclass(value, (enum.Enum, BaseException)):
        return
    doc, signature = inspect.cleandoc(value.__doc__ or ""), inspect.signature(value)
    told = named(doc, "Parameters") | named(doc, "Attributes")
    yield from (name for name in signature.parameters if name not in told)
    returns = isinstance(value, type) or signature.return_annotation in (None, "None", inspect.Signature.empty)
    if not returns and not re.search(r"^(Returns|Yields)\n-+$", doc, re.M):
        yield "Returns"


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_what_is_returned_is_described(name: str) -> None:
    package, _, own = name.rpartition(".")
    assert list(gaps(getattr(importlib.import_module(package), own))) == []


def test_a_gap_is_seen() -> None:
    def function(one: int, two: int, *rest: int) -> int:
        """Something.

        Parameters
        ----------
        one : int
            The first.

        Notes
        -----
        two : int
        """
        return one + two + sum(rest)

    assert list(gaps(function)) == ["two", "rest", "Returns"]
