"""Several processes, one private run: each draws from its own shard, one adds the noise, all apply the same sum."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit import Journal, MemoryJournal, Sampling
from dpaudit.privacy import validate
from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.refusals import refuse_model
from dpaudit.trainers.sampling import PoissonSampler, Sampler
from dpaudit.trainers.step import Reduce

_BUCKET = 2**24  # elements that one collective carries


class DistributedOptions(TypedDict):
    """Keyword arguments of ``train`` for one of several processes."""

    sampler: Sampler
    reduce: Reduce
    adds_noise: bool
    journal: Journal


class ShardSampler:
    """Poisson draws from the records rank, rank + world, rank + 2 world, …, each with the GLOBAL q.

    Every record lies in exactly one shard and is drawn independently, so the processes' draws together are one
    Poisson draw; nothing about a draw is sent between processes.
    """

    is_test = False

    def __init__(self, n_records: int, sampling_probability: float, *, rank: int, world: int) -> None:
        validate.integer_at_least(0, rank=rank)
        validate.integer_at_least(rank + 1, world=world)
        self._rank, self._world = rank, world
        self._inner = PoissonSampler(len(range(rank, n_records, world)), sampling_probability)

    def draw(self) -> NDArray[np.int64]:
        """Sorted indices into the whole data set."""
        return self._inner.draw() * self._world + self._rank


def distributed_options(model: nn.Module, plan: PrivacyPlan, n_records: int, *, journal: Journal) -> DistributedOptions:
    """What ``train`` needs in each process of an initialised process group (gloo or nccl).

        train(model, records, plan, ..., **distributed_options(model, plan, len(records), journal=journal))

    The model is made equal to rank 0's. Rank 0 counts every step in ``journal`` and adds the noise, once and at full
    scale, to its own sum before the sums are added up: no process sees the noise alone, and no step is released before
    it is counted. The others keep a journal in memory. ``plan`` is the global plan in every process: q, L and σ are
    those of the whole run.

    Raises
    ------
    PrivacyRefusal
        If no process group exists, the plan's sampling couples shards, or the model is wrapped.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise PrivacyRefusal(
            "no process group is initialised; start with torchrun and call"
            " torch.distributed.init_process_group('gloo')."
        )
    if plan.sampling not in (Sampling.POISSON, Sampling.NONE):
        raise PrivacyRefusal(
            f"sampling={str(plan.sampling)!r} would need the processes to agree on a draw; use sampling='poisson'."
        )
    refuse_model(model)
    rank, world = dist.get_rank(), dist.get_world_size()
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.data, src=0)
    return DistributedOptions(
        sampler=ShardSampler(n_records, plan.sampling_probability, rank=rank, world=world),
        reduce=sum_over_processes,
        adds_noise=rank == 0,
        journal=journal if rank == 0 else MemoryJournal(),
    )


def sum_over_processes(tensors: list[Tensor]) -> None:
    """Add tensors up over all processes, in place, a bucket at a time."""
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        full = bucket and (tensor is None or sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET)
        if full or (bucket and tensor is not None and tensor.dtype != bucket[0].dtype):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat)
            for member, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                member.copy_(part.view(member.shape))
            bucket = []
        if tensor is not None:
            bucket.append(tensor)
