"""Planted faults of the noise through the whole product: the certificate says violated, and by which evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dpaudit.trainers.noise as noise
from tests.runs.run_helpers import run_cli, small_config, write_toml


def shrunk(real: Any) -> Any:
    return lambda self, shape, std, device="cpu": real(self, shape, 0.99 * std, device)


def reused(real: Any) -> Any:
    held: dict[tuple[int, ...], torch.Tensor] = {}

    def sample(self: Any, shape: Any, std: float, device: Any = "cpu") -> torch.Tensor:
        if tuple(shape) not in held:
            held[tuple(shape)] = real(self, shape, std, device)
        return held[tuple(shape)].clone()

    return sample


@pytest.mark.parametrize(
    ("fault", "where"), [(shrunk, ("run", "block")), pytest.param(reused, ("lag",), marks=pytest.mark.slow)]
)
def test_the_energy_of_the_releases_convicts(
    fault: Any, where: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(audit__in_run={"enabled": False})  # the energy is recorded without canaries too
    with monkeypatch.context() as patch:
        patch.setattr(noise.NoiseSource, "sample", fault(noise.NoiseSource.sample))
        done = run_cli("certify", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run", "--json")
    assert done.code == 1 and done.json["verdict"] == "violated", done.error
    body = json.loads((tmp_path / "run" / "release" / "certificate.json").read_text())["predicate"]
    (against,) = [f for f in body["in_run"]["result"]["findings"] if f["status"] == "violated"]
    assert against["name"] == "release_energy" and against["detail"]["where"] in where
