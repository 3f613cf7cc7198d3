"""The complete programs of the documentation run, and their certificates verify without a deviation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.storage.confined import Limits
from tests import ROOT

EXAMPLES = ROOT / "docs" / "examples"
LIMITS = Limits(seconds=60.0, megabytes=600)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("own_loop", {"steps": 6}), ("trainer_run", {"records": 60, "canaries": 24, "steps": 2})],
)
def test_program_ends_with_a_certificate_that_verifies(tmp_path: Path, name: str, sizes: dict[str, int]) -> None:
    statement = load(name).main(tmp_path / "run", **sizes)
    assert statement.predicate.deviations == ()
    assert statement.predicate.verdict.name == "inconclusive"
    report = verify_certificate(tmp_path / "run" / "release" / "certificate.json", limits=LIMITS)
    assert report.ok, report.to_text()
    assert report.derived_verdict == "inconclusive"


def test_an_examined_loop_ends_in_a_certificate_with_its_examination(tmp_path: Path) -> None:
    statement = load("examine_loop").main(tmp_path / "run", budget="60 steps")
    body = statement.predicate
    assert body.verdict.name == "inconclusive" and list(body.findings) == []
    assert body.examination is not None and {t["name"] for t in body.examination["tests"]} >= {"replay", "sampler"}
    assert verify_certificate(tmp_path / "run" / "release" / "certificate.json", limits=LIMITS).ok


def test_every_program_is_shown_on_a_page_and_run_here() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    run = "".join(test.read_text(encoding="utf-8") for test in (ROOT / "tests").rglob("*.py"))
    for program in EXAMPLES.glob("*.py"):
        assert f"examples/{program.name}" in shown and f'"{program.stem}"' in run, program.name
