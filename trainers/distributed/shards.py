"""Parameters that live in shards, one in each process (FSDP2's ``fully_shard``), and sums brought to their owners.

While a module runs, FSDP2 gathers its weights whole, so that a process sees whole layers and its own examples: norms
and clipping factors need no communication. Only the clipped sums do. Nothing here relies on FSDP2's own reduction,
which averages, and which some releases of torch got wrong on gloo: without gradients of its own it does none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal, UnsupportedModel


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor: spread over processes."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def has_shards(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model or a part of it."""
    return any("FSDPModule" in {kind.__name__ for kind in type(module).__mro__} for module in model.modules())


def refuse_other_shards(model: nn.Module) -> None:
    """Refuse what is not data parallel: shards along other axes, tensor parallel weights, a mix with whole weights.

    Raises
    ------
    PrivacyRefusal
        Names the parameter and the remedy.
    """
    states: list[Any] = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    held = [p for module in states for group in _groups(module._get_fsdp_state()) for p in group.fsdp_params]
    shards = {id(p.sharded_param) for p in held if not p.is_dtensor}  # what was a DTensor before is tensor parallel
    gathered = {id(p._unsharded_param) for p in held if hasattr(p, "_unsharded_param") and not p.is_dtensor}
    for name, p in model.named_parameters():
        if is_sharded(p):
            _check_placements(name, p, known=id(p) in shards)
        elif held and p.requires_grad and id(p) not in gathered:
            raise PrivacyRefusal(
                f"parameter {name!r} is whole in every process while others are sharded, so that its sum would be"
                " released once a process; apply fully_shard to the whole model, last."
            )


def _groups(state: Any) -> list[Any]:
    found = getattr(state, "_fsdp_param_groups", None)
    if found is None:  # torch < 2.13 has one group a state
        found = [state._fsdp_param_group]
    return [group for group in found if group is not None]


def _check_placements(name: str, parameter: Any, *, known: bool) -> None:
    kinds = [type(placement).__name__ for placement in parameter.placements]
    dims = [getattr(placement, "dim", 0) for placement in parameter.placements]
    if known and kinds in (["Shard"], ["Replicate", "Shard"]) and dims[-1] == 0:
        return
    placed = ", ".join(str(placement) for placement in parameter.placements)
    raise PrivacyRefusal(
        f"parameter {name!r} is placed as ({placed}), which is not data parallel over its first axis: with tensor,"
        " sequence or expert parallel a process sees parts of a layer or of an example, and no norm here holds; use"
        " fully_shard on a mesh of one axis, or of two (replicas x shards)."
    )


def gather_nothing(model: nn.Module) -> None:
    """Give every gathered weight back, so that the model's parameters are the shards and the next pass gathers anew."""
    states: list[Any] = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    for module in states:
        if any(not group.is_sharded for group in _groups(module._get_fsdp_state())):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    found: Tensor = tensor.detach()._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def whole(tensor: Any) -> Tensor:
    """A tensor's value in full; where it is sharded, every process asks together."""
    found: Tensor = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()
    return found


