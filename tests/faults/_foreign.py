"""Training steps in the styles of other people's code: how gradients, noise, update and sampling are written varies.

A style is a value; a broken step is a style with one fault. Nothing here is copied from anybody's program.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit import Relation, Stage
from dpaudit.attacks import ExamPlan, LoopAdapter, LossFactors
from tests.faults._case import Case

SIZE, RATE, WIDTH, CLASSES, RANKS = 60, 0.1, 6, 3, 4
EXPECTED = SIZE * RATE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a step is written.

    Parameters
    ----------
    name : str
    model : str
        "mlp", "wide", "linear", "conv", "embedding", "gru", "tied" or "norm".
    grads : str
        "loop", "vmap", "micro", "layers", "flat64", "scaled losses" (weights on a second backward pass).
    update : str
        "manual", "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "decay" (torch SGD with weight
        decay), "manual decay", "scheduled" (a torch schedule), "rate function".
    noise : str
        "secret", "numpy", "ranks" (shares of several workers), "sliced" (drawn whole, used in parts), "halves",
        "float64".
    sampling : str
        "poisson", "fixed", "shuffle", "none".
    rate : float
    dtype : str
    dropout : float
    accumulate : bool
        Whether clipped sums are gathered in ``p.grad`` over micro-batches.
    clip, sigma : float
    average : bool
        Whether the step forms the mean before it adds noise of the mean's deviation.
    """

    name: str
    model: str = "mlp"
    grads: str = "loop"
    update: str = "manual"
    noise: str = "secret"
    sampling: str = "poisson"
    rate: float = 1.0
    dtype: str = "float32"
    dropout: float = 0.0
    clip: float = 1.0
    sigma: float = 1.0
    average: bool = False


class Net(nn.Module):
    """One small classifier of a kind."""

    def __init__(self, kind: str, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        drop = [nn.Dropout(dropout)] if dropout else []
        if kind in ("embedding", "tied"):
            self.embedding = nn.Embedding(9, 5)
            self.head = nn.Linear(5, 9 if kind == "tied" else CLASSES, bias=kind != "tied")
            if kind == "tied":
                self.head.weight = self.embedding.weight
        elif kind == "gru":
            self.gate, self.new, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, CLASSES)
        else:
            layers: list[nn.Module]
            if kind == "conv":
                layers = [
                    nn.Unflatten(1, (1, WIDTH)),
                    nn.Conv1d(1, 4, 3),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(16, CLASSES),
                ]
            elif kind == "linear":
                layers = [nn.Linear(WIDTH, CLASSES)]
            elif kind == "wide":
                layers = [nn.Linear(WIDTH, 32), nn.GELU(), *drop, nn.Linear(32, CLASSES)]
            elif kind == "norm":
                layers = [nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.Tanh(), *drop, nn.Linear(8, CLASSES)]
            else:
                layers = [nn.Linear(WIDTH, 8), nn.ReLU(), *drop, nn.Linear(8, CLASSES)]
            self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("embedding", "tied"):
            return self.head(torch.tanh(self.embedding(x.abs().mul(3).long().clamp(max=8)).mean(1)))  # type: ignore[no-any-return]
        if self.kind == "gru":
            state = x.new_zeros(len(x), 4)
            for t in range(3):
                both = torch.cat([x[:, t : t + 1], state], 1)
                state = torch.sigmoid(self.gate(both)) * torch.tanh(self.new(both)) + state / 2
            return self.head(state)  # type: ignore[no-any-return]
        return self.layers(x)  # type: ignore[no-any-return]


