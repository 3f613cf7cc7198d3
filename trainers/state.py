"""What a forward pass writes into a model: found by value, named, and put back.

A buffer or attribute that training forwards change is a function of private records. It would leave with the model
without noise, and carry one record into the loss of another. Watched are the buffers of every module and the tensors,
arrays and floats that its Python attributes hold, also inside lists, dictionaries and plain objects, and which module
stands at which name. Parameters are the optimizer's. Whole numbers, names and callables are not watched: a count of
calls is no statistic of a record.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_INTERNAL = frozenset(vars(nn.Module()))
"""Attributes of every module: its registers, hooks and mode."""
_COMPOSABLE = "__composable_api_state_key"
"""Start of the attribute in which torch keeps the state of ``fully_shard``: its buffers, and no part of the model."""
_PLAIN = (int, bool, str, bytes, type(None))
_DEPTH = 5
_LONGEST = 4096
"""Longer containers (vocabularies) are not looked into."""
_SMALL = 2**16
"""Tensors up to this size are compared by value at every step, larger ones by torch's count of writes."""


@dataclasses.dataclass(slots=True, eq=False)
class _Leaf:
    """A tensor, array or float, with a copy of its content."""

    value: Any
    copy: Any
    version: int

    def same(self, now: Any, *, quick: bool) -> bool:
        """Whether ``now`` has the content; ``quick`` trusts the count of writes for large tensors."""
        if isinstance(self.copy, float):
            return isinstance(now, float) and (now == self.copy or (math.isnan(now) and math.isnan(self.copy)))
        if type(now) is not type(self.value) or now.shape != self.copy.shape or now.dtype != self.copy.dtype:
            return False
        if isinstance(now, np.ndarray):
            return bool(np.array_equal(now, self.copy))
        if quick and now is self.value and _version(now) == self.version and now.numel() > _SMALL:
            return True
        return now.device == self.copy.device and _equal(now.detach(), self.copy)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the object its content back."""
        if isinstance(self.value, Tensor):
            if self.value.shape == self.copy.shape:
                self.value.data.copy_(self.copy)
            else:
                self.value.data = self.copy.clone()
            self.version = _version(self.value)
        elif isinstance(self.value, np.ndarray):
            np.copyto(self.value, self.copy)


@dataclasses.dataclass(slots=True, eq=False)
class _Slot:
    """One buffer or attribute: what stood there, its leaves by path, and the containers between."""

    owner: dict[Any, Any]
    key: Any
    value: Any
    leaves: dict[str, _Leaf]
    containers: list[tuple[Any, Any]]

    def restore(self) -> None:
        """Put the value back, its containers with what they held, and every leaf with its content."""
        for container, content in self.containers:
            if isinstance(container, dict):
                container.clear()
                container.update(content)
            else:
                container[:] = content  # a list
        for leaf in self.leaves.values():
            leaf.restore()
        self.owner[self.key] = self.value


class ModelState:
    """Buffers and attribute tensors of a model, as they stand now; its parameters are not part of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._children = [(prefix, module, dict(module._modules)) for prefix, module in model.named_modules()]
        self._slots = {name: _saved(owner, key, value, seen) for name, owner, key, value, seen in _slots(model)}

    def __enter__(self) -> ModelState:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def refresh(self) -> None:
        """Let what the model holds now be what :meth:`restore` puts back; copies only where something differs."""
        if self.exchanged() or self._differences(quick=True):
            now = ModelState(self.model)
            self._slots, self._children = now._slots, now._children

    def changed(self, *, quick: bool = False) -> list[str]:
        """Dotted names of what is no longer as it was, or was not there."""
        return [name for name, _, _ in self._differences(quick)]

    def exchanged(self) -> list[str]:
        """Dotted names at which another module stands than stood there, or none, or one where there was none."""
        return [
            f"{prefix}.{name}" if prefix else name
            for prefix, module, children in self._children
            for name in {**children, **module._modules}
            if module._modules.get(name) is not children.get(name)
        ]

    def restore(self) -> None:
        """Put everything back that is no longer as it was, and take away what was not there."""
        if self.exchanged():
            for _, module, children in self._children:
                module._modules.clear()
                module._modules.update(children)
            self.restore_settings()  # a name or number says which of the modules stands there
        for name, owner, key in self._differences(quick=True):
            if name in self._slots:
                self._slots[name].restore()
            else:
                del owner[key]

    def restore_settings(self) -> None:
        """Put names, whole numbers and switches back, which :meth:`restore` leaves to the model."""
        for name, owner, key, value, _ in list(_slots(self.model)):
            slot = self._slots.get(name)
            if slot is None and type(value) in _PLAIN:
                del owner[key]
            elif slot is not None and type(slot.value) in _PLAIN and type(value) in _PLAIN:
                owner[key] = slot.value

    def differs(self, other: ModelState) -> list[str]:
        """Names of what holds another content than in ``other``, a state of the same model at another time."""
        names = {**self._slots, **other._slots}
        return [name for name in names if not _same_copies(self._slots.get(name), other._slots.get(name))]

    def _differences(self, quick: bool) -> list[tuple[str, dict[Any, Any], Any]]:
        found, met = [], set()
        for name, owner, key, value, seen in _slots(self.model):
            met.add(name)
            slot = self._slots.get(name)
            kept = {} if slot is None else slot.leaves
            if not kept and type(value) in _PLAIN:
                continue
            leaves = dict(_leaves(value, "", seen, _DEPTH, None))
            if leaves.keys() != kept.keys() or any(not kept[p].same(v, quick=quick) for p, v in leaves.items()):
                found.append((name, owner, key))
        gone = (name for name, slot in self._slots.items() if name not in met and slot.leaves)
        return found + [(name, self._slots[name].owner, self._slots[name].key) for name in gone]


