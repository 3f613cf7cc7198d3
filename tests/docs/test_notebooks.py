"""The notebooks run from a clean namespace, and are kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["nbformat"] == 4
    return [cell for cell in value["cells"] if cell["cell_type"] == kind]


LONG = {"certify", "examine"}  # trains and examines: tens of seconds


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else [], id=path.stem) for path in NOTEBOOKS],
)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {}
    for cell in cells(path, "code"):
        exec(compile("".join(cell["source"]), path.name, "exec"), space)
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_what_the_notebooks_say_of_their_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {}
    for cell in cells(ROOT / "examples" / "notebooks" / "audit.ipynb", "code"):
        exec("".join(cell["source"]), space)
    assert space["result"].verdict == "violated" and space["larger"].verdict == "inconclusive"


@pytest.mark.slow
def test_what_the_longer_notebooks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spaces: dict[str, dict[str, Any]] = {name: {} for name in sorted(LONG)}
    for name, space in spaces.items():
        for cell in cells(ROOT / "examples" / "notebooks" / f"{name}.ipynb", "code"):
            exec("".join(cell["source"]), space)
    assert spaces["certify"]["report"].exit_code == 2 and spaces["certify"]["changed"].exit_code == 3
    assert not spaces["examine"]["correct"].violated and spaces["examine"]["broken"].violated


def test_notebooks_show_public_names_only() -> None:
    from tests.test_public import PINNED

    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpaudit"):
                    assert {alias.name for alias in node.names} <= set(PINNED[node.module or ""]), path.name
