"""Checkpoints of sharded runs: a part from each process, read back by any number of them; whole weights at the end.

Tensors go through torch.distributed.checkpoint, numbers into JSON; nothing is pickled, and neither noise nor sampler
state is ever written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.trainers.distributed.shards import gather_nothing, is_sharded, local
from dpaudit.trainers.step import trainable

NUMBERS = "optimizer.json"


def save_sharded(
    folder: Path | str, model: nn.Module, optimizer_state: Mapping[str, Any], *, names: Sequence[str] | None = None
) -> None:
    """Write weights and optimizer state; every process calls it, and each writes its own shards.

    Parameters
    ----------
    folder : path
        One that every process sees.
    model : nn.Module
        After ``fully_shard``.
    optimizer_state : mapping
        ``TrainingResult.optimizer_state`` of this process.
    names : sequence of str, optional
        Parameters in the optimizer's order; by default the model's trainable ones in its own.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    gather_nothing(model)
    names = list(trainable(model)) if names is None else list(names)
    moments = {
        f"{names[index]}/{key}": _like(model.get_parameter(names[index]), value)
        for index, values in optimizer_state["state"].items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    save({"model": _weights(model), "optimizer": moments}, checkpoint_id=str(folder))
    if dist.get_rank() == 0:
        numbers = {
            "param_groups": optimizer_state["param_groups"],
            "state": {
                names[index]: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
                for index, values in optimizer_state["state"].items()
            },
            "moments": {name: str(value.dtype).removeprefix("torch.") for name, value in moments.items()},
        }
        (folder / NUMBERS).write_text(json.dumps(numbers))
    dist.barrier()


def load_sharded(folder: Path | str, model: nn.Module, *, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Read weights into a sharded model, in place, and give this process's optimizer state.

    The number of processes may be another than the one that wrote it.

    Parameters
    ----------
    folder : path
        As :func:`save_sharded` was given; every process must see it.
    model : nn.Module
        After ``fully_shard``; its weights are overwritten.
    names : sequence of str, optional
        Trained parameters, in the order of the optimizer; the trainable ones by default.

    Returns
    -------
    dict
        For ``train(..., optimizer_state=..., start_step=...)``.

    Raises
    ------
    InvalidEvidence
        If the folder holds no checkpoint of this model.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    path = Path(folder) / NUMBERS
    if not path.exists():
        raise InvalidEvidence(f"{folder} holds no {NUMBERS} and so no checkpoint of a sharded run; give its folder.")
    numbers = json.loads(path.read_text())
    gather_nothing(model)
    names = list(trainable(model)) if names is None else list(names)
    if missing := sorted(set(numbers["state"]) ^ set(names)) if numbers["state"] else []:
        raise InvalidEvidence(f"parameter {missing[0]!r} is not in both the model and the checkpoint {folder}.")
    moments: dict[str, Tensor] = {}
    for key, kind in numbers["moments"].items():
        parameter = model.get_parameter(key.rpartition("/")[0])
        empty = torch.empty_like(local(parameter), dtype=getattr(torch, kind), requires_grad=False)
        moments[key] = _like(parameter, empty)
    weights = _weights(model)
    load({"model": weights, "optimizer": moments}, checkpoint_id=str(folder))
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        values = dict(numbers["state"].get(name, {}))
        for key, value in moments.items():
            owner, _, moment = key.rpartition("/")
            if owner == name:
                values[moment] = local(value)
        if values:
            state[index] = values
    return {"state": state, "param_groups": numbers["param_groups"]}


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Every parameter and buffer whole, on the CPU, in the first process; None in the others.

    Parameters are gathered one at a time; every process calls it.
    """
    gather_nothing(model)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            sharded: Any = tensor
            whole = sharded.full_tensor() if is_sharded(tensor) else tensor
            if dist.get_rank() == 0:
                found[name] = whole.detach().cpu()
            del whole
    return found if dist.get_rank() == 0 else None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def _like(parameter: Any, part: Tensor) -> Tensor:
    """A tensor of this process's coordinates as one spread like the parameter."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    spread: Tensor = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
    return spread
