"""Fixed random numbers, so that a loss that changes between two batches changed because of the other records.

Dropout and random masking are independent of the other records, and so no coupling; but their draws would differ from
batch to batch and hide one. Every random operation of torch gives a constant, and the generators of Python and numpy
start from the same state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_UNIFORM = 0.05
"""Below the usual rates of masking, so that a random mask covers something."""


class StillRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Inside, random operations of torch return the same value for every row and position.

    Coins come out heads, uniform numbers small, permutations reversed; dropout lets everything pass.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return found
        name, _, overload = func.name().removeprefix("aten::").partition(".")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(found[1])
        if isinstance(found, Tensor):
            _still(name.rstrip("_"), overload, found, args)
        return found


def _still(name: str, overload: str, found: Tensor, args: tuple[Any, ...]) -> None:
    """Fill what a random operation returned; operations that are not listed keep their draw."""
    if name == "randperm":
        found.copy_(found.sort().values.flip(0))
    elif name == "multinomial":
        found.copy_(args[0].argmax(-1, keepdim=True).expand_as(found))
    elif name in ("bernoulli", "binomial", "_standard_gamma"):
        found.fill_(1)
    elif name in ("rand", "rand_like", "uniform"):
        low, high = (*args[1:3], 0.0, 1.0)[:2] if name == "uniform" and len(args) > 2 else (0.0, 1.0)
        found.fill_(low + _UNIFORM * (high - low))
    elif name in ("randn", "randn_like", "normal", "normal_functional", "exponential", "log_normal", "cauchy"):
        found.fill_(0.5)
    elif name == "_sample_dirichlet":
        found.fill_(1 / found.shape[-1])
    elif name in ("randint", "randint_like", "random", "geometric", "poisson"):
        found.fill_(_lowest(name, overload, args))


def _lowest(name: str, overload: str, args: tuple[Any, ...]) -> int:
    if name in ("geometric", "poisson"):
        return 1
    if name == "randint":
        return int(args[0]) if overload.startswith("low") else 0
    return int(args[1]) if overload in ("low_dtype", "from") else 0


def _seed_torch(seed: int) -> None:
    """Seed torch's generators, on a machine without accelerator the CPU's alone.

    There ``torch.manual_seed`` notes a call for each kind of accelerator and formats the whole stack each time: most of
    a preflight's time, and a list that grows for as long as the process lives.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Give the generators of torch, numpy and Python back the state they had, on leaving."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def still_randomness(seed: int = 20) -> Iterator[None]:
    """Fix every random number within the block."""
    with generators_kept(), StillRandomness():  # type: ignore[no-untyped-call]
        _seed_torch(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
