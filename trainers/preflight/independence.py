"""Check that the losses and gradients of a batch are those that its records have alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import DpauditError, InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.objective import LossFunction
from dpaudit.trainers.preflight.company import Company, Composition
from dpaudit.trainers.preflight.diagnosis import OUR_LOSSES, coupling_message
from dpaudit.trainers.preflight.randomness import still_randomness
from dpaudit.trainers.rows import one_loss_per_record

Gradient = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """A model and loss, evaluated with every random number held still."""

    model: nn.Module
    loss_fn: LossFunction
    parameters: Mapping[str, nn.Parameter]

    def __call__(self, batch: Any) -> Tensor:
        with still_randomness():
            return self.loss_fn(self.model, batch)

    def losses(self, batch: Any, size: int) -> Tensor:
        """The batch's losses, of which there must be one for each of ``size`` records."""
        losses = self(batch)
        if losses.ndim != 1:
            raise InvalidValue(
                f"loss_fn returned shape {tuple(losses.shape)} and must return ({size},), one loss for each"
                f" example; use {OUR_LOSSES} or a mean over each example's own tokens."
            )
        return one_loss_per_record(losses, records=size)

    def gradient(self, total: Tensor, *, keep: bool = False) -> Gradient:
        """The gradient of a number, in at least fp32; zeros where a parameter has none."""
        with still_randomness():
            grads = torch.autograd.grad(total, list(self.parameters.values()), retain_graph=keep, allow_unused=True)
        return {
            name: wide(torch.zeros_like(p) if g is None else g)
            for (name, p), g in zip(self.parameters.items(), grads, strict=True)
        }


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def norm(gradient: Gradient) -> float:
    """Euclidean norm over all parameters, in fp64."""
    norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradient.values()])
    return float(torch.linalg.vector_norm(norms))


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How far rounding may move a loss, and a gradient (None: gradients are not looked at)."""

    loss: float
    gradient: float | None

    @classmethod
    def of(cls, model: nn.Module, *, gradients: bool) -> Limits:
        """What the model's precision allows; relative."""
        full = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
        return cls(1e-4 if full else 0.02, (1e-4 if full else 0.05) if gradients else None)


@dataclasses.dataclass(frozen=True, slots=True)
class Alone:
    """Losses of records evaluated alone, and the gradients of those that are replayed."""

    losses: Tensor
    gradients: list[Gradient]

    @classmethod
    def of(cls, evaluation: Evaluation, company: Company, limits: Limits) -> Alone:
        """Evaluate every record by itself.

        Raises
        ------
        UnsupportedModel, InvalidValue
            If a loss is not finite: a weight that is not, or a loss that fails on an ordinary record.
        """
        if company.whole[0].size > 1:
            # Run first, since its message about shapes is the clearest.
            evaluation.losses(company.whole[0].batch, company.whole[0].size)
        optional = {number for part in company.compositions if part.optional for _, number in part.rows}
        replayed = {number for part in company.whole for _, number in part.rows}
        losses, gradients = [], []
        for number, batch in enumerate(company.alone):
            try:
                found = evaluation.losses(batch, 1)
            except DpauditError:
                raise
            except Exception:
                if number not in optional:
                    raise
                found = torch.full((1,), torch.nan)  # of a length that the model does not take
            losses.append(found.detach().double().cpu())
            if number in replayed and not bool(losses[-1].isfinite()):
                _refuse_infinite(evaluation.model)
            if number in replayed and limits.gradient is not None:
                gradients.append(evaluation.gradient(found[0]))
        return cls(torch.cat(losses), gradients)


def check_independence(
    evaluation: Evaluation, company: Company, alone: Alone, limits: Limits
) -> tuple[float, list[str]]:
    """Compare every record in company with itself alone; the largest relative change, and the sides that were padded.

    Raises
    ------
    PrivacyRefusal
        If a loss or gradient moved; names the cause.
    """
    worst, sides = 0.0, []
    for composition in company.compositions:
        losses = losses_of(evaluation, composition)
        if losses is None:
            continue
        if composition.side is not None:
            sides.append(composition.side)
        worst = max(worst, _losses_agree(evaluation, company, composition, losses, alone, limits.loss))
        if limits.gradient is not None:
            worst = max(worst, _gradients_agree(evaluation, company, composition, losses, alone, limits.gradient))
    return worst, sides


