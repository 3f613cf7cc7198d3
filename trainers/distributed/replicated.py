"""Several processes, one private run: each draws from its own shard, one adds the noise, all apply the same sum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from dpaudit import MemoryJournal
from dpaudit.privacy import validate
from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.privacy.protocols import Journal
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers.distributed.reduction import Reduction, reduction_for
from dpaudit.trainers.distributed.shards import any_process, first_process, gather_nothing, has_shards, is_sharded
from dpaudit.trainers.distributed.watched import spread
from dpaudit.trainers.observer import Canaries, Recorder
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.refusals import refuse_model
from dpaudit.trainers.sampling import PoissonSampler, Sampler
from dpaudit.trainers.step import trainable
from dpaudit.trainers.units import Units, draws_of
from dpaudit.trainers.witness import ReleaseRecorder


class DistributedOptions(TypedDict):
    """Keyword arguments of ``train`` for one of several processes."""

    sampler: Sampler
    reduction: Reduction
    journal: Journal
    canaries: NotRequired[Canaries | None]
    recorder: NotRequired[Recorder | None]


class ShardSampler:
    """Poisson draws from the records rank, rank + world, rank + 2 world, …, each with the GLOBAL q.

    Every record lies in exactly one shard and is drawn independently, so the processes' draws together are one
    Poisson draw; nothing about a draw is sent between processes.

    Parameters
    ----------
    n_records : int
        Records of the whole data set.
    sampling_probability : float
        q of the whole run.
    rank, world : int
    canaries : int
        Members among the in-run canaries of this process, which it alone draws, behind the records.
    """

    is_test = False

    def __init__(
        self, n_records: int, sampling_probability: float, *, rank: int, world: int, canaries: int = 0
    ) -> None:
        validate.integer_at_least(0, rank=rank, canaries=canaries)
        validate.integer_at_least(rank + 1, world=world)
        self.n_records, self._records, self._rank, self._world = n_records + canaries, n_records, rank, world
        self._own = len(range(rank, n_records, world))
        self._inner = PoissonSampler(self._own + canaries, sampling_probability)

    def draw(self) -> NDArray[np.int64]:
        """Sorted indices into the whole data set; those from ``n_records`` on are canaries."""
        drawn = self._inner.draw()
        records, canaries = drawn[drawn < self._own], drawn[drawn >= self._own]
        return np.concatenate([records * self._world + self._rank, canaries - self._own + self._records])


def distributed_options(
    model: nn.Module,
    plan: PrivacyPlan,
    n_records: int,
    *,
    journal: Journal,
    canaries: Canaries | None = None,
    recorder: ReleaseRecorder | None = None,
    units: Units | Iterable[Any] | None = None,
) -> DistributedOptions:
    """What ``train`` needs in each process of an initialised process group (gloo or nccl).

        train(model, records, plan, ..., **distributed_options(model, plan, len(records), journal=journal))

    A plain model is made equal to rank 0's, and rank 0 adds the noise, once and at full scale, to its own sum before
    the sums are added up: no process sees the noise alone. A model to which ``fully_shard`` (FSDP2) was applied stays
    sharded: sums are brought to the owners of their coordinates, and each owner adds the noise of its own.

    Rank 0 counts every step in ``journal``, and no step is released before it is counted. The others keep a journal in
    memory. ``plan`` is the global plan in every process: q, L and σ are those of the whole run.

    In-run ``canaries`` and a ``recorder`` of releases are given here and not to ``train``; those of rank 0 count, which
    alone draws and scores canaries and keeps the record. With shards the owner of a coordinate adds and reads what is
    there, so that scores and record are those of one process.

    ``units`` are those that ``train`` takes, the same in every process. Where whole units are drawn, each lies in one
    process with all its records; without ``units``, ``n_records`` is then the number of units.

    Parameters
    ----------
    model : nn.Module
        The same in every process, or sharded by ``fully_shard``.
    plan : PrivacyPlan
        Of the whole run, the same in every process.
    n_records : int
        Records of the whole run, the same in every process.
    journal : Journal
        Counts every step, in rank 0.
    canaries : Canaries, optional
        In-run canaries, for rank 0.
    recorder : ReleaseRecorder, optional
        Record of the releases' energy; that of rank 0 is kept.
    units : iterable, optional
        Name of each record's unit of privacy.

    Returns
    -------
    DistributedOptions
        Keyword arguments of ``train``: sampler, reduction, journal and, where they were given, canaries and recorder.

    Raises
    ------
    PrivacyRefusal
        If no process group exists, the plan's sampling couples shards, or the model is wrapped or sharded otherwise.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise PrivacyRefusal(
            "no process group is initialised; start with torchrun and call"
            " torch.distributed.init_process_group('gloo')."
        )
    refuse_coupled_sampling(plan)
    if has_shards(model):
        gather_nothing(model)
    refuse_model(model)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = (plan, n_records)
    if any_process(first_process(mine) != mine):
        raise PrivacyRefusal(
            "the processes hold different plans or different numbers of records, so that one record could move the sum"
            " by more than the plan's bound; give every process the same plan and the same records in the same order."
        )
    share_weights(model)
    trained = list(trainable(model).values())
    own = canaries if rank == 0 else None
    watching: tuple[Canaries | None, Recorder | None] = own, recorder if rank == 0 else None
    if has_shards(model):
        watching = spread(trained, canaries, recorder)
    options = DistributedOptions(
        sampler=ShardSampler(
            n_records if units is None else draws_of(plan, n_records, units).count,
            plan.sampling_probability,
            rank=rank,
            world=world,
            canaries=0 if own is None else own.members,
        ),
        reduction=reduction_for(model, trained),
        journal=journal if rank == 0 else MemoryJournal(),
    )
    if canaries is not None or watching[0] is not None:
        options["canaries"] = watching[0]
    if recorder is not None or watching[1] is not None:
        options["recorder"] = watching[1]
    return options


def share_weights(model: nn.Module) -> None:
    """Make every process's parameters and buffers those of rank 0, where they are whole."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if not is_sharded(tensor):
            dist.broadcast(tensor.data, src=0)


def refuse_coupled_sampling(plan: PrivacyPlan) -> None:
    """Refuse draws of which the processes' shards are not independent.

    Raises
    ------
    PrivacyRefusal
        Names the sampling.
    """
    if plan.sampling not in (Sampling.POISSON, Sampling.NONE):
        raise PrivacyRefusal(
            f"sampling={str(plan.sampling)!r} would need the processes to agree on a draw; use sampling='poisson'."
        )
