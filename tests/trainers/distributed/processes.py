"""Processes of one gloo group for tests, and the ways in which people apply ``fully_shard``."""

from __future__ import annotations

import datetime
import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

SECONDS = 240


def together(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``work(rank, *arguments)`` in ``world`` forked processes of one gloo group; what each returned.

    Workers are forked, so that what the test has imported is there; an exception in one is raised here with its text.
    """
    context = multiprocessing.get_context("fork")
    folder.mkdir(parents=True, exist_ok=True)
    started = [context.Process(target=_run, args=(rank, world, folder, work, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    failures = [path.read_text() for path in sorted(folder.glob("failure*"))]
    assert not failures, "\n".join(failures)
    assert all(process.exitcode == 0 for process in started), [process.exitcode for process in started]
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(world)]


def _run(rank: int, world: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS / 2)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timeout
    )
    try:
        torch.save(work(rank, *arguments), folder / f"result{rank}")
    except BaseException:
        (folder / f"failure{rank}").write_text(traceback.format_exc())
        raise
    dist.destroy_process_group()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: the members of its lists of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(m) for found in lists for member in found for m in member.modules()}
    return [member for found in lists if id(found) not in inside for member in found]


def owners_of(model: nn.Module, *, without: list[nn.Module]) -> list[list[nn.Module]]:
    """Modules with parameters of their own outside some parts, those that share one parameter together."""
    inside = {id(m) for part in without for m in part.modules()}
    groups: list[tuple[set[int], list[nn.Module]]] = []
    for module in model.modules():
        own = {id(p) for p in module._parameters.values() if p is not None}
        if not own or id(module) in inside:
            continue
        joined = [group for group in groups if group[0] & own]
        groups = [group for group in groups if not group[0] & own]
        ids = own.union(*(group[0] for group in joined))
        groups.append((ids, [*(m for group in joined for m in group[1]), module]))
    return [members for _, members in groups]


def shard(model: nn.Module, layout: str, *, mesh: Any = None, **options: Any) -> nn.Module:
    """Apply ``fully_shard`` by blocks, by leaves, or in the groups that accelerate makes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    if layout == "leaves":
        for group in owners_of(model, without=[]):
            if model not in group:
                fully_shard(group if len(group) > 1 else group[0], mesh=mesh, **options)
    else:
        blocks = blocks_of(model)
        for block in blocks:
            fully_shard(block, mesh=mesh, **options)
        if layout == "accelerate":  # what is outside the blocks, the last of it kept gathered
            rest = [group for group in owners_of(model, without=blocks) if model not in group]
            last = [module for group in rest[1:] for module in group]
            for group in rest[:1]:
                fully_shard(group if len(group) > 1 else group[0], mesh=mesh, **options)
            if last:
                fully_shard(last, mesh=mesh, reshard_after_forward=False, **options)
    fully_shard(model, mesh=mesh, **options)
    return model
