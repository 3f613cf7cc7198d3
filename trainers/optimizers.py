"""DP-Adam, DP-AdamW and DP-SGD: ordinary updates that accept nothing but a noisy release."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """How noisy gradients become updates: post-processing, free of privacy cost.

    The defaults follow Li et al. (2110.05679): Adam without weight decay at a learning rate around 1e-3 together
    with a large batch and a small C; see ``docs/howto/hyperparameters.md``.

    Parameters
    ----------
    algorithm : str
        "adam" (decay, if any, is added to the gradient), "adamw" (decoupled decay) or "sgd".
    learning_rate : float
        Rate at the top of the schedule.
    betas, eps, momentum, weight_decay : float
        As in torch.optim.
    schedule : str
        "constant", "linear" or "cosine" (to zero at the last planned step); ``warmup_steps`` rises linearly before it.
        A schedule is fixed beforehand and therefore free.
    warmup_steps : int
        Steps of the linear rise before the schedule.
    noise_bias_correction : bool
        DP-AdamBC (Tang et al., 2312.14334): subtract the known variance of the noise from Adam's second moment.
    noise_bias_floor : float
        Floor of the corrected second moment; DP-AdamBC's γ'.

    Raises
    ------
    InvalidValue
        If a value is out of its bounds; names it.
    """

    algorithm: str = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    noise_bias_correction: bool = False
    noise_bias_floor: float = 1e-10

    def __post_init__(self) -> None:
        validate.one_of(("adam", "adamw", "sgd"), algorithm=self.algorithm)
        validate.one_of(("constant", "linear", "cosine"), schedule=self.schedule)
        validate.positive(learning_rate=self.learning_rate, eps=self.eps, noise_bias_floor=self.noise_bias_floor)
        validate.non_negative(weight_decay=self.weight_decay, momentum=self.momentum)
        validate.integer_at_least(0, warmup_steps=self.warmup_steps)
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise InvalidValue(f"betas={self.betas} must both be in [0, 1); a usual choice is (0.9, 0.999).")
        if self.noise_bias_correction and self.algorithm == "sgd":
            raise InvalidValue(
                "noise_bias_correction=True with algorithm='sgd' has no second moment to correct; use adam."
            )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``steps``.

        Parameters
        ----------
        step : int
            From 0.
        steps : int
            Planned steps of the run.

        Returns
        -------
        float
            The rate by which this step moves the weights.
        """
        rate = self.learning_rate
        if step < self.warmup_steps:
            return rate * (step + 1) / self.warmup_steps
        left = max(steps - step, 0) / max(steps - self.warmup_steps, 1)
        if self.schedule == "cosine":
            return rate * 0.5 * (1 - math.cos(math.pi * left))
        return rate * left if self.schedule == "linear" else rate


class DPOptimizer(torch.optim.Optimizer):
    """Adam, AdamW or SGD whose only input is a noisy release; moments are fp32 whatever the weights are.

    ``receive`` hands over the release and ``step`` consumes it. A step without a release is refused, so that neither
    a clipped sum without noise nor a stale gradient can reach the weights.

    Parameters
    ----------
    params : iterable of Parameter or of groups
        As in torch.optim; frozen parameters are left out.
    settings : OptimizerSettings
        Algorithm and its constants. The learning rate lives in ``param_groups``, where schedulers find it.

    Notes
    -----
    DP-AdamBC subtracts the same moving average of noise variances that Adam applies to squared gradients, so that it
    stays right when σ, C or L change between steps.
    """

    def __init__(self, params: Iterable[Any], settings: OptimizerSettings) -> None:
        self.settings = settings
        super().__init__(params, {"lr": settings.learning_rate, "weight_decay": settings.weight_decay})
        self._release: list[Tensor] | None = None
        self._noise_std = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter, in the order in which ``receive`` takes gradients."""
        return [p for group in self.param_groups for p in group["params"]]

    def receive(self, gradients: Sequence[Tensor], noise_std: float) -> None:
        """Take one release: fp32 noisy mean gradients in parameter order, and the noise's deviation σC/L in them.

        Parameters
        ----------
        gradients : sequence of Tensor
            fp32 or fp64, one for each parameter in order: what :func:`noisy_mean` returned.
        noise_std : float
            σC/L, standard deviation of the noise in every coordinate of ``gradients``.

        Raises
        ------
        InvalidValue
            If a gradient is missing or has another shape or type than its parameter takes.
        """
        parameters = self.parameters
        if len(gradients) != len(parameters):
            raise InvalidValue(f"gradients={len(gradients)} tensors must be {len(parameters)}, one for each parameter.")
        for p, g in zip(parameters, gradients, strict=True):
            if g.shape != p.shape or g.dtype not in (torch.float32, torch.float64):
                raise InvalidValue(
                    f"a gradient of shape {tuple(g.shape)} and type {g.dtype} must have its parameter's shape"
                    f" {tuple(p.shape)} in fp32; pass what noisy_mean returned."
                )
        self._release, self._noise_std = list(gradients), noise_std

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the release that was received, once."""
        if closure is not None:
            raise PrivacyRefusal("closure=... would re-evaluate private records; pass gradients through receive().")
        if self._release is None:
            raise PrivacyRefusal("no noisy release was received since the last step; call receive() before step().")
        gradients, self._release = self._release, None
        position = 0
        for group in self.param_groups:
            count = len(group["params"])
            for p, g in zip(group["params"], gradients[position : position + count], strict=True):
                self._update(p, g, group["lr"], group["weight_decay"])
            position += count

    def _update(self, p: Tensor, g: Tensor, rate: float, decay: float) -> None:
        s, state = self.settings, self.state[p]
        if decay and s.algorithm == "adamw":
            p.mul_(1 - rate * decay)
        elif decay:
            g = g.add(p.to(g.dtype), alpha=decay)
        if s.algorithm == "sgd":
            if s.momentum:
                moment = state.setdefault("momentum", torch.zeros_like(g))
                g = moment.mul_(s.momentum).add_(g)
            _write(p, g, None, rate)
            return
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(g), torch.zeros_like(g)
            state["noise_sq"] = 0.0
        beta1, beta2 = s.betas
        state["step"] += 1
        state["exp_avg"].lerp_(g, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["noise_sq"] = beta2 * state["noise_sq"] + (1 - beta2) * self._noise_std**2
        first, second = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        if s.noise_bias_correction:
            corrected = state["exp_avg_sq"].sub(state["noise_sq"]).div_(second).clamp_(min=s.noise_bias_floor)
            denominator = corrected.sqrt_()
        else:
            denominator = state["exp_avg_sq"].sqrt().div_(second**0.5).add_(s.eps)
        _write(p, state["exp_avg"], denominator, rate / first)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments as they were saved: torch would cast them to the weights' type."""
        super().load_state_dict(state_dict)
        order = [i for group in state_dict["param_groups"] for i in group["params"]]
        for index, p in zip(order, self.parameters, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.detach().to(device=p.device, copy=True)


def _write(p: Tensor, numerator: Tensor, denominator: Tensor | None, rate: float) -> None:
    """p ← p − rate · numerator / denominator, rounded to the weights' type once, at the end."""
    target = p if p.dtype == numerator.dtype else p.to(numerator.dtype)
    if denominator is None:
        target.add_(numerator, alpha=-rate)
    else:
        target.addcdiv_(numerator, denominator, value=-rate)
    if target is not p:
        p.copy_(target)
