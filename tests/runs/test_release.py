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


class Outputs:
    """What the mechanism handed to the optimizer, and the weights it began with."""

    def __init__(self) -> None:
        self.gradients: list[list[torch.Tensor]] = []
        self.noise: list[float] = []
        self.rates: list[list[dict[str, Any]]] = []
        self.start: list[torch.Tensor] = []
        self.settings: Any = None

    def record(self, patch: pytest.MonkeyPatch) -> None:
        from dpaudit.trainers.optimizers import DPOptimizer

        receive, step = DPOptimizer.receive, DPOptimizer.step

        def receiving(optimizer: Any, gradients: Any, noise_std: float) -> None:
            self.start = self.start or [p.detach().clone() for p in optimizer.parameters]
            self.settings = optimizer.settings
            self.gradients.append([g.clone() for g in gradients])
            self.noise.append(noise_std)
            receive(optimizer, gradients, noise_std)

        def stepping(optimizer: Any) -> None:
            kept = ("lr", "weight_decay")
            self.rates.append([{key: group[key] for key in kept} for group in optimizer.param_groups])
            step(optimizer)

        patch.setattr(DPOptimizer, "receive", receiving)
        patch.setattr(DPOptimizer, "step", stepping)

    def replayed(self) -> list[bytes]:
        """The weights that these releases give, tensor by tensor in one order."""
        from dpaudit.trainers.optimizers import DPOptimizer

        parameters = [torch.nn.Parameter(start.clone()) for start in self.start]
        optimizer = DPOptimizer(parameters, self.settings)
        for gradients, noise, groups in zip(self.gradients, self.noise, self.rates, strict=True):
            optimizer.param_groups[0].update(groups[0])
            optimizer.receive(gradients, noise)
            optimizer.step()
        return sorted(p.detach().numpy().tobytes() for p in parameters)

    def released(self, file: bytes) -> list[bytes]:
        """The tensors of the released model in the same order; a tied one counts once."""
        from safetensors.torch import load

        return sorted({tensor.float().numpy().tobytes() for tensor in load(file).values()})


CLIPPING_NORM, BATCH, NOISE = 0.5, 40, 100.0


def run_with(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, outputs: Outputs) -> dict[str, bytes]:
    folder.mkdir()
    (folder / "private.txt").write_text("\n".join(lines) + "\n")
    config = small_config(
        data__path=str(folder / "private.txt"),
        data__limit=None,
        privacy__noise_multiplier=NOISE,
        privacy__clipping_norm=CLIPPING_NORM,
        privacy__expected_batch_size=BATCH,  # so that the changed record is drawn
    )
    with monkeypatch.context() as patch:
        fixed_randomness(patch)
        outputs.record(patch)
        assert run_cli("certify", write_toml(folder / "c.toml", config), "--out", folder / "run").code == 2
    release = folder / "run" / "release"
    return {str(p.relative_to(release)): p.read_bytes() for p in release.rglob("*") if p.is_file()}


@pytest.mark.slow  # the neighbours' test asks the same question of the bytes alone, in half the time
def test_one_changed_record_changes_nothing_but_mechanism_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lzma.open(EXAMPLES / "data" / "austen_private.txt.xz", "rt").read().splitlines()[:60]
    changed = [*lines[:7], "It was a dark and stormy night on the moor.", *lines[8:]]
    first, second = Outputs(), Outputs()
    one = run_with(tmp_path / "one", lines, monkeypatch, first)
    two = run_with(tmp_path / "two", changed, monkeypatch, second)
    assert set(one) == set(two)
    assert {name for name in one if one[name] != two[name]} <= MECHANISM_OUTPUTS
    assert one["ledger.jsonl"] == two["ledger.jsonl"] and one["audit_plan.json"] == two["audit_plan.json"]
    # The weights are computed from the starting weights and the noisy releases alone: doing so again gives them, bit
    # for bit. (They cannot be compared with a tolerance: Adam divides by the noisy gradient's size, so that a
    # coordinate whose noise happens to be near zero moves by a whole step, however small the record's share is.)
    for outputs, files in ((first, one), (second, two)):
        assert outputs.replayed() == outputs.released(files["model/model.safetensors"])
    # And the releases hold the record within its bound: with equal noise and draws, replacing it in the first step
    # moves the noisy mean by at most 2 C / L.
    moved = torch.cat([(a - b).flatten() for a, b in zip(first.gradients[0], second.gradients[0], strict=True)])
    assert 0 < float(moved.norm()) <= 2 * CLIPPING_NORM / BATCH * (1 + 1e-3)
    assert all(noise == pytest.approx(NOISE * CLIPPING_NORM / BATCH, rel=1e-12) for noise in first.noise)
