"""The reference of the configuration is what the models say, and its examples are values that they accept."""

from __future__ import annotations

import tomllib

import pydantic
import pytest

from dpaudit.runs.config import Config
from dpaudit.runs.reference import Key, markdown, sections, toml
from tests import ROOT

PAGE = ROOT / "docs" / "reference" / "configuration.md"


def keys() -> list[Key]:
    return [key for section in sections() for key in section.keys]


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python docs/build_configuration.py"


def test_page_has_every_key_that_a_shipped_configuration_uses() -> None:
    rows = PAGE.read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.toml"):
        for section, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
            table = rows.split(f"## `[{section}]`")[1].split("\n## ")[0]
            for key in values:
                assert f"| `{key}` |" in table, f"{path.name}: {section}.{key}"


@pytest.mark.parametrize("key", keys(), ids=lambda key: f"{key.section}.{key.name}")
def test_example_is_accepted_as_toml(key: Key) -> None:
    value = tomllib.loads(f"x = {toml(key.example)}")["x"]
    model: type[pydantic.BaseModel] = Config
    for section in key.section.split("."):
        annotation = model.model_fields[section].annotation
        model = next(m for m in getattr(annotation, "__args__", (annotation,)) if isinstance(m, type))
    try:
        model.model_validate({key.name: value})
    except pydantic.ValidationError as error:
        wrong = [e for e in error.errors() if e["loc"][0] == key.name]
        assert not wrong, wrong


@pytest.mark.parametrize("text", ['a "quoted" \\ path', "tab\tline\nend", "é ε \x00 \U0001f600"])
def test_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"x = {toml(text)}")["x"] == text


def test_types_are_told_in_words() -> None:
    words = {f"{key.section}.{key.name}": key.kind for key in keys()}
    assert words["claim.delta"] == "number > 0 < 1"
    assert words["audit.holdout_fraction"] == "number ≥ 0 ≤ 0.5"
    assert words["run.seed"] == "whole number"
    assert words["privacy.secure_noise"] == "true or false"
    assert words["data.labels"] == "list of texts"
