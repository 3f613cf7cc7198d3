"""Two published ways to spend the same budget better, made of the library's own steps.

- *Public gradients propose directions* (PAZO, 2511.10859; its variant that draws from the span of public gradients):
  the weights are θ₀ + Σ_j a_j g_j, where the g_j are orthonormal mean gradients of PUBLIC minibatches, and the ordinary
  private zeroth-order step moves the few coefficients a_j. The span is renewed a few times from the current iterate,
  which is a private release. Nothing beyond the ledger is spent.
- *Charged selection* (after DP-SAPF, 2605.30312, which keeps what has the largest noisy gradients): one private
  first-order release with noise of its own, in the ledger, ranks the tensors by the energy above the noise's; the rest
  of the budget moves the best of them by forward passes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.accounting import calibrate
from dpaudit.trainers import (
    Directions,
    OptimizerSettings,
    PrivacyPlan,
    aggzo,
    train,
    zo_train,
)
from dpaudit.trainers.zeroth_order.stages import ZOPlan
from findings.jobs import Options
from findings.privacy import spent

BASIS, ROUNDS, PUBLIC_BATCH = 4, 8, 128
SUBSPACE = {"directions": 4, "norm": 4.0}
SELECTION = {"batch": 1000, "sigma": 6.0, "norm": 0.1, "keep": 0.25}
CHOSEN = {"directions": 16, "norm": 8.0}
RATES = {"pazo": (0.003, 0.01, 0.03), "charged layers": (0.02, 0.06)}
"""Searched on public records; norms and the selection's own budget are fixed beforehand."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every method of row 7 may spend: batch forward passes, records in a batch, and δ."""

    passes: int
    batch: int
    delta: float


class Subspace(nn.Module):
    """A model whose weights are a base and a few coefficients times fixed tensors."""

    next_word = True

    def __init__(self, model: nn.Module, basis: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(len(basis), device=next(model.parameters()).device))
        # Held outside the module, so that the coefficients alone are its parameters.
        self._held = (model, {name: p.detach() for name, p in model.named_parameters()}, basis)

    def weights(self) -> dict[str, Tensor]:
        """The base moved along the basis."""
        _, base, basis = self._held
        moved = dict(base)
        for a, direction in zip(self.coefficients, basis, strict=True):
            for name, part in direction.items():
                moved[name] = moved[name] + a * part
        return moved

    def forward(self, **inputs: Any) -> Any:
        model, _, _ = self._held
        return torch.func.functional_call(model, self.weights(), (), inputs, tie_weights=True)


