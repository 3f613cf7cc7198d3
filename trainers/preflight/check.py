"""Preflight: does the model, loss and clipper at hand have the sensitivity the plan claims?

Three questions, answered on generated records before the first step. Does an example's loss and gradient stay put
when the others' content, count or length changes? Does the clipper agree with one autograd call per example, on
every trainable parameter? Does leaving one example out move the clipped sum by at most C?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.preflight.diagnosis import OUR_LOSSES, coupling_message
from dpaudit.trainers.preflight.records import (
    _batch_size,
    generated_batch,
    select,
    with_longer_neighbours,
    with_other_content,
)
from dpaudit.trainers.refusals import refuse_broken_weights, refuse_model
from dpaudit.trainers.step import Clipper, LossFunction, to_device, trainable

MakeClipper = Callable[[nn.Module, float], Clipper]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What was checked, and by how much it held.

    Parameters
    ----------
    examples : int
        Examples in the batch that was replayed.
    independence : float
        Largest relative change of one example's gradient when the others changed.
    agreement : float
        Largest relative difference between the clipper's sum and the one-by-one sum, over parameters.
    sensitivity_over_bound : float
        Largest ‖S(D) − S(D∖i)‖ / C.
    unused : tuple of str
        Trainable parameters without gradient in any example: they would move by noise alone.
    private_records : bool
        Whether the records were private ones, by the caller's flag: a deviation that the run must record.
    """

    examples: int
    independence: float
    agreement: float
    sensitivity_over_bound: float
    unused: tuple[str, ...]
    private_records: bool


def preflight(
    model: nn.Module,
    schema: Mapping[str, Tensor],
    *,
    loss_fn: LossFunction,
    clipper: MakeClipper | None = None,
    examples: int = 4,
    private_records: bool = False,
    generator: torch.Generator | None = None,
) -> PreflightReport:
    """Check a model, loss and clipper on generated records, and refuse before the first step.

    Parameters
    ----------
    model : nn.Module
        Left as it was found: weights, gradients, modes and random state.
    schema : mapping of Tensor
        One collated batch. Only its keys, types and shapes are used, unless ``private_records``.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``.
    clipper : callable or None
        ``clipper(model, C)`` makes the clipper to check; ``GhostClipping`` by default.
    private_records : bool
        Replay the batch itself instead of a generated one. It reads private records outside the ledger, so the run
        must record the deviation.

    Raises
    ------
    PrivacyRefusal
        If an example's gradient depends on another, or the sensitivity exceeds C; names the module and the remedy.
    UnsupportedModel
        If the clipper's sum is wrong for a parameter; names it.
    """
    refuse_model(model)
    refuse_broken_weights(model)
    rng = generator or torch.Generator().manual_seed(20)
    device = next(model.parameters()).device
    if private_records:
        batch = dict(schema)
        if _batch_size(batch) < 2:
            raise InvalidValue("a batch of 1 example must have at least 2 for a preflight; collate two records.")
    else:
        batch = generated_batch(schema, model, size=max(2, examples), generator=rng)
    other = generated_batch(schema, model, size=_batch_size(batch), generator=rng)
    batch, other = to_device(batch, device), to_device(other, device)
    parameters = trainable(model)
    tolerance = 1e-3 if all(p.dtype in (torch.float32, torch.float64) for p in parameters.values()) else 0.1
    _refuse_batch_norm(model)
    with _without_dropout(model, lambda: loss_fn(model, batch)):
        reference = _gradients(model, batch, loss_fn, parameters)
        independence = _independence(model, batch, other, loss_fn, parameters, reference, tolerance)
        return _clipping(
            model, batch, loss_fn, clipper, parameters, reference, tolerance, independence, private_records
        )