class Foreign:
    """A step in a style, in parts that a fault may replace."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style = style
        torch.manual_seed(seed)
        self.model = Net(style.model, style.dropout).to(getattr(torch, style.dtype)).train()
        rng = torch.Generator().manual_seed(seed + 1)
        self.x = torch.randn(SIZE, WIDTH, generator=rng).to(getattr(torch, style.dtype))
        self.y = torch.randint(0, CLASSES, (SIZE,), generator=rng)
        self.factors = LossFactors(SIZE)
        self.weights = list(self.model.parameters())
        self.clip_at, self.std = style.clip, style.sigma * style.clip
        self.steps, self.quiet = 0, False
        self.optimizer, self.schedule = self._optimizer()
        self.restart()

    # -- streams --------------------------------------------------------------------------------------------------
    def restart(self) -> None:
        """A new process."""
        self.secret = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
        self.numbers, self.drawing = np.random.default_rng(), np.random.default_rng()
        self.order: Iterator[list[int]] = self._epochs()

    def _epochs(self) -> Iterator[list[int]]:
        while True:
            order, size = self.drawing.permutation(SIZE).tolist(), round(EXPECTED)
            yield from (order[k : k + size] for k in range(0, SIZE, size))

    def draw(self) -> list[int]:
        kind = self.style.sampling
        if kind == "none":
            return list(range(SIZE))
        if kind == "fixed":
            return self.drawing.choice(SIZE, round(EXPECTED), replace=False).tolist()  # type: ignore[no-any-return]
        if kind == "shuffle":
            return next(self.order)
        return np.flatnonzero(self.drawing.random(SIZE) < RATE).tolist()  # type: ignore[no-any-return]

    # -- gradients ------------------------------------------------------------------------------------------------
    def losses(self, indices: Sequence[int]) -> Tensor:
        rows = self.factors.records(indices)
        losses = F.cross_entropy(self.model(self.x[rows]).float(), self.y[rows], reduction="none")
        return self.factors.scale(losses, indices)

    def gradient(self, index: int) -> list[Tensor]:
        return [g.float() for g in torch.autograd.grad(self.losses([index])[0], self.weights)]

    def norm(self, gradient: Sequence[Tensor]) -> float:
        return float(torch.sqrt(sum(g.double().square().sum() for g in gradient)))  # type: ignore[arg-type]

    def scaled(self, gradient: list[Tensor]) -> list[Tensor]:
        """One record's clipped gradient."""
        if self.style.grads == "layers":
            bound = self.clip_at / len(gradient) ** 0.5
            return [self._one([g], bound)[0] for g in gradient]
        return self._one(gradient, self.clip_at)

    def _one(self, gradient: list[Tensor], bound: float) -> list[Tensor]:
        n = self.norm(gradient)
        if not np.isfinite(n):
            return [torch.zeros_like(g) for g in gradient]
        return [g * min(1.0, bound / max(n, 1e-12)) for g in gradient]

    def gather(self, indices: Sequence[int]) -> list[Tensor]:
        """The clipped sum."""
        kind = self.style.grads
        total = [torch.zeros(p.shape) for p in self.weights]
        if kind == "vmap" and len(indices):
            return self._vmapped(indices)
        if kind == "scaled losses" and len(indices):
            return self._second_pass(indices)
        parts = [indices[k : k + 2] for k in range(0, len(indices), 2)] if kind == "micro" else [indices]
        for part in parts:
            own = [torch.zeros(p.shape, dtype=torch.float64) for p in self.weights]
            for i in part:
                for s, g in zip(own, self.scaled(self.gradient(i)), strict=True):
                    s += g
            total = [t + s.float() for t, s in zip(total, own, strict=True)]
        return total

    def _vmapped(self, indices: Sequence[int]) -> list[Tensor]:
        from torch.func import functional_call, grad, vmap

        rows = self.factors.records(indices)
        factor = self.factors.scale(torch.ones(len(rows)), indices)

        def one(params: dict[str, Tensor], x: Tensor, y: Tensor, f: Tensor) -> Tensor:
            loss = F.cross_entropy(functional_call(self.model, params, (x[None],)), y[None])
            return torch.where(f == 1, loss, loss * f)

        params = {name: p.detach() for name, p in self.model.named_parameters()}
        each = list(vmap(grad(one), in_dims=(None, 0, 0, 0))(params, self.x[rows], self.y[rows], factor).values())
        norms = torch.sqrt(sum(g.flatten(1).square().sum(1) for g in each))  # type: ignore[arg-type]
        fine = torch.isfinite(norms)
        scale = torch.where(fine, (self.clip_at / norms.clamp_min(1e-12)).clamp(max=1), torch.zeros_like(norms))
        return [torch.einsum("b,b...->...", scale, g.nan_to_num(0, 0, 0)) for g in each]

    def _second_pass(self, indices: Sequence[int]) -> list[Tensor]:
        """Norms from one pass over each record, then one backward pass of the weighted sum of losses."""
        norms = [self.norm(self.gradient(i)) for i in indices]
        kept = [
            (i, min(1.0, self.clip_at / max(n, 1e-12))) for i, n in zip(indices, norms, strict=True) if np.isfinite(n)
        ]
        if not kept:
            return [torch.zeros(p.shape) for p in self.weights]
        losses = self.losses([i for i, _ in kept])
        weighted = (losses * torch.tensor([w for _, w in kept])).sum()
        return list(torch.autograd.grad(weighted, self.weights))

    # -- noise ----------------------------------------------------------------------------------------------------
    def noise(self, indices: Sequence[int]) -> list[Tensor]:
        kind, std = self.style.noise, self.std
        if kind == "numpy":
            return [
                torch.as_tensor(self.numbers.normal(0, std, tuple(p.shape)), dtype=torch.float32) for p in self.weights
            ]
        if kind == "ranks":
            each = [[self._normal(p.shape) * std / RANKS**0.5 for p in self.weights] for _ in range(RANKS)]
            return [torch.stack(parts).sum(0) for parts in zip(*each, strict=True)]
        if kind == "sliced":
            whole = self._normal((sum(p.numel() for p in self.weights),)) * std
            return [
                part.view(p.shape)
                for part, p in zip(whole.split([p.numel() for p in self.weights]), self.weights, strict=True)
            ]
        if kind == "halves":
            return [(self._normal(p.shape) + self._normal(p.shape)) * std / 2**0.5 for p in self.weights]
        if kind == "float64":
            return [
                (torch.randn(p.shape, generator=self.secret, dtype=torch.float64) * std).float() for p in self.weights
            ]
        return [self._normal(p.shape) * std for p in self.weights]

    def _normal(self, shape: Any) -> Tensor:
        return torch.randn(shape, generator=self.secret)

    def divisor(self, indices: Sequence[int]) -> float:
        return EXPECTED

    # -- update ---------------------------------------------------------------------------------------------------
    def _optimizer(self) -> tuple[Any, Any]:
        rate, kind, schedule = self.style.rate, self.style.update, None
        made: Any = {
            "sgd": lambda: torch.optim.SGD(self.weights, lr=rate),
            "momentum": lambda: torch.optim.SGD(self.weights, lr=rate, momentum=0.9),
            "nesterov": lambda: torch.optim.SGD(self.weights, lr=rate, momentum=0.9, nesterov=True),
            "adam": lambda: torch.optim.Adam(self.weights, lr=rate),
            "adamw": lambda: torch.optim.AdamW(self.weights, lr=rate, weight_decay=0.1),
            "rmsprop": lambda: torch.optim.RMSprop(self.weights, lr=rate),
            "adagrad": lambda: torch.optim.Adagrad(self.weights, lr=rate),
            "decay": lambda: torch.optim.SGD(self.weights, lr=rate, weight_decay=0.05),
            "scheduled": lambda: torch.optim.SGD(self.weights, lr=rate),
        }.get(kind, lambda: None)()
        if kind == "scheduled":
            schedule = torch.optim.lr_scheduler.StepLR(made, step_size=2, gamma=0.5)
        return made, schedule

    def rate_now(self) -> float:
        return self.style.rate * (0.5 ** (self.steps // 5 % 4) if self.style.update == "rate function" else 1.0)

    def released(self, indices: Sequence[int]) -> list[Tensor]:
        """The noisy mean."""
        total, divisor = self.gather(indices), self.divisor(indices)
        noise = [torch.zeros(p.shape) for p in self.weights] if self.quiet else self.noise(indices)
        if self.style.average:
            return [t / divisor + n / EXPECTED for t, n in zip(total, noise, strict=True)]
        return [(t + n) / divisor for t, n in zip(total, noise, strict=True)]

    def step(self, indices: Sequence[int]) -> None:
        released, rate = self.released(indices), self.rate_now()
        self.steps += 1
        self.move(released, rate)

    def move(self, released: list[Tensor], rate: float) -> None:
        if self.optimizer is not None:
            for p, r in zip(self.weights, released, strict=True):
                p.grad = r.to(p.dtype)
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            return
        with torch.no_grad():
            for p, r in zip(self.weights, released, strict=True):
                pull = 0.02 * p if self.style.update == "manual decay" else 0.0
                p -= (rate * (r + pull)).to(p.dtype)

    def clean_step(self, indices: Sequence[int]) -> None:
        self.quiet = True
        try:
            self.step(indices)
        finally:
            self.quiet = False

    # -- what the examiner receives -------------------------------------------------------------------------------
    def plan(self) -> ExamPlan:
        kind = {"fixed": "without_replacement", "shuffle": "shuffle", "none": "none"}.get(
            self.style.sampling, "poisson"
        )
        rate = 1.0 if kind == "none" else RATE
        stage = Stage(
            sampling_probability=rate, noise_multiplier=self.style.sigma, steps=200, sampling=kind,
            clipping_norm=self.style.clip,
        )  # fmt: skip
        relation = Relation.REPLACE_ONE if kind == "without_replacement" else Relation.ADD_OR_REMOVE_ONE
        return ExamPlan(stage=stage, normaliser=EXPECTED, relation=relation, size=SIZE, delta=1e-3)

    def adapter(self, **more: Callable[..., Any]) -> LoopAdapter:
        rate = self.rate_now if self.style.update == "rate function" else self.style.rate
        return LoopAdapter(
            self.model, self.step, self.draw, size=SIZE, clean_step=self.clean_step, restart=self.restart,
            learning_rate=rate, adversaries=self.factors.adversaries, **more,
        )  # fmt: skip


def case_of(style: Style, seed: int, kind: type[Foreign] = Foreign) -> Case:
    """Adapter and plan of a step in a style, with a fault's class where there is one."""
    made = kind(style, seed)
    return Case(made.adapter(), made.plan())