def public_basis(model: nn.Module, task: Any, seed: int) -> list[dict[str, Tensor]]:
    """Orthonormal mean gradients of public minibatches."""
    rng, basis = torch.Generator().manual_seed(seed), []
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(BASIS):
        rows = [task.public[i] for i in torch.randperm(len(task.public), generator=rng)[:PUBLIC_BATCH].tolist()]
        found = torch.autograd.grad(task.losses(model, task.collate(rows)).mean(), list(parameters.values()))
        own = dict(zip(parameters, found, strict=True))
        for other in basis:
            along = _dot(own, other)
            own = {name: g - along * other[name] for name, g in own.items()}
        length = _dot(own, own).sqrt().clamp(min=1e-12)
        basis.append({name: g / length for name, g in own.items()})
    return basis


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def public_subspace(task: Any, epsilon: float, seed: int, options: Options, *, rate: float, budget: Budget,
                    public: bool = False) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """Private slopes along public gradients; the basis is renewed ``ROUNDS`` times."""
    p, rounds = SUBSPACE["directions"], ROUNDS if options.steps is None else 1
    steps = options.at_most(budget.passes // (2 * p))
    plan = _plan(task, steps=steps, budget=budget, norm=SUBSPACE["norm"], directions=p, epsilon=epsilon)
    whole = calibrate(aggzo(plan, learning_rate=rate, scale=1e-3))
    (stage,), model, journal = whole.stages, task.model(), MemoryJournal()
    part = dataclasses.replace(stage, plan=_on(task, stage.plan, public, steps=steps // rounds))
    for turn in range(rounds):
        inside = Subspace(model, public_basis(model, task, 1000 * seed + turn))
        zo_train(
            inside, task.public if public else task.private, ZOPlan((part,)), collate=task.collate,
            loss_fn=task.losses, journal=journal, directions=Directions(run=f"findings/pazo/{seed}/{epsilon}/{turn}"),
            physical_batch_size=2 * budget.batch, pad_batches=False,
        )  # fmt: skip
        with torch.no_grad():
            for name, value in inside.weights().items():
                model.get_parameter(name).copy_(value)
    return model, {} if public else {**spent(whole, journal), "rate": rate, "norm": SUBSPACE["norm"]}


@dataclasses.dataclass(frozen=True)
class Selected:
    """A first-order selection and the zeroth-order stage after it: one claim; calibration moves the second's noise."""

    selection: PrivacyPlan
    stage: ZOPlan

    target_epsilon = property(lambda self: self.stage.target_epsilon)
    delta = property(lambda self: self.stage.delta)

    def with_noise_multiplier(self, noise_multiplier: float) -> Selected:
        """The second stage at another σ."""
        return dataclasses.replace(self, stage=self.stage.with_noise_multiplier(noise_multiplier))

    def ledger(self) -> Any:
        """Both stages."""
        second = self.stage.ledger()
        return dataclasses.replace(second, stages=(self.selection.stage(), *second.stages))


def charged_layers(task: Any, epsilon: float, seed: int, options: Options, *, rate: float, budget: Budget,
                   public: bool = False) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """One noisy gradient chooses tensors; the rest is zeroth order on those."""
    p = CHOSEN["directions"]
    steps = options.at_most(budget.passes // (2 * p))
    first = _plan(
        task, steps=1, budget=dataclasses.replace(budget, batch=SELECTION["batch"]), norm=SELECTION["norm"],
        sigma=SELECTION["sigma"],
    )  # fmt: skip
    second = _plan(task, steps=steps, budget=budget, norm=CHOSEN["norm"], directions=p, epsilon=epsilon)
    both = calibrate(Selected(first, aggzo(second, learning_rate=rate, scale=1e-3)))
    model, journal, told = task.model(), MemoryJournal(), []
    records = task.public if public else task.private
    selection = _on(task, both.selection, public)
    train(
        model, records, selection, collate=task.collate, loss_fn=task.losses, journal=journal,
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1e-12), physical_batch_size=128,
        callback=lambda report: told.append(report.released),
    )  # fmt: skip
    chosen = _best(model, told[0], noise_std=first.noise_std / first.normaliser, keep=SELECTION["keep"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    stages = [dataclasses.replace(s, plan=_on(task, s.plan, public)) for s in both.stage.stages]
    zo_train(
        model, records, ZOPlan(tuple(stages)), collate=task.collate, loss_fn=task.losses, journal=journal,
        directions=Directions(run=f"findings/charged/{seed}/{epsilon}"), physical_batch_size=2 * budget.batch,
        pad_batches=False,
    )  # fmt: skip
    if public:
        return model, {}
    return model, {**spent(both, journal), "chosen": " ".join(sorted(chosen)), "rate": rate, "norm": CHOSEN["norm"]}


def _on(task: Any, plan: PrivacyPlan, public: bool, *, steps: int | None = None) -> PrivacyPlan:
    """The plan of a part of the run; on public records with the real σ, whose ε then means nothing."""
    size = len(task.public) if public else plan.public_size
    return dataclasses.replace(plan, public_size=size, target_epsilon=None, steps=steps or plan.steps)


def _best(model: nn.Module, released: tuple[Tensor, ...], *, noise_std: float, keep: float) -> set[str]:
    """Tensors with the most energy a coordinate above the noise's, up to a share of all coordinates."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    above = [
        (float(g.square().mean()) - noise_std**2, name, p.numel())
        for (name, p), g in zip(parameters, released, strict=True)
    ]
    room, chosen = keep * sum(size for *_, size in above), set()
    for _, name, size in sorted(above, reverse=True):
        if size <= room or not chosen:
            chosen.add(name)
            room -= size
    return chosen


def _plan(task: Any, *, steps: int, budget: Budget, norm: float, epsilon: float | None = None, directions: int = 1,
          sigma: float | None = None) -> PrivacyPlan:  # fmt: skip
    return PrivacyPlan(
        delta=budget.delta, relation="add_or_remove_one", sampling="poisson", unit="record",
        public_size=len(task.private), expected_batch_size=min(budget.batch, len(task.private) // 5), steps=steps,
        clipping_norm=norm,
        target_epsilon=epsilon, noise_multiplier=sigma, releases_per_step=directions,
        clip="joint" if directions > 1 else None,
    )  # fmt: skip
