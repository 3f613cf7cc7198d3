"""The README's programs run and print what it says; the files that a repository should have are there."""

from __future__ import annotations

import re
import tomllib

import pytest

import dpaudit
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_python_runs_and_prints_what_the_comments_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    space: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), space)
    lower, upper, verdict = capsys.readouterr().out.split()
    assert (round(float(lower), 3), round(float(upper), 3)) == (1.827, 1.830)
    assert "about 1.827 to 1.830" in README
    assert verdict == "violated"


def test_lines_of_the_audit_are_those_that_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpaudit.cli import main

    monkeypatch.chdir(ROOT)
    command, *lines = blocks("text")[0].splitlines()
    with pytest.raises(SystemExit) as ended:
        main.main(args=command.removeprefix("$ dpaudit ").split(), standalone_mode=False)
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    for line in lines:
        assert line.removesuffix("…").rstrip() in printed


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)\)", README):
        assert (ROOT / target).exists(), target


def test_version_is_the_same_everywhere() -> None:
    assert f"version: {dpaudit.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_workflow_runs_what_a_change_must_pass_on_the_pythons_that_are_promised() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {c.rsplit(" ", 1)[1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert "run: .ci/run" in workflow
    assert set(re.findall(r'"(3\.\d+)"', workflow)) == promised
