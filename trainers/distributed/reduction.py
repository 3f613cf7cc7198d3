"""How the processes of a run make one release together: alone, each with the whole model, or each with a shard of it.

A process clips its own examples. What happens between the clipped sums and the one noisy release is a *reduction*:
which processes add noise, to which coordinates, and how sums and counts are added up. Every coordinate of a release
gets noise exactly once, at full scale, from the entropy of the process that adds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal, StorageFailed
from dpaudit.privacy.protocols import Journal
from dpaudit.trainers.distributed.shards import (
    add_up_replicas,
    any_process,
    gather_nothing,
    has_shards,
    is_first_replica,
    is_sharded,
    local,
    refuse_other_shards,
)

_BUCKET = 2**24  # elements that one collective carries


class Reduction(Protocol):
    """What the processes of a run do together; ``OneProcess`` says what that is for a single one."""

    @property
    def leads(self) -> bool:
        """Whether this process counts the steps, writes the run's files and noises what all know: rank 0."""

    @property
    def adds_noise(self) -> bool:
        """Whether this process adds noise to the sums that it hands to :meth:`add_up`."""

    @property
    def shares_passes(self) -> bool:
        """Whether all processes must make the same number of forward passes."""

    def owned(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """The tensors that this process updates, sharing the parameters' memory."""

    def begin(self, model: nn.Module, passes: int, *, failed: bool = False) -> int:
        """Agree on the micro-batches of a step, once rank 0 has counted it; the largest number that any asks for.

        Raises
        ------
        StorageFailed
            If another process says that it failed.
        """

    def any(self, flag: bool) -> bool:
        """Whether any process says so; a question for all of them at once."""

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Add this process's sums, noise included, up over those that hold the same coordinates, in place."""

    def add_up_number(self, number: Tensor) -> None:
        """Add one number up over all processes, in place."""


class OneProcess:
    """No other process."""

    leads, adds_noise, shares_passes = True, True, False

    def owned(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """The parameters themselves."""
        return list(parameters)

    def begin(self, model: nn.Module, passes: int, *, failed: bool = False) -> int:
        """The passes themselves."""
        return passes

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def add_up_number(self, number: Tensor) -> None:
        """Nothing to add."""


class Replicated:
    """Every process holds the whole model; rank 0 adds the noise, once, before the sums are added up.

    Parameters
    ----------
    device : torch.device
        Where the process group communicates.
    """

    shares_passes = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.leads = self.adds_noise = dist.get_rank() == 0

    def owned(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """The parameters themselves."""
        return list(parameters)

    def begin(self, model: nn.Module, passes: int, *, failed: bool = False) -> int:
        """The largest number of passes; each process makes its own here. See :class:`Reduction`."""
        return _agreed(passes, failed, self._device)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return any_process(flag)

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Sum over all processes."""
        sum_over_processes(list(sums))

    def add_up_number(self, number: Tensor) -> None:
        """Sum over all processes."""
        dist.all_reduce(number)


class Sharded:
    """Every process holds a shard of the model (FSDP2), or of one of several copies of it (HSDP).

    The clipper has already added the sums up over the shards' processes; each of these adds noise to its own shard,
    so that a coordinate's noise is drawn once, by its owner, and no process ever draws for the whole model. With
    copies, the first one alone adds noise, before the copies' sums are added up, so that all copies stay equal.

    Parameters
    ----------
    model : nn.Module
        After ``fully_shard``.
    parameters : sequence of nn.Parameter
        The trained ones, in the order in which sums come.

    Raises
    ------
    PrivacyRefusal
        For shards that are not data parallel; see :func:`refuse_other_shards`.
    """

    shares_passes = True

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        refuse_other_shards(model)
        self._parameters = tuple(parameters)
        self._device = local(self._parameters[0]).device
        self.leads = dist.get_rank() == 0
        spread: list[Any] = list(self._parameters)
        if len({p.device_mesh for p in spread}) != 1:
            raise PrivacyRefusal("the model's parts are sharded over different meshes; shard all of it over one mesh.")
        self.adds_noise = is_first_replica(self._parameters[0])
        self._refuse_holes()

    def _refuse_holes(self) -> None:
        """Every coordinate has exactly one owner among those that add noise, or noise would be missing or doubled."""
        owned = torch.tensor([local(p).numel() * self.adds_noise for p in self._parameters], device=self._device)
        dist.all_reduce(owned)
        for p, found in zip(self._parameters, owned.tolist(), strict=True):
            if found != p.numel():
                raise PrivacyRefusal(
                    f"a parameter of shape {tuple(p.shape)} has {found} coordinates in the shards and {p.numel()} in"
                    " all, so that noise would be missing or doubled; shard the whole model over all processes."
                )

    def owned(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """This process's shards."""
        return [local(p) for p in parameters]

    def begin(self, model: nn.Module, passes: int, *, failed: bool = False) -> int:
        """The largest number of passes, which every process then makes; gathered weights are given back first."""
        agreed = _agreed(passes, failed, self._device)
        gather_nothing(model)
        return agreed

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return any_process(flag)

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Sum over the copies of each shard; without copies there is nothing left to add."""
        add_up_replicas(self._parameters, sums)

    def add_up_number(self, number: Tensor) -> None:
        """Sum over all processes."""
        dist.all_reduce(number)


def reduction_for(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Reduction:
    """The reduction that a model needs in the processes at hand.

    Raises
    ------
    PrivacyRefusal
        For a sharded model without a process group.
    """
    sharded = has_shards(model) or any(is_sharded(p) for p in parameters)
    if not dist.is_available() or not dist.is_initialized():
        if sharded:
            raise PrivacyRefusal("the model is sharded and no process group is initialised; start with torchrun.")
        return OneProcess()
    if sharded:
        gather_nothing(model)
        return Sharded(model, parameters)
    return Replicated(parameters[0].device)


def count_together(journal: Journal, together: Reduction, model: nn.Module, passes: int) -> int:
    """Count one step in every process's journal, then agree on its passes: nobody releases before rank 0 has counted.

    A journal that cannot be written ends the step in all processes.
    """
    try:
        journal.count()
    except BaseException:
        together.begin(model, passes, failed=True)
        raise
    return together.begin(model, passes)


def refuse_unshared(model: nn.Module, reduction: Reduction) -> None:
    """Refuse a sharded model whose processes would each release their own shard's sum as if it were the whole.

    Raises
    ------
    PrivacyRefusal
        Says what to pass.
    """
    if has_shards(model) and not isinstance(reduction, Sharded):
        raise PrivacyRefusal(
            "the model is sharded over processes (fully_shard) and the call knows of one process; pass"
            " **distributed_options(model, plan, n_records, journal=journal)."
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


def _agreed(passes: int, failed: bool, device: torch.device) -> int:
    said = torch.tensor([passes, int(failed)], device=device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    if int(said[1]) and not failed:
        raise StorageFailed("another process could not count its step, so that none goes on; see that process's error.")
    return int(said[0])
