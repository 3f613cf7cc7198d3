"""The programs inside the documentation run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from tests import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loop(tmp_path: Path) -> None:
    assert 0 < load("own_loop").main(tmp_path / "ledger.jsonl", steps=6) <= 3.0
