"""A plain PyTorch DP-SGD loop in seven small methods, each of which a fault may replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit import Ledger, Relation, Stage
from dpaudit.attacks import ExamPlan, LoopAdapter
from dpaudit.attacks.examiner.adapters import FACTORS

RECORDS, RATE, WIDTH, CLASSES = 60, 0.1, 5, 3


class Embedded(nn.Module):
    """Mean of word vectors, then a layer: tokens 0 are padding."""

    def __init__(self, words: int = 9, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = (tokens != 0).unsqueeze(-1).float()
        vectors = self.embedding(tokens) * seen
        return self.head(vectors.sum(1) / seen.sum(1).clamp(min=1))


class PlainLoop:
    """DP-SGD by a loop over examples. Correct as it stands.

    The examiner sees it through a :class:`LoopAdapter`: weights before and after, at a learning rate of 1.
    """

    clipping_norm = 0.5
    noise_multiplier = 1.0
    micro = 3
    """Examples whose gradients a step gathers at once; no influence on a correct loop."""

    def __init__(self, seed: int, *, size: int = RECORDS) -> None:
        torch.manual_seed(seed)
        self.size = size
        self.model = self.make_model()
        self.records = self.make_records(seed)
        self.normaliser = RATE * RECORDS
        self.quiet = False
        self.steps = 0
        self.restart()

    # -- the problem ------------------------------------------------------------------------------------------------
    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def make_records(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(seed + 1)
        return [(torch.randn(WIDTH, generator=rng), torch.randint(CLASSES, (), generator=rng)) for _ in range(RECORDS)]

    def row(self, index: int) -> tuple[tuple[Tensor, Tensor], float]:
        """Record and factor of its loss: numbers beyond the data set are the adversaries."""
        if index < RECORDS:
            return self.records[index], 1.0
        return self.records[0], list(FACTORS.values())[index - RECORDS]

    def restart(self) -> None:
        """A new process: secret streams from the operating system."""
        self.secret = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
        self.sampling = np.random.default_rng()
        self.steps = 0

    # -- a step -----------------------------------------------------------------------------------------------------
    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = [self.row(i) for i in indices]
        x, y = torch.stack([r[0][0] for r in rows]), torch.stack([r[0][1] for r in rows])
        losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
        return losses * torch.tensor([r[1] for r in rows])

    def gradient(self, indices: Sequence[int]) -> list[Tensor]:
        """Gradient of the summed loss of some records."""
        return list(torch.autograd.grad(self.losses(indices).sum(), list(self.model.parameters())))

    def clip(self, gradient: list[Tensor]) -> list[Tensor]:
        norm = torch.sqrt(sum(g.square().sum() for g in gradient))  # type: ignore[arg-type]
        if not torch.isfinite(norm):
            return [torch.zeros_like(g) for g in gradient]
        factor = min(1.0, self.clipping_norm / float(norm)) if norm > 0 else 1.0
        return [g * factor for g in gradient]

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        """The clipped sum of a minibatch."""
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in indices:
            for t, g in zip(total, self.clip(self.gradient([i])), strict=True):
                t += g
        return total

    @property
    def noise_std(self) -> float:
        return self.noise_multiplier * self.clipping_norm

    def noise(self, total: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        return [torch.randn(t.shape, generator=self.secret) * self.noise_std for t in total]

    def divisor(self, indices: Sequence[int]) -> float:
        return self.normaliser

    def step(self, indices: Sequence[int]) -> None:
        self.steps += 1
        total = self.gather(indices)
        drawn = [torch.zeros_like(t) for t in total] if self.quiet else self.noise(total, indices)
        with torch.no_grad():
            for p, t, n in zip(self.model.parameters(), total, drawn, strict=True):
                p -= (t + n) / self.divisor(indices)

    def clean_step(self, indices: Sequence[int]) -> None:
        self.quiet = True
        try:
            self.step(indices)
        finally:
            self.quiet = False

    def draw(self) -> list[int]:
        return np.flatnonzero(self.sampling.random(self.size) < RATE).tolist()  # type: ignore[no-any-return]

    # -- what the examiner receives ---------------------------------------------------------------------------------
    def published(self) -> dict[str, float]:
        return {}

    def stage(self) -> Stage:
        return Stage(
            sampling_probability=RATE, noise_multiplier=self.noise_multiplier, steps=200, sampling="poisson",
            clipping_norm=self.clipping_norm,
        )  # fmt: skip

    def plan(self) -> ExamPlan:
        return ExamPlan(stage=self.stage(), normaliser=RATE * RECORDS, size=RECORDS, delta=1e-3)

    def ledger(self) -> Ledger:
        return Ledger(stages=(self.stage_counted(),), relation=Relation.ADD_OR_REMOVE_ONE)

    def stage_counted(self) -> Stage:
        import dataclasses

        return dataclasses.replace(self.stage(), steps=self.counted())

    def counted(self) -> int:
        """Steps that the loop's ledger counts over its life."""
        self.total_steps = getattr(self, "total_steps", 0)
        return self.total_steps + self.steps

    def resized(self, size: int) -> LoopAdapter:
        twin = type(self)(0, size=size)
        twin.model.load_state_dict(self.model.state_dict())
        twin.records = self.records
        return twin.adapter()

    def adapter(self) -> LoopAdapter:
        def restart() -> None:
            self.total_steps = getattr(self, "total_steps", 0) + self.steps
            self.restart()

        return LoopAdapter(
            self.model, self.step, self.draw, size=self.size, clean_step=self.clean_step, restart=restart,
            adversaries={name: RECORDS + k for k, name in enumerate(FACTORS)}, resized=self.resized,
            ledger=self.ledger, published=self.published,
        )  # fmt: skip


class TokenLoop(PlainLoop):
    """The same on token records of different lengths, with an embedding; two special records at the end."""

    def make_model(self) -> nn.Module:
        return Embedded()

    def make_records(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(seed + 1)
        rows = []
        for _ in range(RECORDS):
            length = int(torch.randint(1, 6, (), generator=rng))
            rows.append((torch.randint(1, 9, (length,), generator=rng), torch.randint(CLASSES, (), generator=rng)))
        return rows

    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = [self.row(i) for i in indices]
        width = max(len(r[0][0]) for r in rows)
        x = torch.stack([nn.functional.pad(r[0][0], (0, width - len(r[0][0]))) for r in rows])
        y = torch.stack([r[0][1] for r in rows])
        losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
        return losses * torch.tensor([r[1] for r in rows])


def shrunk(factor: float) -> Any:
    """True stage of a run whose noise is a factor too small."""
    import dataclasses

    return lambda stage: dataclasses.replace(stage, noise_multiplier=stage.noise_multiplier / factor)
