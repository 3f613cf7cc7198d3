"""Every package folder is listed by hand in pyproject.toml, and so is every kind of data file beside the code."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOMS = {
    "dpaudit": "dpaudit",
    "attacks": "dpaudit.attacks",
    "trainers": "dpaudit.trainers",
    "reports": "dpaudit.reports",
}


def folders() -> list[tuple[Path, str]]:
    """Every folder of the product with its import name; links to the three on top are not followed twice."""
    found = []
    for top, name in ROOMS.items():
        for init in (ROOT / top).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / top)
            if top == "dpaudit" and inner.parts and inner.parts[0] in ROOMS:
                continue
            found.append((init.parent, ".".join([name, *inner.parts])))
    return found


def test_every_package_is_listed() -> None:
    assert sorted(name for _, name in folders()) == sorted(SETUPTOOLS["packages"])


def test_every_data_file_is_packed() -> None:
    names = dict((name, path) for path, name in folders())
    packed = SETUPTOOLS["package-data"]
    for path, name in folders():
        for file in (p for p in path.rglob("*") if p.is_file()):
            if file.suffix in (".py", ".pyc", ".md") or file.parent.joinpath("__init__.py").exists() != (
                file.parent == path
            ):
                continue
            owner = next(n for n in sorted(packed, key=len, reverse=True) if name == n or name.startswith(f"{n}."))
            inside = file.relative_to(names[owner]).as_posix()
            assert any(fnmatch(inside, pattern) for pattern in packed[owner]), f"{owner}: {inside}"


def test_commands_that_pages_tell_to_install_name_existing_extras() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for named in re.findall(r"dpaudit\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras, f"{page.name}: {named}"
