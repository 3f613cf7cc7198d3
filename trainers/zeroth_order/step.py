"""One zeroth-order private step: per-example differences, clip, one noisy sum per direction, update.

For a direction v and scale β, Δ = (f(θ + βv; x) − f(θ − βv; x)) / 2β is one number per example. The P numbers of an
example are clipped, summed over the minibatch, noised and divided by a constant; that P-vector is all that leaves the
private side. The update θ ← θ − η[(1/P) Σ_p G_p v_p + γ(θ − anchor)] is post-processing.

Sources: MeZO (Malladi et al., 2305.17333), DPZero (Zhang et al., 2310.09639), DP-ZO (Tang et al., 2401.04343),
DP-ZOSO / DP-ZOPO (Liu et al., 2402.07818), DP-AggZO (Bao et al., USENIX Security 2025).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.stage import Clip, Mechanism
from dpaudit.trainers.noise import Noise, sample_double
from dpaudit.trainers.objective import LossFunction
from dpaudit.trainers.rows import one_loss_per_record
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.zeroth_order.coordinates import Masks, Moving, moving
from dpaudit.trainers.zeroth_order.directions import Buffer, DirectionAt, Directions, block_size, part_buffer
from dpaudit.trainers.zeroth_order.perturb import BitCache, Perturbation

# Directions that depend on private data are no longer public: each of these needs a privacy budget of its own.
DATA_DEPENDENT = {
    "agzo": "takes its directions from the activations of private records",
    "p-gap": "takes its directions from gradients of private records",
    "fzoo": "sets its step from the spread of private losses",
    "grzo": "gives every record a direction of its own and normalises over the group",
    "mezo-gv": "chooses among directions by private loss",
    "greedy": "chooses among directions by private loss",
    "loss_selected_layers": "chooses layers by private loss",
}


def refuse_data_dependent(directions: object) -> None:
    """Refuse directions that are not a pure function of a public key.

    Raises
    ------
    PrivacyRefusal
        For a method of ``DATA_DEPENDENT`` by name, or for any object that is not a :class:`Directions`.
    """
    if isinstance(directions, str) and directions.lower().replace("_", "-") in {
        name.replace("_", "-") for name in DATA_DEPENDENT
    }:
        reason = DATA_DEPENDENT.get(directions.lower(), DATA_DEPENDENT.get(directions.lower().replace("-", "_"), ""))
        raise PrivacyRefusal(
            f"method {directions!r} {reason}, which the ledger does not charge; choose directions from a public key."
        )
    if type(directions) is not Directions:
        raise PrivacyRefusal(
            f"directions of type {type(directions).__name__} may depend on private data, which the ledger does not"
            " charge; pass dpaudit.trainers.Directions(run=...)."
        )


class Chunk(NamedTuple):
    """One physical batch, of which the first ``real`` rows count."""

    batch: Any
    real: int
    collated: int | None = None
    """Records given to the collator, repeated ones included, each of which must have one loss; None if unknown."""


@torch.no_grad()
def loss_differences(
    model: nn.Module,
    chunks: Sequence[Chunk | tuple[Any, int]],
    loss_fn: LossFunction,
    perturb: Perturbation,
    *,
    step: int,
    directions: Sequence[int],
    scale: float,
    state: ModelState | None = None,
) -> tuple[Tensor, Tensor]:
    """Δ of every example in every direction asked for, and its mean loss over them.

    Parameters
    ----------
    chunks : sequence of Chunk, or of (batch, real)
        Physical batches; only the first ``real`` losses of each count, the rest is padding.
    directions : sequence of int
        Numbers of the directions to evaluate (all P of a step, or one process's share).
    scale : float
        β > 0.
    state : ModelState or None
        What is put back after each forward pass, so that no record is seen in the loss of another.

    Returns
    -------
    differences : Tensor
        fp64 of shape (len(directions), B); may hold NaN or infinities, which :func:`clip_differences` turns to 0.
    losses : Tensor
        fp64 of shape (B,), the mean of all evaluations. Both are private.
    """
    validate.positive(scale=scale)
    rows = []
    total = torch.zeros(sum(chunk[1] for chunk in chunks), dtype=torch.float64)
    for direction in directions:
        with perturb.at(step=step, direction=direction, scale=scale):
            above = _losses(model, chunks, loss_fn, state)
        with perturb.at(step=step, direction=direction, scale=-scale):
            below = _losses(model, chunks, loss_fn, state)
        rows.append((above - below) / (2 * scale))
        total += (above + below) / (2 * len(directions))
    return torch.stack(rows) if rows else torch.zeros(0, total.numel(), dtype=torch.float64), total


def _losses(
    model: nn.Module, chunks: Sequence[Chunk | tuple[Any, int]], loss_fn: LossFunction, state: ModelState | None
) -> Tensor:
    found = []
    for chunk in chunks:
        batch, real, collated = Chunk(*chunk)
        with contextlib.nullcontext() if state is None else state:
            losses = loss_fn(model, batch)
        if collated is not None:
            one_loss_per_record(losses, records=collated)
        if losses.ndim != 1 or losses.shape[0] < real:
            raise InvalidValue(
                f"loss_fn returned shape {tuple(losses.shape)} for {real} examples and must return one loss per"
                " example, shape (B,); a mean over the batch cannot be clipped per record."
            )
        if losses.dtype not in (torch.float32, torch.float64):
            raise InvalidValue(
                f"loss_fn returned {str(losses.dtype).removeprefix('torch.')} and must return float32 or float64;"
                " a half-precision loss loses the difference of two passes to rounding."
            )
        found.append(losses[:real].to("cpu", torch.float64))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def clip_differences(differences: Tensor, clipping_norm: float, clip: Clip) -> Tensor:
    """Bound what one example adds to the released P-vector.

    Parameters
    ----------
    differences : Tensor
        fp64 of shape (P, B).
    clipping_norm : float
        C > 0. ``per_direction``: each number is cut to [−C, C], so one record moves the sum by at most C√P in L2.
        ``joint``: each example's P-vector is scaled by min(1, C/‖Δ‖₂), so one record moves the sum by at most C.

    Returns
    -------
    Tensor
        fp64 of shape (P, B), finite: a NaN or infinite difference counts as 0, silently, since an error would tell
        that such a record is there.
    """
    validate.positive(clipping_norm=clipping_norm)
    finite = torch.where(torch.isfinite(differences), differences, torch.zeros((), dtype=differences.dtype))
    if Clip(clip) is Clip.PER_DIRECTION:
        return finite.clamp(-clipping_norm, clipping_norm)
    if math.isinf(clipping_norm):
        return finite
    # Numbers up to 1e308 are first divided by the largest of their column, so that no square overflows and the scaled
    # vector keeps full precision.
    largest = finite.abs().amax(dim=0).clamp(min=1e-300)
    unit = finite / largest
    norms = unit.square().sum(dim=0).sqrt()
    return torch.where(norms > clipping_norm / largest, unit * (clipping_norm / norms.clamp(min=1.0)), finite)


def release(
    clipped: Tensor, *, noise_std: float, normaliser: float, noise: Noise, mechanism: Mechanism = Mechanism.GAUSSIAN
) -> list[float]:
    """The noisy vector G = (Σ_i h_i + noise) / normaliser, one number per direction.

    Parameters
    ----------
    clipped : Tensor
        fp64 of shape (P, B); B = 0 is a release like any other.
    noise_std : float
        σC of the Gaussian, or the scale b = σC of the Laplace mechanism.
    normaliser : float
        A public constant (q times the public size), never the realised batch size.
    """
    validate.positive(normaliser=normaliser)
    validate.non_negative(noise_std=noise_std)
    sums = clipped.sum(dim=1)
    if Mechanism(mechanism) is Mechanism.LAPLACE:
        # The determinant of a 2x2 matrix of independent N(0, 1) has the Laplace law of scale 1.
        a, b, c, d = sample_double(noise, (4, sums.numel()), 1.0)
        drawn = noise_std * (a * b - c * d)
    else:
        drawn = sample_double(noise, (sums.numel(),), noise_std)
    found: list[float] = ((sums + drawn) / normaliser).tolist()
    return found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pull:
    """The proximal pull γ(θ − anchor) towards the weights with which a stage began.

    Parameters
    ----------
    strength : float
        γ > 0.
    anchor : mapping of str to Tensor
        Weights by name.
    """

    strength: float
    anchor: Mapping[str, Tensor]


@torch.no_grad()
def apply_update(
    parameters: Mapping[str, nn.Parameter],
    directions: Directions,
    released: Sequence[float],
    *,
    step: int,
    learning_rate: float,
    pull: Pull | None = None,
    masks: Masks | None = None,
    cache: BitCache | None = None,
) -> None:
    """θ ← θ − η[(1/P) Σ_p G_p v_p + γ(θ − anchor)], in place, on the masked coordinates or on all.

    Every operation is one correctly rounded addition or multiplication in a fixed order, so that the same numbers
    rebuild the same weights on another machine. The proximal pull is added once, not per direction, and touches no
    data, so it costs no privacy.
    """
    cache = BitCache(0) if cache is None else cache
    factors = [torch.tensor(learning_rate * g / len(released), dtype=torch.float32) for g in released]
    buffers: dict[torch.device, Buffer] = {}
    most = max((each.size for each in moving(parameters, masks)), default=0)
    for each in moving(parameters, masks):
        flat, mask = each.flat, each.mask
        if flat.device not in buffers:
            buffers[flat.device] = part_buffer(most, flat.device)
        buffer, back = buffers[flat.device], None
        if pull is not None:
            held = pull.anchor[each.name].view(-1)
            back = (flat - held) if mask is None else (flat[mask.index] - held[mask.index])
            back.mul_(learning_rate * pull.strength)
        target = flat if mask is None else flat[mask.index]
        if back is not None:
            target.sub_(back)
        _subtract(target, directions, factors, step=step, part=each, cache=cache, buffer=buffer)
        if mask is not None:
            flat.index_copy_(0, mask.index, target)


def _subtract(
    target: Tensor,
    directions: Directions,
    factors: Sequence[Tensor],
    *,
    step: int,
    part: Moving,
    cache: BitCache,
    buffer: Buffer,
) -> None:
    """target −= Σ_p factor_p · v_p, block by block, the sum over p taken before it meets the weights."""
    size, start, mask, device = target.numel(), part.start, part.mask, target.device
    # One direction is often still in the cache from its forward passes; several never are.
    words = (
        cache.words(DirectionAt(directions, step, 0), part.name, start + size)
        if len(factors) == 1 and device.type == "cpu"
        else None
    )
    scales = [factor.to(device) for factor in factors]
    streams = [
        directions.stream(step=step, direction=p, tensor=part.name).blocks(
            size, start=start, device=device, words=words, buffer=buffer
        )
        for p in range(len(factors))
    ]
    total = torch.empty(min(size, block_size(device)) if len(factors) > 1 else 0, dtype=torch.float32, device=device)
    for low, high, values in streams[0]:
        values.mul_(scales[0])
        if len(streams) > 1:  # the streams share their memory
            values = total[: high - low].copy_(values)
            for stream, scale in zip(streams[1:], scales[1:], strict=True):
                values.add_(next(stream)[2].mul_(scale))
        if mask is not None and mask.weight is not None:
            values.mul_(mask.weight[low:high])
        target[low:high].sub_(values)
