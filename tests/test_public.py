"""The public names: pinned by room, all there, and the only ones that readers are shown."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re

import pytest

from tests import DATA, ROOT

PINNED: dict[str, list[str]] = json.loads((DATA / "public_names.json").read_text())
"""Public names of every package. Adding or removing one is a decision: change the file with it."""


@pytest.mark.parametrize("package", PINNED)
def test_public_names_are_listed_once_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PINNED[package]
    assert len(module.__all__) == len(set(module.__all__))
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PINNED)
def test_nothing_else_looks_public(package: str) -> None:
    module = importlib.import_module(package)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("dpaudit.")
    }
    assert own <= set(module.__all__), own - set(module.__all__)


@pytest.mark.parametrize("package", PINNED)
def test_no_module_takes_the_place_of_a_public_name(package: str) -> None:
    # Loading a module makes it an attribute of its package, which a name that is loaded late would then never replace.
    same = [name for name in PINNED[package] if importlib.util.find_spec(f"{package}.{name}") is not None]
    for name in same:
        importlib.import_module(f"{package}.{name}")
    assert not [name for name in same if inspect.ismodule(getattr(importlib.import_module(package), name))]


def shown() -> list[tuple[str, str, str]]:
    """Every import of ours in README, docs and examples: file, package, name."""
    found = []
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "examples").rglob("*.py")]
    files += [p for p in (ROOT / "examples").rglob("*.py")]
    for path in files:
        for package, names in re.findall(
            r"^\s*from (dpaudit[\w.]*) import (\([^)]*\)|[^\n(]+)", path.read_text(), re.M
        ):
            for name in re.findall(r"\w+", re.sub(r"#.*| as \w+", "", names)):
                found.append((str(path.relative_to(ROOT)), package, name))
    return found


def test_readers_are_shown_public_names_only() -> None:
    hidden = [
        entry
        for entry in shown()
        if entry[1] not in PINNED
        or (entry[2] not in importlib.import_module(entry[1]).__all__ and f"{entry[1]}.{entry[2]}" not in PINNED)
    ]
    assert not hidden
