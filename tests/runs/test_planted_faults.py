"""The shipped configuration with a fault planted only in the trainer's arithmetic must be convicted.

Ledger, plan, canaries, guesses and attack stay those of the innocent run; ``dpaudit certify`` sees nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.run_helpers import EXAMPLES, run_cli, small_config, write_toml


def plant_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise source returns zeros while the ledger claims σ."""
    from dpaudit.trainers import noise as _noise

    def sample(self: Any, shape: Any, std: float, device: Any = "cpu") -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)

    monkeypatch.setattr(_noise.NoiseSource, "sample", sample)


def plant_no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clipping factor is one."""
    from dpaudit.trainers import clipping as _clipping

    monkeypatch.setattr(_clipping.Flat, "factors", lambda self, norms: torch.ones_like(norms))


@pytest.mark.slow
def test_no_noise_and_no_clipping_is_violated_in_nine_of_ten_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_no_noise(monkeypatch)
    plant_no_clipping(monkeypatch)
    # The preflight refuses this run before its first step (next test); here the audit has to find it alone.
    monkeypatch.setattr("dpaudit.runs.fit.check_sensitivity", lambda prepared, model: None)
    verdicts = []
    for seed in range(10):
        outcome = run_cli("certify", EXAMPLES / "certify.toml", "--out", tmp_path / str(seed), "--json")
        verdicts.append((outcome.json["verdict"], round(outcome.json["epsilon_lower"], 3)))
        assert outcome.code == (1 if verdicts[-1][0] == "violated" else 2)
    with capsys.disabled():
        print(f"\nno noise, no clipping: {verdicts}")
    assert sum(verdict == "violated" for verdict, _ in verdicts) >= 9


def test_no_clipping_is_refused_by_the_preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_no_clipping(monkeypatch)
    outcome = run_cli("certify", write_toml(tmp_path / "c.toml", small_config()), "--out", tmp_path / "run")
    assert outcome.code == 64 and "the clipped sum differs from one backward pass per example" in outcome.error


@pytest.mark.slow
def test_no_noise_alone_is_violated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_no_noise(monkeypatch)
    outcome = run_cli("certify", EXAMPLES / "certify.toml", "--out", tmp_path / "run", "--json")
    with capsys.disabled():
        print(f"\nno noise, clipping on: {outcome.json['verdict']}, bound {outcome.json['epsilon_lower']:.3f}")
    assert outcome.json["verdict"] == "violated"


@pytest.mark.slow
def test_the_innocent_run_is_inconclusive_and_helps_on_public_text(tmp_path: Path) -> None:
    import json

    outcome = run_cli("certify", EXAMPLES / "certify.toml", "--out", tmp_path / "run", "--json")
    assert outcome.code == 2 and outcome.json["verdict"] == "inconclusive" and outcome.json["power"] is None
    assert outcome.json["ceiling"] > 3.3 and outcome.json["epsilon_upper"] <= 3.0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["facts"]
    assert facts["heldout_after"] < 0.95 * facts["heldout_before"]


@pytest.mark.slow
def test_the_zeroth_order_run_without_noise_is_convicted_by_its_examination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = run_cli("certify", EXAMPLES / "certify_zo.toml", "--out", tmp_path / "honest", "--examine", "--json")
    assert honest.json["verdict"] == "inconclusive"
    plant_no_noise(monkeypatch)
    broken = run_cli("certify", EXAMPLES / "certify_zo.toml", "--out", tmp_path / "broken", "--examine", "--json")
    assert broken.code == 1 and broken.json["verdict"] == "violated"