def frozen_state(model: nn.Module) -> AbstractContextManager[Any]:
    """Put back, on leaving, every buffer and attribute tensor that the forward passes inside have written.

    For training loops of one's own: around the forward and backward pass of each batch, so that nothing but the noisy
    release remains of it. ``train``, ``DPTrainer`` and ``zo_train`` do it by themselves.

    Examples
    --------
    >>> norm = nn.InstanceNorm1d(2, track_running_stats=True)
    >>> with frozen_state(norm):
    ...     _ = norm(torch.randn(3, 2, 5))
    >>> norm.running_mean.tolist()
    [0.0, 0.0]
    """
    return ModelState(model)


def _slots(model: nn.Module) -> Iterator[tuple[str, dict[Any, Any], Any, Any, set[int]]]:
    """Every buffer and attribute: name, the dictionary it stands in, its key, its value, and what was met before."""
    modules = list(model.named_modules())
    seen = {id(module) for _, module in modules}
    for prefix, module in modules:
        dot = f"{prefix}." if prefix else ""
        for key, value in list(module._buffers.items()):
            yield dot + key, module._buffers, key, value, seen
        for key, value in list(vars(module).items()):
            if key not in _INTERNAL and not key.startswith(_COMPOSABLE):
                yield dot + key, vars(module), key, value, seen


def _saved(owner: dict[Any, Any], key: Any, value: Any, seen: set[int]) -> _Slot:
    containers: list[tuple[Any, Any]] = []
    leaves = {path: _leaf(leaf) for path, leaf in _leaves(value, "", seen, _DEPTH, containers)}
    return _Slot(owner, key, value, leaves, containers)


def _leaves(
    value: Any, path: str, seen: set[int], depth: int, containers: list[tuple[Any, Any]] | None
) -> Iterator[tuple[str, Any]]:
    """Tensors, arrays and floats below ``value``, by path; containers on the way are appended with their content."""
    if type(value) in _PLAIN:
        return
    if isinstance(value, (Tensor, np.ndarray, float)):
        yield path, value
        return
    inside = _inside(value)
    if inside is None or depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    for container in inside:
        if containers is not None and not isinstance(container, tuple):
            containers.append((container, dict(container) if isinstance(container, dict) else list(container)))
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items):
            if not (isinstance(value, nn.Module) and key in _INTERNAL):
                yield from _leaves(item, f"{path}.{key}", seen, depth - 1, containers)


def _inside(value: Any) -> list[Any] | None:
    """Dictionaries and sequences that hold what ``value`` is made of; None for what is not looked into."""
    if isinstance(value, (dict, list, tuple)):
        return [value] if len(value) <= _LONGEST else None
    if isinstance(value, collections.deque):
        return [_Queue(value)]
    if isinstance(value, nn.Module):  # held in a plain list, past the model's register
        return [value._buffers, vars(value)]
    if isinstance(value, type) or callable(value) or not hasattr(value, "__dict__"):
        return None
    return [vars(value)]


class _Queue(list[Any]):
    """A deque's content, which is given back to the deque."""

    def __init__(self, queue: collections.deque[Any]) -> None:
        super().__init__(queue)
        self._queue = queue

    def __setitem__(self, index: Any, content: Any) -> None:
        self._queue.clear()
        self._queue.extend(content)


def _leaf(value: Any) -> _Leaf:
    if isinstance(value, Tensor):
        return _Leaf(value, value.detach().clone(), _version(value))
    return _Leaf(value, np.array(value) if isinstance(value, np.ndarray) else value, 0)


def _same_copies(one: _Slot | None, other: _Slot | None) -> bool:
    left, right = ({} if slot is None else slot.leaves for slot in (one, other))
    if left.keys() != right.keys():
        return False
    return all(
        isinstance(leaf.copy, type(right[path].copy))
        and _Leaf(leaf.copy, leaf.copy, -1).same(right[path].copy, quick=False)
        for path, leaf in left.items()
    )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _equal(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    return one.is_floating_point() and bool(((one == other) | (one.isnan() & other.isnan())).all())
