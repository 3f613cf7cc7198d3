"""The path of a canary's coin through the rooms is the one that CONTRIBUTING.md shows."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests import ROOT
from tests.runs.run_helpers import run_cli, small_config, write_toml

Place = tuple[str, str]


def path_shown() -> list[Place]:
    """File and function of every row of the table, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Where a canary's coin becomes a verdict")[2].partition("\n## ")[0]
    return re.findall(r"\| `(\S+\.py)` \| `([\w.]+)` \|", section)


def test_every_function_of_the_path_is_defined_where_it_says() -> None:
    shown = path_shown()
    assert len(shown) >= 10
    for file, name in shown:
        body: Any = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{name} is not in {file}"
            body = getattr(found[0], "body", [])


def calls_of(function: Callable[[], Any]) -> tuple[Any, list[Place]]:
    """What a function returns, and every call of the path's functions in it, in order."""
    wanted = {(str((ROOT / file).resolve()), name): (file, name) for file, name in path_shown()}
    resolved: dict[str, str] = {}
    calls: list[Place] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            file = frame.f_code.co_filename
            if file not in resolved:
                resolved[file] = str(Path(file).resolve())
            if (place := wanted.get((resolved[file], frame.f_code.co_qualname))) is not None:
                calls.append(place)

    sys.setprofile(note)
    try:
        return function(), calls
    finally:
        sys.setprofile(None)


def follows(calls: list[Place], path: list[Place]) -> bool:
    """Whether the calls go along a path; some functions are called before as well, such as by the plan."""
    left = iter(calls)
    return all(place in left for place in path)


@pytest.mark.slow
def test_a_run_goes_along_the_path_and_verify_goes_its_end_again(tmp_path: Path) -> None:
    from dpaudit.certificates.verify.verify import verify_here

    shown, config = path_shown(), write_toml(tmp_path / "c.toml", small_config())
    done, calls = calls_of(lambda: run_cli("certify", config, "--out", tmp_path / "run"))
    assert done.code == 2 and follows(calls, shown), [name for _, name in calls]
    assert not follows(calls, shown[::-1])
    report, again = calls_of(lambda: verify_here(tmp_path / "run"))
    assert report.ok and set(shown[-6:]) <= set(again), set(shown[-6:]) - set(again)
