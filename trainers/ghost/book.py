"""The uses of each parameter in one backward pass, the per-example norms that follow, and the clipped sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

import torch
from torch import Tensor, nn

from dpaudit.trainers.ghost.cost import choose
from dpaudit.trainers.ghost.cross import Use, cross
from dpaudit.trainers.ghost.head import HeadUse, UnitHeadUse
from dpaudit.trainers.ghost.retained import Retained
from dpaudit.trainers.ghost.uses import Grams, MatrixUse, Scratch

#: |G|² from Gram matrices is recomputed from G itself where the terms summed are this much larger than the result:
#: every term carries a relative rounding error of 6e-8 in fp32, and the norm must hold to 1e-6.
CANCELLATION = 16.0


class Phase(Enum):
    """What a pass does with a use."""

    KEEP = "keep"  # norm now, the use waits for its factor
    NORMS = "norms"  # norm now, the use is dropped
    SUMS = "sums"  # the factor is known: add to the sum, drop the use


@dataclasses.dataclass(slots=True, eq=False)
class Book:
    """One backward pass over B examples.

    Parameters
    ----------
    size : int
        B.
    phase : Phase
        What to do with uses.
    layer_of : dict
        The layer (0..L-1) of every trainable parameter.
    paired : set
        Parameters whose uses are kept in any phase, for their cross terms.
    exact : bool
        Write G down everywhere; Gram matrices cancelled too much.
    factors : Tensor, optional
        (layers, B), in phase SUMS.
    sums : dict, optional
        Running sums, to which those of phase SUMS and of :meth:`settle` are added.
    ready : callable, optional
        Takes, in phase SUMS, every parameter whose sum is complete: one that is not paired, at its use.
    writes_down : bool
        Whether G may be written down and kept, where that is fastest, in the place of a and b.
    retained : Retained, optional
        Notes what keeping the uses would hold.
    """

    size: int
    phase: Phase
    layer_of: dict[nn.Parameter, int]
    paired: set[nn.Parameter]
    exact: bool = False
    factors: Tensor | None = None
    uses: dict[nn.Parameter, list[Use]] = dataclasses.field(default_factory=dict)
    seen: dict[nn.Parameter, None] = dataclasses.field(default_factory=dict)
    lost: set[nn.Parameter] = dataclasses.field(default_factory=set)
    squares: list[tuple[int, Tensor]] = dataclasses.field(default_factory=list)
    scales: list[Tensor] = dataclasses.field(default_factory=list)
    sums: dict[nn.Parameter, Tensor] = dataclasses.field(default_factory=dict)
    ready: Callable[[nn.Parameter, Tensor | None], None] | None = None
    writes_down: bool = True
    retained: Retained | None = None
    grams: Grams = dataclasses.field(default_factory=Grams)
    scratch: Scratch = dataclasses.field(default_factory=Scratch)
    _some_zero: bool | None = None

    def add(self, parameter: nn.Parameter, use: Use) -> None:
        """Note one use of a parameter."""
        if self.phase is Phase.SUMS:
            self._sum(parameter, [use])
            if self.ready is not None and parameter not in self.paired:
                self.ready(parameter, self.sums.pop(parameter))
            return
        if self.retained is not None:
            self.retained.note(use)
        if isinstance(use, MatrixUse):
            _, length, inputs = use.a.shape
            keeps = self.writes_down and self.phase is Phase.KEEP
            words = float(use.a.numel() + use.b.numel()) if keeps else 0.0
            use.strategy = choose(self.size, length, inputs, use.b.shape[2], keep_words=words, exact=self.exact)
        elif isinstance(use, HeadUse):
            use.exact = self.exact
        earlier = self.uses.setdefault(parameter, [])
        if parameter in self.seen and not earlier:
            # Its first use was dropped, and its cross terms with it: the pass has to be made again, keeping them. It
            # goes on to its end, since a sharded model would not recover from an exception inside it.
            self.lost.add(parameter)
        self.seen[parameter] = None
        layer = self.layer_of[parameter]
        for other in earlier:
            part = cross(other, use)
            self.squares.append((layer, 2 * part.value))
            self.scales.append(2 * part.scale)
        own = use.square(self.grams)
        self.squares.append((layer, own.value))
        self.scales.append(own.scale)
        if self.phase is Phase.KEEP or parameter in self.paired:
            earlier.append(use)

    def norms(self, layers: int) -> tuple[Tensor, Tensor]:
        """Squared norms (layers, B) in fp64, and the indices of examples whose terms cancelled too much for trust."""
        self.grams.clear()
        values = torch.stack([value.double() for _, value in self.squares])
        index = torch.tensor([layer for layer, _ in self.squares], device=values.device)
        squares = values.new_zeros(layers, self.size).index_add_(0, index, values)
        scale = torch.stack([value.double() for value in self.scales]).sum(0)
        # Written as "not <=" so that NaN is not flagged as cancellation: it stays NaN and contributes zero.
        suspicious = (scale > CANCELLATION * squares.sum(0).clamp_min(0)) & scale.isfinite()
        return squares, suspicious.nonzero().squeeze(1)

    def recompute(self, squares: Tensor, rows: Tensor) -> Tensor:
        """Squared norms with those of ``rows`` taken from G itself, one example at a time."""
        squares = squares.clone()
        squares[:, rows] = 0
        for parameter, uses in self.uses.items():
            for row in rows.unbind():
                full = sum(use.instance(row[None]).double() for use in uses)
                assert isinstance(full, Tensor)
                squares[self.layer_of[parameter], row] += full.square().sum()
        return squares

    def settle(self, factors: Tensor, order: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """The clipped sums by (layers, B) factors, from the uses that were kept: one parameter at a time, in ``order``.

        A parameter that no example used has None. The uses of a parameter are gone once its sum was given, so that one
        whole sum is alive at a time.
        """
        self.factors = factors
        for parameter in order:
            # Matrix products can write a fresh sum and the other uses add into one, so matrix products go first.
            uses = sorted(
                self.uses.pop(parameter, ()), key=lambda use: not isinstance(use, MatrixUse | HeadUse | UnitHeadUse)
            )
            if uses:
                self._sum(parameter, uses)
            del uses
            yield parameter, self.sums.pop(parameter, None)

    def _sum(self, parameter: nn.Parameter, uses: list[Use]) -> None:
        assert self.factors is not None
        factors = self.factors[self.layer_of[parameter]]
        # 0 · x is NaN where x is infinite or NaN, so what has the factor zero is taken out instead of multiplied.
        if self._some_zero is None:  # asked once a pass, since the answer waits for the device
            self._some_zero = bool((self.factors == 0).any())
        rows = factors.nonzero().squeeze(1) if self._some_zero else None
        for use in uses:
            chosen = use if rows is None else use.select(rows)
            weights = factors if rows is None else factors[rows]
            total = self.sums.get(parameter)
            if isinstance(chosen, MatrixUse):
                self.sums[parameter] = chosen.weighted(weights, total, self.scratch)
            else:
                self.sums[parameter] = chosen.weighted(weights, total)
