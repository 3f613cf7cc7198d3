"""The steps of one first-order run: draw, count, clip, one noise, one update; also for empty draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dpaudit.privacy.protocols import Journal
from dpaudit.trainers.contribution import Clipper, RunningSum, Summing, summing
from dpaudit.trainers.distributed.reduction import Reduction, count_together
from dpaudit.trainers.draw import Draw, SharedPasses, clipped_sum
from dpaudit.trainers.objective import Objective
from dpaudit.trainers.observer import Observers
from dpaudit.trainers.optimizers import DPOptimizer, OptimizerSettings
from dpaudit.trainers.physical import PhysicalBatch
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.release import Releaser
from dpaudit.trainers.sampling import Sampler
from dpaudit.trainers.step import PrivateStep
from dpaudit.trainers.units import RecordDraws, UnitDraws


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a callback sees after a step. Everything but ``private`` may be published.

    Parameters
    ----------
    step : int
        Steps executed so far in the whole run, this one included.
    planned_steps : int
        T of the plan.
    learning_rate, clipping_norm : float
        Those of this step (adaptive clipping's norm is a function of earlier releases).
    released : tuple of Tensor
        The noisy mean gradient (fp32), in the model's parameter order.
    private : PrivateStep
        Noise-free values; keep them in memory or in ``private/``.
    """

    step: int
    planned_steps: int
    learning_rate: float
    clipping_norm: float
    released: tuple[Tensor, ...] = dataclasses.field(repr=False)
    private: PrivateStep = dataclasses.field(repr=False)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Steps:
    """One run's parts, all checked, and what one step does with them.

    Parameters
    ----------
    plan : PrivacyPlan
    records : sequence
    objective : Objective
    journal : Journal
        Begun; a step is counted in it before its noisy release.
    sampler : Sampler
        Draws records and in-run canaries.
    contributors : RecordDraws or UnitDraws
        What is drawn: records, or units with their records.
    observers : Observers
    clipper : Clipper or Summing
    release : Releaser
    updates : DPOptimizer
    settings : OptimizerSettings
    micro : PhysicalBatch
    together : Reduction
    parameters : list of nn.Parameter
        The trained ones, in the model's order.
    modes : dict
        Training mode of every module, in which each step begins.
    executed : int
        Steps counted so far.
    """

    plan: PrivacyPlan
    records: Sequence[Any]
    objective: Objective
    journal: Journal
    sampler: Sampler
    contributors: RecordDraws | UnitDraws
    observers: Observers
    clipper: Clipper | Summing
    release: Releaser
    updates: DPOptimizer
    settings: OptimizerSettings
    micro: PhysicalBatch
    together: Reduction
    parameters: list[nn.Parameter]
    modes: dict[nn.Module, bool]
    sums: RunningSum = dataclasses.field(init=False)
    executed: int = 0

    def __post_init__(self) -> None:
        self.sums = RunningSum(self.parameters)

    def step(self, number: int) -> StepReport:
        """Execute step ``number`` of the plan, counted from 0."""
        for module, mode in self.modes.items():  # also of the modules that stand apart from the model's own
            module.training = mode
        indices = self.sampler.draw().tolist()
        drawn = Draw.of(self.records, self.contributors.rows(self.observers.records_of(indices)))
        passes = count_together(self.journal, self.together, self.objective.model, drawn.passes(self.micro.size))
        self.executed += 1
        bound = self.release.clipping_norm
        private, total = clipped_sum(
            self.objective,
            drawn,
            micro=self.micro,
            clipper=summing(self.clipper, self.parameters, bound),
            sums=self.sums,
            bound=bound,
            shared=SharedPasses(passes, lambda: self.records[0]) if self.together.shares_passes else None,
        )
        totals = total.totals(self.parameters)
        self.observers.add_to(totals, indices, self.clipper, bound)
        released = self.release(total, totals)
        self.observers.observe(released.gradients, self.clipper, bound)
        rate = self.settings.rate(number, self.plan.steps)
        for group in self.updates.param_groups:
            group["lr"], group["clipping_norm"] = rate, self.release.clipping_norm
        self.updates.receive(released.gradients, released.noise_std)
        self.updates.step()
        return StepReport(
            step=number + 1,
            planned_steps=self.plan.steps,
            learning_rate=rate,
            clipping_norm=released.clipping_norm,
            released=tuple(released.gradients),
            private=private,
        )