def first_coordinate(parameter: Any) -> int:
    """How many coordinates of the flattened parameter stand before this process's part of it."""
    if not is_sharded(parameter) or not parameter.numel():
        return 0
    mesh = parameter.device_mesh
    rows = math.ceil(parameter.shape[0] / mesh.size(mesh.ndim - 1)) * mesh.get_local_rank(mesh.ndim - 1)
    return int(min(rows, parameter.shape[0]) * (parameter.numel() // parameter.shape[0]))


def refuse_other_types(model: nn.Module) -> None:
    """Refuse shards that are gathered in another type than they are kept in.

    Raises
    ------
    UnsupportedModel
        A perturbation of half-precision weights would be lost to their rounding.
    """
    states: list[Any] = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    for group in (group for module in states for group in _groups(module._get_fsdp_state())):
        wanted = group.mp_policy.param_dtype
        for p in group.fsdp_params:
            kept = p.sharded_param.dtype
            if p.sharded_param.requires_grad and wanted not in (None, kept):
                name = p._module_info.param_name
                raise UnsupportedModel(
                    f"mp_policy gathers the trained {name!r} as {str(wanted).removeprefix('torch.')} and it is kept as"
                    f" {str(kept).removeprefix('torch.')}, so that a perturbation would be lost to rounding; apply"
                    " fully_shard without param_dtype (mixed_precision: no)."
                )


def as_sharded(parameter: Any, part: Tensor) -> Tensor:
    """This process's part of a sum as a tensor spread like ``parameter``; the part itself where that is whole.

    Over copies of the shards (HSDP) it is a partial sum, which ``redistribute`` or ``full_tensor`` adds up.
    """
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor, Partial

    mesh = parameter.device_mesh
    placements = [Partial("sum"), parameter.placements[-1]] if mesh.ndim == 2 else list(parameter.placements)
    whole: Tensor = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return whole


def shard_group(parameter: Any) -> Any:
    """The processes over which a parameter's shards are spread."""
    return parameter.device_mesh.get_group(parameter.device_mesh.ndim - 1)


def replica_group(parameter: Any) -> Any:
    """The processes that hold the same shard of a parameter (HSDP); None without replicas."""
    return parameter.device_mesh.get_group(0) if parameter.device_mesh.ndim == 2 else None


def is_first_replica(parameter: Any) -> bool:
    """Whether this process holds the first copy of its shard: the one copy that gets noise."""
    return bool(parameter.device_mesh.ndim == 1 or parameter.device_mesh.get_local_rank(0) == 0)


class Scatter:
    """Sums of whole parameters, added up over processes and kept in shards, parameter by parameter.

    Each process gives the sum of its own examples for every parameter in one and the same order. A sum is sent while
    the next is computed, so that two whole sums are alive at most. Rows are cut as ``fully_shard`` cuts them: chunks of
    ceil(n / world), the last ones shorter or empty.

    Parameters
    ----------
    onto : dict of nn.Parameter to Tensor
        Running local sums, which the arriving ones are added to.
    """

    def __init__(self, onto: dict[nn.Parameter, Tensor]) -> None:
        self._onto = onto
        self._under_way: tuple[nn.Parameter, Tensor, Any, Tensor] | None = None

    @torch.no_grad()
    def give(self, parameter: nn.Parameter, total: Tensor | None) -> None:
        """Send one whole sum; None for a parameter that no example here used."""
        group = shard_group(parameter)
        world, shape = dist.get_world_size(group), parameter.shape
        rows = math.ceil(shape[0] / world)
        if total is not None and rows * world == shape[0]:
            padded = total.detach().reshape(shape).contiguous()
        else:
            kind = parameter.dtype if parameter.dtype is torch.float64 else torch.float32
            padded = torch.zeros((rows * world, *shape[1:]), dtype=kind, device=local(parameter).device)
            if total is not None:
                padded[: shape[0]].copy_(total.detach().view(shape))
        mine = padded.new_empty((rows, *shape[1:]))
        work = dist.reduce_scatter_tensor(mine, padded, group=group, async_op=True)
        self.settle()
        self._under_way = (parameter, mine, work, padded)

    @torch.no_grad()
    def settle(self) -> None:
        """Wait for the sum that is being added up."""
        if self._under_way is None:
            return
        parameter, mine, work, _ = self._under_way
        work.wait()
        self._under_way = None
        owned = mine[: local(parameter).shape[0]]  # without the rows that pad the last shards
        if parameter in self._onto:
            self._onto[parameter].add_(owned)
        else:
            self._onto[parameter] = owned


class InOrder:
    """Passes items on in a fixed order, whatever the order in which they arrive.

    Parameters
    ----------
    order : iterable of nn.Parameter
    send : callable
        ``send(parameter, total)``, called once for each parameter, in order.
    """

    def __init__(self, order: Iterable[nn.Parameter], send: Callable[[nn.Parameter, Tensor | None], None]) -> None:
        self._order, self._send = list(order), send
        self._next = 0
        self._waiting: dict[nn.Parameter, Tensor | None] = {}

    def offer(self, parameter: nn.Parameter, total: Tensor | None) -> None:
        """A parameter's sum is complete."""
        self._waiting[parameter] = total
        while self._next < len(self._order) and self._order[self._next] in self._waiting:
            self._advance()

    def finish(self) -> None:
        """Send what is left; a parameter that never came has no sum."""
        while self._next < len(self._order):
            self._advance()

    def _advance(self) -> None:
        parameter = self._order[self._next]
        self._next += 1
        self._send(parameter, self._waiting.pop(parameter, None))


def any_process(flag: bool) -> bool:
    """Whether any process says so; all of them ask together."""
    said = torch.tensor([int(flag)], device=_device())
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said[0])


def first_process(value: Any) -> Any:
    """The first process's value, in every process."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _device() -> torch.device:
    """Where the default group communicates."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@torch.no_grad()
def add_up_replicas(parameters: Iterable[nn.Parameter], sums: Iterable[Tensor]) -> None:
    """Add local sums up over the processes that hold the same shard, in place."""
    for parameter, total in zip(parameters, sums, strict=True):
        group = replica_group(parameter)
        if group is not None and total.numel():
            dist.all_reduce(total, group=group)
