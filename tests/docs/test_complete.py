"""The documentation: every public name and every command stands in it, and it builds without warnings."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from dpaudit.cli import COMMANDS, main
from tests import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    pytest.importorskip("docutils")
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_lists_every_package(conf: ModuleType) -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    assert tuple(re.findall(r"public-names:: (\S+)", page)) == conf.PACKAGES


def test_every_public_name_has_a_docstring(conf: ModuleType) -> None:
    bare = [
        f"{package}.{name}"
        for package in conf.PACKAGES
        for name in conf.public_names(package)
        if (inspect.isclass(value := getattr(importlib.import_module(package), name)) or inspect.isroutine(value))
        and not (value.__doc__ or "").strip()
    ]
    assert not bare


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    text = command.get_help(click.Context(command, info_name=f"dpaudit {name}", help_option_names=["-h", "--help"]))
    assert "Example:" in text
    assert f"dpaudit {name}" in text
    assert "--json" in text
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help, f"{name}: {parameter.name}"


def test_page_of_commands_shows_every_help(conf: ModuleType) -> None:
    titles = [section[0].astext() for section in conf.CommandHelp.run(None)]
    assert titles == [f"dpaudit {name}" for name in sorted(COMMANDS)]


def pages() -> list[Path]:
    return sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)


def test_every_page_has_one_title() -> None:
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        assert len(re.findall(r"^# ", text, re.M)) == 1, page


def test_links_between_pages_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#:\s]+\.md)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page}: {target}"


def test_commands_in_the_pages_exist() -> None:
    for page in pages():
        for name in re.findall(r"^(?:\.venv/bin/)?dpaudit (\w+)", page.read_text(), re.M):
            assert name in COMMANDS, f"{page}: {name}"


def test_python_in_the_pages_compiles_and_imports_exist() -> None:
    for page in pages():
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            compile(block, str(page), "exec")
            for package, names in re.findall(r"^from (dpaudit[\w.]*) import (.+)$", block, re.M):
                module = importlib.import_module(package)
                for name in re.findall(r"\w+", names.split("#")[0]):
                    assert hasattr(module, name), f"{page}: {package}.{name}"


def test_policy_reference_is_complete() -> None:
    import dataclasses

    from dpaudit.certificates.policy import Policy

    page = (DOCS / "reference" / "policy.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == {f.name for f in dataclasses.fields(Policy)}


def test_every_key_of_the_data_section_is_explained() -> None:
    from dpaudit.runs.config import Data

    page = (DOCS / "howto" / "own_data.md").read_text()
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(Data.model_fields) <= set(re.findall(r"`(\w+)`", rows))


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
