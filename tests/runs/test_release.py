"""What may be published: nothing noise-free about a private record."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.run_helpers import EXAMPLES, run_cli, small_config, write_toml

# Files whose bytes are, or are computed from, outputs of the noisy mechanism.
MECHANISM_OUTPUTS = {"model/model.safetensors", "scores.parquet", "certificate.json", "report.html"}
MECHANISM_OUTPUTS |= {"in_run.json"}  # scores and energy of noisy updates
MECHANISM_OUTPUTS |= {"model_card.md", "model/privacy.json"}  # both restate the certificate


def fixed_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every secret stream from a fixed seed, below anything that would mark the run as a test."""
    import dpaudit.trainers.noise as noise
    import dpaudit.trainers.sampling as sampling
    from dpaudit.attacks.canaries import coins as _coins

    streams = {"sampling": 0, "noise": 0, "bytes": 0}

    def counted(name: str) -> int:
        streams[name] += 1
        return streams[name]

    def bytes_of(size: int) -> bytes:
        return bytes(np.random.default_rng(counted("bytes")).bytes(size))

    monkeypatch.setattr(sampling, "_secret_generator", lambda: np.random.default_rng(counted("sampling")))
    monkeypatch.setattr(_coins.secrets, "token_bytes", bytes_of)
    monkeypatch.setattr(_coins.secrets, "randbits", lambda bits: 7)
    monkeypatch.setattr(np.random, "default_rng", _seeded_default(np.random.default_rng))
    real = noise.NoiseSource.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, generator=torch.Generator().manual_seed(counted("noise")))
        self.is_test = False

    monkeypatch.setattr(noise.NoiseSource, "__init__", init)


def _seeded_default(real: Any) -> Any:
    return lambda seed=7: real(seed)


def run_with(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    folder.mkdir()
    (folder / "private.txt").write_text("\n".join(lines) + "\n")
    config = small_config(
        data__path=str(folder / "private.txt"),
        data__limit=None,
        privacy__noise_multiplier=100.0,
        privacy__expected_batch_size=40,  # so that the changed record is drawn
    )
    with monkeypatch.context() as patch:
        fixed_randomness(patch)
        assert run_cli("certify", write_toml(folder / "c.toml", config), "--out", folder / "run").code == 2
    release = folder / "run" / "release"
    return {str(p.relative_to(release)): p.read_bytes() for p in release.rglob("*") if p.is_file()}


def test_one_changed_record_changes_nothing_but_mechanism_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lzma.open(EXAMPLES / "data" / "austen_private.txt.xz", "rt").read().splitlines()[:60]
    one = run_with(tmp_path / "one", lines, monkeypatch)
    two = run_with(
        tmp_path / "two", [*lines[:7], "It was a dark and stormy night on the moor.", *lines[8:]], monkeypatch
    )
    assert set(one) == set(two)
    assert {name for name in one if one[name] != two[name]} <= MECHANISM_OUTPUTS
    assert one["ledger.jsonl"] == two["ledger.jsonl"] and one["audit_plan.json"] == two["audit_plan.json"]
    # The only trace in the weights is the record's share of a sum under noise a hundred times larger. Adam divides by
    # the size of the noisy gradient, so the few coordinates whose noise happens to be near zero move by a whole step.
    from safetensors.torch import load

    left, right = load(one["model/model.safetensors"]), load(two["model/model.safetensors"])
    moved = torch.cat([(left[name] - right[name]).abs().flatten() for name in left])
    assert float((moved > 1e-3).double().mean()) < 1e-5 and float(moved.median()) < 1e-6
    assert any(not torch.equal(left[name], right[name]) for name in left)
