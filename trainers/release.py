"""The one noisy release of a step, and adaptive clipping's query beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.clipping import AdaptiveFlat, Automatic, Clipping, Flat, PerLayer
from dpaudit.trainers.contribution import ClippedSum, Clipper, Ruled, Summing, rule_of
from dpaudit.trainers.distributed.reduction import OneProcess, Reduction
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.noise import Noise
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.step import noisy_mean


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The noisy mean gradients of one step: all that leaves it.

    Parameters
    ----------
    gradients : list of Tensor
        fp32 noisy mean gradients, in parameter order.
    noise_std : float
        σC/L, deviation of the noise in them.
    clipping_norm : float
        C of this step.
    """

    gradients: list[Tensor]
    noise_std: float
    clipping_norm: float


class Releaser:
    """Turns the clipped sums of a step into its release; with adaptive clipping, also moves C for the next step.

    The adaptive rule's count of norms below C is noised with ``quantile_sigma`` and charged by the stage; C follows
    from the noisy count alone, so it may be published.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        clipper: Clipper | Summing,
        noise: Noise,
        *,
        reduction: Reduction | None = None,
    ) -> None:
        self._plan, self._clipper, self._noise = plan, clipper, noise
        self._together: Reduction = OneProcess() if reduction is None else reduction
        self._sigma = plan.stage(0).noise_multiplier
        if self._sigma and math.isinf(plan.clipping_norm):
            raise InvalidValue(
                f"clipping_norm={plan.clipping_norm} with noise_multiplier={self._sigma} must be finite; give C."
            )
        if plan.clipping == "adaptive" and not isinstance(rule_of(clipper), AdaptiveFlat):
            raise InvalidValue("clipping='adaptive' needs a clipper with an AdaptiveFlat rule; leave clipper out.")

    @property
    def clipping_norm(self) -> float:
        """C of the next step."""
        rule = rule_of(self._clipper)
        return rule.clipping_norm if isinstance(rule, AdaptiveFlat) else self._plan.clipping_norm

    def __call__(self, total: ClippedSum, totals: Sequence[Tensor]) -> Release:
        """Release the sums of ``total`` as the tensors ``totals``, overwritten; its own bound scales the noise."""
        plan = self._plan
        std = total.noise_std(self._sigma)
        gradients = noisy_mean(
            totals,
            noise=self._noise,
            noise_std=std,
            normaliser=plan.normaliser,
            reduce=self._together.add_up,
            adds_noise=self._together.adds_noise,
        )
        self._adapt(total.norms, gradients[0].device)
        return Release(gradients=gradients, noise_std=std / plan.normaliser, clipping_norm=total.bound)

    def _adapt(self, norms: Tensor, device: torch.device) -> None:
        clipper = self._clipper
        if not isinstance(clipper, Ruled) or not isinstance(rule := clipper.clipping, AdaptiveFlat):
            return
        assert self._plan.quantile_sigma is not None  # the plan required it
        count = torch.tensor(rule.count(norms), dtype=torch.float32, device=device)
        if self._together.leads:  # one count of all records, so that one process noises it, sharded or not
            count += self._noise.sample((), self._plan.quantile_sigma, device)
        self._together.add_up_number(count)
        clipper.clipping = rule.updated(float(count), self._plan.normaliser)


def clipper_for(
    model: nn.Module, plan: PrivacyPlan, clipping_norm: float | None = None, *, rows: int = 1
) -> GhostClipping:
    """The ghost clipper of a plan's rule; ``clipping_norm`` continues adaptive clipping's C after a resume.

    ``rows`` are those of one record, such as the two of a pair; where units are drawn whole, each sum is told its rows.
    """
    bound = plan.clipping_norm if clipping_norm is None else clipping_norm
    rules: dict[str, Clipping] = {"flat": Flat(bound), "per_layer": PerLayer(bound)}
    if plan.clipping == "automatic":
        rules["automatic"] = Automatic(bound)
    if plan.clipping == "adaptive":
        rules["adaptive"] = AdaptiveFlat(bound, plan.target_quantile, plan.quantile_rate)
    return GhostClipping(model, bound, clipping=rules[plan.clipping], group=1 if plan.draws_units else rows)