def _losses_agree(
    evaluation: Evaluation,
    company: Company,
    composition: Composition,
    losses: Tensor,
    alone: Alone,
    limit: float,
) -> float:
    scale, worst = float(alone.losses[alone.losses.isfinite()].abs().median()), 0.0
    together = losses.detach().double().cpu()
    for at, number in composition.rows:
        own = float(alone.losses[number])
        if not math.isfinite(own):
            continue
        moved = abs(float(together[at]) - own) / max(abs(own), scale, 1e-30)
        if not moved <= limit:
            raise _coupled(evaluation, company, composition, at, number, moved, "loss")
        worst = max(worst, moved)
    return worst


def _gradients_agree(
    evaluation: Evaluation,
    company: Company,
    composition: Composition,
    losses: Tensor,
    alone: Alone,
    limit: float,
) -> float:
    """One backward pass over a weighted sum shows any coupling, since the weights differ from record to record."""
    rows = [(at, number) for at, number in composition.rows if number < len(alone.gradients)]
    gradients = dict(enumerate(alone.gradients))
    if not rows:
        rows = list(composition.rows[:1])
        if not rows or not bool(alone.losses[rows[0][1]].isfinite()):
            return 0.0
        gradients[rows[0][1]] = evaluation.gradient(evaluation.losses(company.alone[rows[0][1]], 1)[0])
    sizes = sorted(norm(gradient) for gradient in alone.gradients)
    scale = sizes[len(sizes) // 2]
    weights = [1.0 + 0.37 * at for at, _ in rows]
    total = torch.stack([losses[at] * weight for (at, _), weight in zip(rows, weights, strict=True)]).sum()
    difference = evaluation.gradient(total)
    size = 0.0
    for (_, number), weight in zip(rows, weights, strict=True):
        size += weight * max(norm(gradients[number]), scale)
        for name, value in gradients[number].items():
            difference[name].sub_(value, alpha=weight)
    moved = norm(difference) / max(size, 1e-30)
    if not moved <= limit:
        at, number = rows[0]
        raise _coupled(evaluation, company, composition, at, number, moved, "gradient")
    return moved


def losses_of(evaluation: Evaluation, composition: Composition) -> Tensor | None:
    """Losses of a composition; None where it is optional and the model cannot run the batch at all."""
    try:
        return evaluation.losses(composition.batch, composition.size)
    except DpauditError:
        raise
    except Exception:
        if not composition.optional:
            raise
        return None


def _coupled(
    evaluation: Evaluation, company: Company, composition: Composition, at: int, number: int, moved: float, what: str
) -> PrivacyRefusal:
    if composition is company.compositions[0]:
        composition = _told_apart(evaluation, company, at, number)
    return PrivacyRefusal(
        coupling_message(evaluation.model, company.alone[number], composition, at, evaluation.loss_fn, moved, what)
    )


def _told_apart(evaluation: Evaluation, company: Company, at: int, number: int) -> Composition:
    """Name what changes a record's loss in a batch: the other records' content, their length, or their number."""
    first = company.compositions[0]

    def loss(composition: Composition, row: int) -> float:
        losses = losses_of(evaluation, composition)
        return 0.0 if losses is None else float(losses[row].detach())

    together, alone = loss(first, at), float(evaluation.losses(company.alone[number], 1)[0].detach())
    for what, compared in (("content", together), ("number", alone)):
        for composition in company.compositions[1:]:
            if composition.what != what or (0, number) not in composition.rows:
                continue
            if abs(loss(composition, 0) - compared) > 1e-6 * max(abs(compared), 1e-6):
                return dataclasses.replace(first, what=what)
    return first


def _refuse_infinite(model: nn.Module) -> None:
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in tensors:
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UnsupportedModel(f"{kind} {name!r} holds values that are not finite; load finite weights.")
    raise InvalidValue(
        "the loss of a generated record is not finite although every weight is; guard the loss against 0/0 and the"
        " logarithm of zero, or give made-up records of your own."
    )