def preflight_losses(
    model: nn.Module,
    schema: Mapping[str, Tensor],
    *,
    loss_fn: LossFunction,
    examples: int = 4,
    generator: torch.Generator | None = None,
) -> float:
    """Check by forward passes alone that each example has its own loss: all a zeroth-order step needs.

    Clipped loss differences have the claimed sensitivity for every model and loss of which this holds.

    Parameters
    ----------
    model, schema, loss_fn
        As for :func:`preflight`; no gradient is taken, so that the memory is that of inference.

    Returns
    -------
    float
        Largest relative change of one example's loss when the content, length or number of the others changed.

    Raises
    ------
    PrivacyRefusal
        If a loss moved; names the module and the remedy.
    """
    refuse_model(model)
    refuse_broken_weights(model)
    rng = generator or torch.Generator().manual_seed(20)
    device = next(model.parameters()).device
    batch = to_device(generated_batch(schema, model, size=max(2, examples), generator=rng), device)
    other = to_device(generated_batch(schema, model, size=_batch_size(batch), generator=rng), device)
    _refuse_batch_norm(model)
    wide = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    tolerance, worst = 1e-4 if wide else 0.1, 0.0
    with _without_dropout(model, lambda: loss_fn(model, batch)), torch.no_grad():
        reference = _losses(model, batch, loss_fn)
        scale = float(reference.abs().median())
        for row in range(min(len(reference), 3)):
            for what, changed, at in _changes(batch, other, row):
                moved = float((_losses(model, changed, loss_fn)[at] - reference[row]).abs())
                relative = moved / max(abs(float(reference[row])), scale, 1e-30)
                if not relative <= tolerance:
                    raise PrivacyRefusal(
                        coupling_message(model, batch, changed, row, at, what, loss_fn, relative, "loss")
                    )
                worst = max(worst, relative)
    return worst


def _changes(batch: dict[str, Tensor], other: dict[str, Tensor], row: int) -> list[tuple[str, dict[str, Tensor], int]]:
    """What is changed around an example, the changed batch, and where the example then stands."""
    changes = [("content", with_other_content(batch, other, row), row), ("number", select(batch, [row]), 0)]
    if (longer := with_longer_neighbours(batch, row)) is not None:
        changes.append(("length", longer, row))
    return changes


def _independence(
    model: nn.Module,
    batch: dict[str, Tensor],
    other: dict[str, Tensor],
    loss_fn: LossFunction,
    parameters: dict[str, nn.Parameter],
    reference: list[dict[str, Tensor]],
    tolerance: float,
) -> float:
    count, worst = _batch_size(batch), 0.0
    scale = float(torch.stack([_norm(g) for g in reference]).median())
    for row in range(min(count, 3)):
        for what, changed, at in _changes(batch, other, row):
            found = _gradients(model, changed, loss_fn, parameters, rows=[at])[0]
            moved = _norm({k: found[k] - reference[row][k] for k in found})
            relative = float(moved / max(float(_norm(reference[row])), scale, 1e-30))
            if not relative <= tolerance:
                raise PrivacyRefusal(coupling_message(model, batch, changed, row, at, what, loss_fn, relative))
            worst = max(worst, relative)
    return worst


def _clipping(
    model: nn.Module,
    batch: dict[str, Tensor],
    loss_fn: LossFunction,
    make: MakeClipper | None,
    parameters: dict[str, nn.Parameter],
    reference: list[dict[str, Tensor]],
    tolerance: float,
    independence: float,
    private_records: bool,
) -> PreflightReport:
    count = _batch_size(batch)
    norms = torch.stack([_norm(g) for g in reference])
    bound = 0.5 * float(norms[norms > 0].median()) if bool((norms > 0).any()) else 1.0
    unused = tuple(name for name in parameters if not any(bool(g[name].any()) for g in reference))
    factors = [min(1.0, bound / max(float(n), 1e-30)) for n in norms]
    whole = _clipped_sum(model, batch, loss_fn, make, bound, parameters)
    agreement = 0.0
    for name in parameters:
        expected = torch.zeros_like(whole[name])
        for gradient, factor in zip(reference, factors):
            expected.add_(gradient[name], alpha=factor)
        size = float(expected.norm())
        difference = float(expected.sub_(whole[name]).norm()) / max(size, 1e-3 * bound)
        if not difference <= tolerance:
            raise UnsupportedModel(
                f"parameter {name!r}: the clipped sum differs from one backward pass per example by {difference:.2g}"
                f" and must stay within {tolerance:g}; freeze it with requires_grad=False, or report its module"
                f" ({_module_of(model, name)})."
            )
        agreement = max(agreement, difference)
    ratio = 0.0
    for row in range(count):
        rest = _clipped_sum(
            model, select(batch, [i for i in range(count) if i != row]), loss_fn, make, bound, parameters
        )
        ratio = max(ratio, float(_norm({k: whole[k] - rest[k] for k in whole})) / bound)
    if not ratio <= 1 + tolerance:
        raise PrivacyRefusal(
            f"leaving one example out moves the clipped sum by {ratio:.4g} C and must move it by at most C; the clipper"
            " or the loss is not bounded per example, so no noise multiplier holds."
        )
    return PreflightReport(
        examples=count,
        independence=independence,
        agreement=agreement,
        sensitivity_over_bound=ratio,
        unused=unused,
        private_records=private_records,
    )


