"""A whole model brought into shards layer by layer, and its weights and optimizer state brought together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.trainers.distributed.shards import as_sharded, first_coordinate, gather_nothing, has_shards, local, whole
from dpaudit.trainers.step import trainable


def shard_layers(model: nn.Module) -> None:
    """Apply ``fully_shard`` (FSDP2) to the repeated layers of a model and then to the rest, over all processes.

    Repeated layers are the members of its outermost ``nn.ModuleList`` objects, as in the models of transformers. Every
    process calls it, with equal weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inside: set[nn.Module] = set()
    for module in model.modules():  # outer modules come before inner ones
        if isinstance(module, nn.ModuleList) and module not in inside:
            inside |= set(module.modules())
            for layer in module:
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_optimizer_state(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The optimizer state of a plain model, from every process's own, on the CPU of the first one; None in the others.

    Moments are gathered one at a time; every process calls it.

    Parameters
    ----------
    model : nn.Module
        In shards, or whole.
    state : mapping
        ``TrainingResult.optimizer_state`` of this process.
    """
    parameters = _parameters(model)
    found: dict[int, dict[str, Any]] = {}
    for index, values in sorted(state["state"].items()):
        found[index] = {key: _whole(parameters[index], value) for key, value in values.items()}
    return {**state, "state": found} if dist.get_rank() == 0 else None


def own_optimizer_state(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """This process's part of a plain model's optimizer state."""
    parameters = _parameters(model)
    found = {
        index: {key: own_part(parameters[index], value) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": found}


def whole_by_name(model: nn.Module, parts: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Tensors spread like the trained parameters, whole, on the CPU of the first process; every process calls it."""
    if parts is None:
        return None
    parameters = {name: p for name, p in _named(model).items() if name in parts}
    found = {name: _whole(p, parts[name]) for name, p in sorted(parameters.items())}
    return found if dist.get_rank() == 0 else None


def own_by_name(model: nn.Module, wholes: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """This process's parts of whole tensors that belong to trained parameters."""
    if wholes is None:
        return None
    return {name: own_part(p, wholes[name]) for name, p in _named(model).items() if name in wholes}


def own_part(parameter: nn.Parameter, value: Any) -> Any:
    """This process's rows of a tensor of a parameter's whole shape; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    part, start = local(parameter), first_coordinate(parameter)
    return value.reshape(-1)[start : start + part.numel()].view(part.shape).to(part.device, copy=True)


def _whole(parameter: nn.Parameter, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != local(parameter).shape:
        return value
    found = whole(as_sharded(parameter, value))
    return found.cpu() if dist.get_rank() == 0 else None


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    if has_shards(model):
        gather_nothing(model)
    return trainable(model)


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(_named(model).values())
