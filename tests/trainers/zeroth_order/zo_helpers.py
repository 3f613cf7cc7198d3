"""Small models, records and noise for the zeroth-order tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.trainers.noise import NoiseSource, NoNoise
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.stages import ZOPlan
from dpaudit.trainers.zeroth_order.train import ZOResult, zo_train


class Slope(nn.Module):
    """f(θ; x) = x·θ: every slope along v is exactly x·v, whatever θ and β are."""

    def __init__(self, size: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.theta


class Quadratic(nn.Module):
    """f(θ; x) = ½ θᵀAθ for every record."""

    def __init__(self, matrix: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.theta = nn.Parameter(theta.clone())

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.theta @ self.matrix @ self.theta).expand(len(x))


class Spoken:
    """Noise that says what it was asked for and returns what it was told."""

    is_test = True

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.asked = value, []  # type: tuple[float, list[tuple[tuple[int, ...], float]]]

    def sample(self, shape: Sequence[int], std: float, device: Any = "cpu") -> Tensor:
        self.asked.append((tuple(shape), std))
        return torch.full(tuple(shape), self.value)


def own_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's output is the loss."""
    losses: Tensor = model(batch)
    return losses


def plan(**changes: Any) -> PrivacyPlan:
    """A plan over 40 records of which 8 are expected in a batch."""
    value: dict[str, Any] = {
        "delta": 1e-5, "relation": "add_or_remove_one", "sampling": "poisson", "unit": "record", "public_size": 40,
        "expected_batch_size": 8, "steps": 10, "clipping_norm": 1.0, "noise_multiplier": 1.0,
    }  # fmt: skip
    return PrivacyPlan(**{**value, **changes})


def run(model: nn.Module, records: Sequence[Any], stages: ZOPlan, **options: Any) -> tuple[ZOResult, MemoryJournal]:
    """Train with a memory journal, no noise unless asked, and directions of the run "test"."""
    journal = options.pop("journal", None) or MemoryJournal()
    options.setdefault("noise", NoNoise())
    options.setdefault("directions", Directions(run="test"))
    options.setdefault("loss_fn", own_losses)
    options.setdefault("collate", torch.stack)
    result = zo_train(model, records, stages, journal=journal, **options)
    return result, journal


def seeded_noise(seed: int) -> NoiseSource:
    """Noise of an injected generator."""
    return NoiseSource(generator=torch.Generator().manual_seed(seed))


def tiny_gpt(seed: int = 0, **changes: Any) -> nn.Module:
    """GPT-2 with tied embeddings, two layers of width 16."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0, **changes
    )
    return GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def token_records(count: int, length: int = 12, seed: int = 1) -> list[Tensor]:
    """Random token rows of one length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 32, (length,), generator=generator) for _ in range(count)]


def gpt_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Per-example next-token losses."""
    from dpaudit.trainers.tasks.losses import causal_lm_losses

    return causal_lm_losses(model, batch)