def _losses(model: nn.Module, batch: dict[str, Tensor], loss_fn: LossFunction) -> Tensor:
    losses = loss_fn(model, batch)
    if losses.ndim != 1 or len(losses) != _batch_size(batch):
        raise InvalidValue(
            f"loss_fn returned shape {tuple(losses.shape)} and must return ({_batch_size(batch)},), one loss for each"
            f" example; use {OUR_LOSSES} or a mean over each example's own tokens."
        )
    return losses


def _gradients(
    model: nn.Module,
    batch: dict[str, Tensor],
    loss_fn: LossFunction,
    parameters: dict[str, nn.Parameter],
    rows: list[int] | None = None,
) -> list[dict[str, Tensor]]:
    """Each example's gradient by its own autograd call, in at least fp32."""
    losses = _losses(model, batch, loss_fn)
    found = []
    for row in range(len(losses)) if rows is None else rows:
        grads = torch.autograd.grad(losses[row], list(parameters.values()), retain_graph=True, allow_unused=True)
        found.append(
            {
                name: _wide(torch.zeros_like(p)) if g is None else _wide(g)
                for (name, p), g in zip(parameters.items(), grads)
            }
        )
    return found


def _clipped_sum(
    model: nn.Module,
    batch: dict[str, Tensor],
    loss_fn: LossFunction,
    make: MakeClipper | None,
    bound: float,
    parameters: dict[str, nn.Parameter],
) -> dict[str, Tensor]:
    for p in parameters.values():
        p.grad = None
    if make is None:
        from dpaudit.trainers.ghost.clipper import GhostClipping

        make = GhostClipping
    clipper = make(model, bound)
    with clipper if isinstance(clipper, AbstractContextManager) else nullcontext():
        clipper.backward(loss_fn(model, batch))
    sums = {
        name: _wide(torch.zeros_like(p)) if p.grad is None else _wide(p.grad.detach()) for name, p in parameters.items()
    }
    for p in parameters.values():
        p.grad = None
    return sums


def _refuse_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
            raise PrivacyRefusal(
                f"module {name!r} ({type(module).__name__}) mixes the examples of a batch and keeps statistics without"
                " noise; replace it by GroupNorm or LayerNorm, or freeze it in eval mode."
            )


@contextmanager
def _without_dropout(model: nn.Module, losses: Callable[[], Tensor]) -> Iterator[None]:
    """Dropout off, and as little else changed as that takes; gradients, modes and random state come back afterwards.

    First every dropout layer's rate is set to zero, which leaves the model in its mode. Where the losses still vary
    from call to call (dropout inside attention kernels), everything but normalisation goes to eval mode.
    """
    modes = {module: module.training for module in model.modules()}
    rates = {module: module.p for module in modes if isinstance(module, nn.modules.dropout._DropoutNd)}
    kept = {p: p.grad for p in model.parameters()}
    state = torch.get_rng_state()
    try:
        for layer in rates:
            layer.p = 0.0
        with torch.no_grad():
            steady = torch.equal(losses(), losses())
        if not steady:
            for module in modes:
                if not isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = False
        with torch.enable_grad():
            yield
    finally:
        for layer, rate in rates.items():
            layer.p = rate
        for module, mode in modes.items():
            module.training = mode
        for p, grad in kept.items():
            p.grad = grad
        torch.set_rng_state(state)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _norm(gradients: Mapping[str, Tensor]) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients.values()])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def _module_of(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__
