"""In-run canaries and the record of releases beside a model in shards: each owner adds and reads what is in its shard.

The first process has the canaries, their coins, their scores and the record. It tells all where the drawn canaries
add, and every owner tells it what a release shows there: what a process that held the whole model would see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers.distributed.reduction import Reduction, Sharded
from dpaudit.trainers.distributed.shards import first_coordinate, first_process, is_first_replica, local
from dpaudit.trainers.observer import Canaries, Recorder, SparseCanaries
from dpaudit.trainers.witness import ReleaseRecorder


class Held:
    """The coordinates that this process holds, among those of all trained parameters, one after another.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        In the model's order, after ``fully_shard``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.sizes = [p.numel() for p in parameters]
        self.first = np.array([first_coordinate(p) for p in parameters], dtype=np.int64)
        self.counts = np.array([local(p).numel() for p in parameters], dtype=np.int64)
        self.answers = is_first_replica(parameters[0])
        """Whether this process adds and reads for its shard: one of those that hold the same."""
        self.device = local(parameters[0]).device
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])[:-1] + self.first

    def places(self, coordinates: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], Tensor]]:
        """(parameter, positions in ``coordinates``, positions in the shard) of those that this process answers for."""
        if not self.answers:
            return []
        owner = np.searchsorted(self._starts, coordinates, side="right") - 1
        inside = coordinates - self._starts[owner]
        here = (owner >= 0) & (inside < self.counts[owner])
        return [
            (int(number), chosen, torch.from_numpy(inside[chosen]).to(self.device))
            for number in np.unique(owner[here])
            if len(chosen := np.flatnonzero(here & (owner == number)))
        ]


class CanariesOfShards:
    """In-run canaries of one coordinate each, of which every process holds some; the first one has coins and scores.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        In the order in which sums come.
    canaries : SparseCanaries or None
        Those of the run, in the first process; None in the others.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], canaries: SparseCanaries | None) -> None:
        self._own, self._held = canaries, Held(parameters)
        coordinates: NDArray[np.int64] = first_process(None if canaries is None else canaries.coordinates)
        if len(coordinates) and coordinates.max() >= sum(self._held.sizes):
            raise InvalidValue(
                f"an in-run canary lies on coordinate {coordinates.max()} and the model trains"
                f" {sum(self._held.sizes)}; draw the canaries for this model."
            )
        self._count, self._places = len(coordinates), self._held.places(coordinates)

    @property
    def members(self) -> int:
        """Canaries in the data set, all of which the first process draws."""
        return 0 if self._own is None else self._own.members

    @torch.no_grad()
    def add_to(
        self, sums: Sequence[Tensor], drawn: Sequence[int], *, contribution: float | Sequence[float] | None = None
    ) -> None:
        """Add the first process's drawn canaries to the shards' clipped sums, in place, each by its owner."""
        told = None if self._own is None else self._own.added(drawn, contribution=contribution)
        coordinates, values = first_process(told)
        for number, chosen, at in self._held.places(coordinates):
            flat = sums[number].view(-1)
            flat.index_add_(0, at, torch.from_numpy(values[chosen]).to(flat))

    @torch.no_grad()
    def observe(
        self,
        noisy_sums: Sequence[Tensor],
        *,
        deviation: float,
        normaliser: float = 1.0,
        contribution: float | Sequence[float] | None = None,
    ) -> None:
        """Bring what a release shows on the canaries' coordinates to the first process, which scores it."""
        seen = torch.zeros(self._count, dtype=torch.float64, device=self._held.device)
        for number, chosen, at in self._places:
            found = noisy_sums[number].detach().reshape(-1).index_select(0, at)
            seen[torch.from_numpy(chosen).to(seen.device)] = found.double()
        dist.reduce(seen, dst=0)
        if self._own is not None:
            values = seen.cpu().numpy()
            self._own.score(values, deviation=deviation, normaliser=normaliser, contribution=contribution)

    def state(self) -> dict[str, Any]:
        """Accumulators of the first process, for a resume."""
        return {} if self._own is None else self._own.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        if self._own is not None:
            self._own.resume(state)


class RecorderOfShards:
    """The energy record of releases that come in shards; the first process keeps it.

    Sums of squares of disjoint shards add up. Products are taken over the probe, the leading coordinates of every
    parameter, which are brought to the first process: they are the products of one process.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        In the order in which releases come.
    recorder : ReleaseRecorder or None
        The record, in the first process; None in the others.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], recorder: ReleaseRecorder | None) -> None:
        self._own, self._held = recorder, Held(parameters)
        sizes, probe = first_process(None if recorder is None else (recorder.sizes, recorder.probe))
        if list(sizes) != self._held.sizes:
            raise InvalidValue(
                f"the recorder has {len(sizes)} parameters of {sum(sizes)} coordinates and the model trains"
                f" {len(self._held.sizes)} of {sum(self._held.sizes)}; make it of this model's."
            )
        self._probe: tuple[int, ...] = tuple(probe)

    @torch.no_grad()
    def observe(self, released: Sequence[Tensor], deviation: float) -> None:
        """Record one release; every process gives its shards."""
        held = self._held
        squares = torch.zeros(len(released), dtype=torch.float64, device=held.device)
        probe = torch.zeros(sum(self._probe), dtype=torch.float32, device=held.device)
        before = 0
        for number, (shard, wanted) in enumerate(zip(released, self._probe, strict=True)):
            if held.answers:
                flat, first = shard.detach().reshape(-1), int(held.first[number])
                squares[number] = torch.linalg.vector_norm(flat, dtype=torch.float64) ** 2 / deviation**2
                count = max(0, min(len(flat), wanted - first))
                probe[before + first : before + first + count] = flat[:count]
            before += wanted
        dist.reduce(squares, dst=0)
        dist.reduce(probe, dst=0)
        if self._own is not None:
            self._own.record(squares.tolist(), probe, deviation)


def spread(
    parameters: Sequence[nn.Parameter], canaries: Canaries | None, recorder: ReleaseRecorder | None
) -> tuple[Canaries | None, Recorder | None]:
    """The first process's observers, as every process of a sharded run takes part in them; all of them call it.

    Raises
    ------
    PrivacyRefusal
        For canaries that do not say which coordinates are theirs.
    """
    leads = dist.get_rank() == 0
    kind = None if canaries is None else type(canaries).__name__
    kind, known, records = first_process((kind, isinstance(canaries, SparseCanaries), recorder is not None))
    if kind is not None and not known:
        raise PrivacyRefusal(
            f"in-run canaries of type {kind} do not say which coordinates are theirs, which shards"
            " need; use InRunCanaries, or train whole copies."
        )
    own = canaries if leads and isinstance(canaries, SparseCanaries) else None
    return (
        CanariesOfShards(parameters, own) if kind is not None else None,
        RecorderOfShards(parameters, recorder if leads else None) if records else None,
    )


def refuse_observers_of_the_whole(together: Reduction, canaries: Canaries | None, recorder: Recorder | None) -> None:
    """Refuse observers that would take a shard for the whole model.

    Raises
    ------
    PrivacyRefusal
        Says where to give them.
    """
    spread_out = isinstance(canaries, CanariesOfShards | None) and isinstance(recorder, RecorderOfShards | None)
    if isinstance(together, Sharded) and not spread_out:
        raise PrivacyRefusal(
            "the model is sharded, and canaries and recorder given to train would take a shard for the whole; give them"
            " to distributed_options(..., canaries=canaries, recorder=recorder)."
        )
