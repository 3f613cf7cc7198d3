"""Preflight: does the model, loss and clipper at hand have the sensitivity the plan claims?

Four questions, answered on generated records before the first step. Does the forward pass write anything into the
model? Are an example's loss and gradient the same alone and in any company: other content, number, length, order,
padding? Does the clipper agree with one autograd call per example, on every trainable parameter? Does leaving one
example out move the clipped sum by at most C?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.contribution import Clipper, RunningSum, Summing, summing
from dpaudit.trainers.distributed.shards import gather_nothing, has_shards, local
from dpaudit.trainers.objective import LossFunction
from dpaudit.trainers.preflight.company import Company
from dpaudit.trainers.preflight.independence import (
    Alone,
    Evaluation,
    Gradient,
    Limits,
    check_independence,
    norm,
)
from dpaudit.trainers.preflight.randomness import generators_kept, still_randomness
from dpaudit.trainers.preflight.sources import CollatedRecords, company_for
from dpaudit.trainers.preflight.written import (
    refuse_exchanged,
    refuse_running_statistics,
    refuse_written_state,
)
from dpaudit.trainers.refusals import refuse_broken_weights, refuse_model
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.step import to_device, trainable

_FEW = 2**24
"""Weights of models up to this size are kept, in case that a forward pass (which is then refused) writes them."""

MakeClipper = Callable[[nn.Module, float], Clipper | Summing]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What was checked, and by how much it held.

    Parameters
    ----------
    examples : int
        Examples in the batch that was replayed.
    independence : float
        Largest relative change of an example's loss or gradient when the others changed.
    agreement : float
        Largest relative difference between the clipper's sum and the one-by-one sum, over parameters.
    sensitivity_over_bound : float
        Largest ‖S(D) − S(D∖i)‖ / C.
    unused : tuple of str
        Trainable parameters without gradient in any example: they would move by noise alone.
    private_records : bool
        Whether the records were private ones, by the caller's flag: a deviation that the run must record.
    collator : bool
        Whether the records went through the collator; otherwise batches of its schema were generated, and how it
        treats one record beside another was not seen.
    padding : tuple of str
        Sides on which a record was padded beside longer ones, where the batches were generated.
    """

    examples: int
    independence: float
    agreement: float
    sensitivity_over_bound: float
    unused: tuple[str, ...]
    private_records: bool
    collator: bool = False
    padding: tuple[str, ...] = ()


def preflight(
    model: nn.Module,
    schema: Mapping[str, Tensor] | CollatedRecords,
    *,
    loss_fn: LossFunction,
    clipper: MakeClipper | None = None,
    examples: int = 4,
    private_records: bool = False,
    padding: str | None = None,
    generator: torch.Generator | None = None,
) -> PreflightReport:
    """Check a model, loss, collator and clipper on generated records, and refuse before the first step.

    Parameters
    ----------
    model : nn.Module
        Left as it was found: weights, buffers, attributes, gradients, modes and random state.
    schema : mapping of Tensor, or CollatedRecords
        One collated batch, of which keys, types and shapes are used. Or records and their collator: then records of
        the same form are made up and collated in changing company, which also shows what the collator does.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``.
    clipper : callable or None
        ``clipper(model, C)`` makes the clipper to check; ``GhostClipping`` by default.
    examples : int
        Records to generate, at least 2.
    private_records : bool
        Replay the records themselves instead of generated ones. It reads private records outside the ledger, so the
        run must record the deviation.
    padding : str or None
        Sides on which the collator pads: "right", "left", "both", or "none" where all records have one length. By
        default the sides where the batch's mask shows padding, both where it shows none, and the right without a mask.
        Has no effect on ``CollatedRecords``, whose collator shows it.
    generator : torch.Generator, optional
        Makes the records; a fixed public seed by default.

    Returns
    -------
    PreflightReport
        How far other examples move an example's loss and gradient, how well the clipper agrees with autograd, and
        the largest contribution in C.

    Raises
    ------
    PrivacyRefusal
        If an example's loss or gradient depends on another, the forward pass writes into the model, or the sensitivity
        exceeds C; names the module and the remedy.
    UnsupportedModel
        If the clipper's sum is wrong for a parameter; names it.
    InvalidValue
        If no records could be made up for the loss; says what to give instead.
    """
    if private_records and not isinstance(schema, CollatedRecords) and len(next(iter(schema.values()))) < 2:
        raise InvalidValue("a batch of 1 example must have at least 2 for a preflight; collate two records.")
    if has_shards(model):
        raise PrivacyRefusal(
            "the model is sharded (fully_shard), and gradients of its parameters cannot be taken one by one; call"
            " preflight before fully_shard, or preflight_losses in every process."
        )
    parameters = trainable(model)
    full = all(p.dtype in (torch.float32, torch.float64) for p in parameters.values())
    refuse_model(model)
    refuse_broken_weights(model)
    refuse_running_statistics(model)
    with _left_as_found(model, loss_fn) as found_as:
        evaluation = Evaluation(model, loss_fn, parameters)
        company = _company(
            evaluation, schema, examples=examples, padding=padding, private=private_records, generator=generator
        )
        refuse_written_state(model, company.twins, evaluation, found_as)
        with _without_dropout(model, lambda: evaluation(company.whole[0].batch)):
            limits = Limits.of(model, gradients=True)
            found = Alone.of(evaluation, company, limits)
            moved, sides = check_independence(evaluation, company, found, limits)
            alone = _that_count(found.gradients)
            refuse_exchanged(found_as)
            agreement, ratio = _clipping(evaluation, company, alone, clipper, 1e-3 if full else 0.1)
        return PreflightReport(
            examples=len(alone),
            independence=moved,
            agreement=agreement,
            sensitivity_over_bound=ratio,
            unused=tuple(name for name in parameters if not any(bool(g[name].any()) for g in alone)),
            private_records=private_records,
            collator=company.collated,
            padding=tuple(sides),
        )


