"""The clipped sum of some units of privacy, as a value that carries its own sensitivity to the noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.clipping import Clipping
from dpaudit.trainers.distributed.shards import as_sharded, local


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ClippedSum:
    """Σ cᵤ gᵤ over some units, noise-free and therefore private, with the most that one unit adds to it.

    Parameters
    ----------
    sums : mapping of nn.Parameter to Tensor
        One sum for each parameter that was reached, of its shape, in at least fp32.
    norms : Tensor of shape (U,)
        Norms of the units' gradients before clipping, PRIVATE.
    bound : float
        L2 sensitivity of the sum: adding or removing one unit moves it by at most this.
    """

    sums: Mapping[nn.Parameter, Tensor]
    norms: Tensor
    bound: float

    def noise_std(self, noise_multiplier: float) -> float:
        """σ times the bound: standard deviation of the noise that each coordinate of the sum needs; 0 where σ is 0."""
        validate.non_negative(noise_multiplier=noise_multiplier)
        return noise_multiplier * self.bound if noise_multiplier else 0.0

    def totals(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The sums in the order of ``parameters``; zeros where nothing was added, as for an empty draw.

        Of a sharded parameter it is this process's shard.
        """
        return [_empty(p) if p not in self.sums else self.sums[p].view(local(p).shape) for p in parameters]

    def deliver(self) -> None:
        """Add the sums into ``p.grad``, which stays fp32 also for narrower weights."""
        for parameter, total in self.sums.items():
            _deliver(parameter, total)


class Clipper(Protocol):
    """Adds Σ cᵢgᵢ into ``p.grad`` and returns the (B,) norms, which are private."""

    def backward(self, losses: Tensor, /) -> Tensor: ...


@runtime_checkable
class Summing(Protocol):
    """A clipper whose sum is a value of its own, with the bound that it kept."""

    def clipped_sum(self, losses: Tensor, /, *, units: Tensor | None = None) -> ClippedSum: ...


@runtime_checkable
class AddingOnto(Summing, Protocol):
    """A clipper whose ``clipped_sum`` adds to the sums given as ``onto``, where ``adds_onto`` is true.

    One whole gradient is then alive instead of two. A clipper without the attribute is handed no sums.
    """

    adds_onto: bool


@runtime_checkable
class Ruled(Protocol):
    """A clipper that states its rule; without one, its contributions are bounded by the plan's clipping norm C."""

    clipping: Clipping


@runtime_checkable
class Layered(Ruled, Protocol):
    """A clipper that names the layers among which per-layer clipping divides C."""

    layers: tuple[str, ...]


def rule_of(clipper: Clipper | Summing) -> Clipping | None:
    """The clipping rule that a clipper states; None where it states none."""
    return clipper.clipping if isinstance(clipper, Ruled) else None


class Declared:
    """Makes a sum with a bound out of a clipper that has ``backward`` alone; whoever wrote it answers for the bound.

    Parameters
    ----------
    clipper : Clipper
    parameters : sequence of nn.Parameter
        Where it leaves its sums.
    bound : float
        Declared L2 sensitivity of its sum.
    """

    def __init__(self, clipper: Clipper, parameters: Sequence[nn.Parameter], bound: float) -> None:
        self._clipper, self._parameters, self._bound = clipper, tuple(parameters), bound

    def clipped_sum(self, losses: Tensor, /, *, units: Tensor | None = None) -> ClippedSum:
        """What ``backward`` left in ``p.grad``, taken away from there; it has one loss for each unit either way."""
        for p in self._parameters:
            p.grad = None
        norms = self._clipper.backward(losses)
        sums = {p: wide(local(p.grad.detach())) for p in self._parameters if p.grad is not None}
        for p in self._parameters:
            p.grad = None
        return ClippedSum(sums, norms.detach(), self._bound)


class RunningSum:
    """The clipped sum of one draw, added up over its micro-batches in at least fp32.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = tuple(parameters)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._norms: list[Tensor] = []
        self._bound: float | None = None
        self.clear()

    def clear(self) -> None:
        """Set every sum, and every parameter's ``grad``, back to nothing."""
        self._sums.clear()
        self._norms.clear()
        self._bound = None
        for p in self._parameters:
            p.grad = None

    def add(self, part: ClippedSum) -> None:
        """Add the sum of one micro-batch, whose tensors are handed over.

        Raises
        ------
        InvalidValue
            If its units were clipped to another bound than those before: their sum would have no one sensitivity.
        """
        if self._bound is not None and part.bound != self._bound:
            raise InvalidValue(
                f"micro-batches of one draw were clipped to {self._bound} and to {part.bound}, and need one bound; keep"
                " the clipping rule during a step."
            )
        self._bound = part.bound
        self._norms.append(part.norms)
        for p, total in part.sums.items():
            mine = self._sums.get(p)
            self._sums[p] = total.detach() if mine is None else mine.add_(total.detach())

    def clip(self, clipper: Summing, losses: Tensor, *, units: Tensor | None = None, counts: bool = True) -> None:
        """Add the clipped sum of one micro-batch; without ``counts`` its norms belong to no record and are dropped.

        See :class:`AddingOnto` for clippers that add to the running sums themselves.
        """
        options: dict[str, Any] = {} if units is None else {"units": units}
        if isinstance(clipper, AddingOnto) and clipper.adds_onto:
            options["onto"], self._sums = self._sums, {}
        part = clipper.clipped_sum(losses, **options)
        self.add(part if counts else dataclasses.replace(part, norms=part.norms[:0]))

    def total(self, bound: float) -> ClippedSum:
        """The sum, which is then cleared here; ``bound`` is that of an empty draw, for which no clipper ran."""
        norms = torch.cat(self._norms) if self._norms else torch.zeros(0)
        found = ClippedSum(dict(self._sums), norms, bound if self._bound is None else self._bound)
        self.clear()
        return found


def summing(clipper: Clipper | Summing, parameters: Sequence[nn.Parameter], bound: float) -> Summing:
    """A clipper whose sum is a value: itself, or :class:`Declared` for one that has ``backward`` alone."""
    if isinstance(clipper, Summing):
        return clipper
    return Declared(clipper, parameters, bound)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32; fp64 stays fp64."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _empty(parameter: nn.Parameter) -> Tensor:
    kind = parameter.dtype if parameter.dtype is torch.float64 else torch.float32
    return torch.zeros(local(parameter).shape, dtype=kind, device=parameter.device)


def _deliver(parameter: nn.Parameter, total: Tensor) -> None:
    # Recorded inputs carry a graph; a sum that kept it would hold every activation until the next step.
    total = as_sharded(parameter, total.detach().view(local(parameter).shape))
    if parameter.grad is not None:
        parameter.grad.add_(total)
        return
    if total.dtype != parameter.dtype:
        parameter.grad_dtype = total.dtype
    parameter.grad = total