def preflight_losses(
    model: nn.Module,
    schema: Mapping[str, Tensor] | CollatedRecords,
    *,
    loss_fn: LossFunction,
    examples: int = 4,
    padding: str | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Check by forward passes alone that each example has its own loss: all a zeroth-order step needs.

    Clipped loss differences have the claimed sensitivity for every model and loss of which this holds.

    Parameters
    ----------
    model, schema, loss_fn, padding
        As for :func:`preflight`; no gradient is taken, so that the memory is that of inference.

    Returns
    -------
    float
        Largest relative change of one example's loss when the content, length or number of the others changed.

    Raises
    ------
    PrivacyRefusal
        If a loss moved, or the forward pass writes into the model; names the module and the remedy.
    """
    refuse_model(model)
    refuse_broken_weights(model)
    refuse_running_statistics(model)
    with _left_as_found(model, loss_fn) as found_as, torch.no_grad():
        evaluation = Evaluation(model, loss_fn, {})
        company = _company(evaluation, schema, examples=examples, padding=padding, private=False, generator=generator)
        refuse_written_state(model, company.twins, evaluation, found_as)
        with _without_dropout(model, lambda: evaluation(company.whole[0].batch)):
            limits = Limits.of(model, gradients=False)
            moved = check_independence(evaluation, company, Alone.of(evaluation, company, limits), limits)[0]
            refuse_exchanged(found_as)
            return moved


def _company(
    evaluation: Evaluation,
    schema: Any,
    *,
    examples: int,
    padding: str | None,
    private: bool,
    generator: torch.Generator | None,
) -> Company:
    rng = generator or torch.Generator().manual_seed(20)
    device = next(evaluation.model.parameters()).device
    return company_for(
        schema,
        evaluation.model,
        lambda batch: evaluation(to_device(batch, device)),
        size=max(2, examples),
        padding=padding,
        private=private,
        rng=rng,
    ).map(lambda batch: to_device(batch, device))


def _that_count(gradients: list[Gradient]) -> list[Gradient]:
    if not any(bool(g.any()) for gradient in gradients for g in gradient.values()):
        raise InvalidValue(
            "no generated record gives any trainable parameter a gradient, so that nothing could be checked; give"
            " made-up records that count, or mend the loss."
        )
    return gradients


def _clipping(
    evaluation: Evaluation, company: Company, alone: Sequence[Gradient], make: MakeClipper | None, tolerance: float
) -> tuple[float, float]:
    """Agreement of the clipper with one backward pass per example, and the sensitivity of its sum over C."""
    norms = torch.tensor([norm(gradient) for gradient in alone], dtype=torch.float64)
    bound = 0.5 * float(norms[norms > 0].median())
    factors = [min(1.0, bound / max(float(n), 1e-30)) for n in norms]
    whole = _clipped_sum(evaluation, [part.batch for part in company.whole], make, bound)
    agreement = 0.0
    for name in evaluation.parameters:
        expected = torch.zeros_like(whole[name])
        for gradient, factor in zip(alone, factors, strict=True):
            expected.add_(gradient[name], alpha=factor)
        size = float(expected.norm())
        difference = float(expected.sub_(whole[name]).norm()) / max(size, 1e-3 * bound)
        if not difference <= tolerance:
            raise UnsupportedModel(
                f"parameter {name!r}: the clipped sum differs from one backward pass per example by {difference:.2g}"
                f" and must stay within {tolerance:g}; freeze it with requires_grad=False, or report its module"
                f" ({_module_of(evaluation.model, name)})."
            )
        agreement = max(agreement, difference)
    ratio = 0.0
    for parts in company.without:
        rest = _clipped_sum(evaluation, parts, make, bound)
        ratio = max(ratio, norm({k: whole[k] - rest[k] for k in whole}) / bound)
    if not ratio <= 1 + tolerance:
        raise PrivacyRefusal(
            f"leaving one example out moves the clipped sum by {ratio:.4g} C and must move it by at most C; the clipper"
            " or the loss is not bounded per example, so no noise multiplier holds."
        )
    return agreement, ratio


def _clipped_sum(evaluation: Evaluation, batches: Sequence[Any], make: MakeClipper | None, bound: float) -> Gradient:
    parameters = evaluation.parameters
    if make is None:
        from dpaudit.trainers.ghost.clipper import GhostClipping

        make = GhostClipping
    clipper, trained = make(evaluation.model, bound), list(parameters.values())
    taken, running = summing(clipper, trained, bound), RunningSum(trained)
    with clipper if isinstance(clipper, AbstractContextManager) else nullcontext():
        for batch in batches:
            losses = evaluation(batch)
            with still_randomness():
                running.add(taken.clipped_sum(losses))
    return dict(zip(parameters, running.total(bound).totals(trained), strict=True))


@contextmanager
def _left_as_found(model: nn.Module, loss_fn: Any) -> Iterator[list[ModelState]]:
    """Gradients, modes, buffers, attributes and random state come back afterwards; products are in full precision."""
    gather_nothing(model)
    roots = [model, loss_fn] if isinstance(loss_fn, nn.Module) else [model]
    modes = {module: module.training for root in roots for module in root.modules()}
    kept, states = {p: p.grad for p in model.parameters()}, [ModelState(root) for root in roots]
    few = sum(p.numel() for p in kept) <= _FEW
    weights = {p: local(p).detach().clone() for p in kept} if few else {}
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with generators_kept(), torch.autocast(_device_type(model), enabled=False):
            yield states
    finally:
        torch.set_float32_matmul_precision(precision)
        gather_nothing(model)
        for module, mode in modes.items():
            module.training = mode
        for p, grad in kept.items():
            p.grad = grad
        for state in states:
            state.restore()
            state.restore_settings()
        for p, weight in weights.items():
            if not torch.equal(local(p).detach(), weight):
                local(p).data.copy_(weight)


@contextmanager
def _without_dropout(model: nn.Module, losses: Callable[[], Tensor]) -> Iterator[None]:
    """Dropout off, and as little else changed as that takes.

    First every dropout layer's rate is set to zero, which leaves the model in its mode. Where the losses still vary
    from call to call (dropout inside attention kernels), everything but normalisation goes to eval mode.
    """
    modes = {module: module.training for module in model.modules()}
    rates = {module: module.p for module in modes if isinstance(module, nn.modules.dropout._DropoutNd)}
    try:
        for layer in rates:
            layer.p = 0.0
        if not _steady(losses):
            for module in modes:
                if not isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = False
            if not _steady(losses):
                raise PrivacyRefusal(
                    "loss_fn gives the same batch another loss at every call, so that it keeps something of earlier"
                    " batches or draws random numbers of its own; keep nothing, and draw from torch's generator."
                )
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for layer, rate in rates.items():
            layer.p = rate
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _steady(losses: Callable[[], Tensor]) -> bool:
    one, two = losses(), losses()
    return one.shape == two.shape and bool(torch.isclose(one, two, rtol=1e-6, atol=0, equal_nan=True).all())


def _device_type(model: nn.Module) -> str:
    return next(model.parameters()).device.type


def _module_of(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__
