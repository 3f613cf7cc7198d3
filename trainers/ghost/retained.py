"""Whether the output gradients that clipped sums need take more memory than a backward pass gives back on its way.

A backward pass frees what the forward pass saved for it, layer by layer, unless the graph is retained for a second
pass. Where it frees at least as much as is kept for the sums, one pass that keeps costs no more memory than two that
keep nothing. That is so for most transformers: attention, activations and normalisations save as much as the layers'
outputs. It is not so where activations are checkpointed or offloaded, and in networks whose layers save only their
inputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dpaudit.trainers.ghost.cross import Use
from dpaudit.trainers.ghost.uses import DirectUse, MatrixUse, RowUse


class PackedTensors:
    """Watches, in the forward passes of a model, whether saved tensors are packed: checkpointed or offloaded.

    To look at a checkpointed tensor is to compute it again, so that a graph with packed tensors is not looked into.

    Parameters
    ----------
    model : nn.Module
        All of its modules are watched until :meth:`close`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seen = False
        self._handles = [module.register_forward_pre_hook(self._look) for module in model.modules()]

    def _look(self, module: nn.Module, args: Any) -> None:
        self.seen = self.seen or _is_packing()

    def close(self) -> None:
        """Watch no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _is_packing() -> bool:
    """Whether hooks pack the tensors that are saved now; also true where this torch cannot tell."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


@dataclasses.dataclass(slots=True, eq=False)
class Retained:
    """What a graph holds, against what uses would hold.

    Parameters
    ----------
    graph : dict of int to int
        Bytes of every storage that the graph saved, by address.
    staying : set of int
        Addresses of those that uses hold as well: layers' inputs, which keeping does not free.
    added : int
        Bytes that uses hold beside them: output gradients.
    largest : int
        Bytes of the largest of them.
    counted : dict of int to StorageWeakRef
        The storages among ``added``, by address.
    """

    graph: dict[int, int]
    staying: set[int] = dataclasses.field(default_factory=set)
    added: int = 0
    largest: int = 0
    counted: dict[int, StorageWeakRef] = dataclasses.field(default_factory=dict)

    def note(self, use: Use) -> None:
        """A use that would be kept; that of a head in chunks holds what its graph holds."""
        match use:
            case MatrixUse():
                held: tuple[Tensor, ...] = (use.a, use.b)
            case RowUse():
                held = (use.b,)
            case DirectUse():
                held = (use.full,)
            case _:
                held = ()
        for tensor in held:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address in self.graph:
                self.staying.add(address)
            elif address not in self.counted or self.counted[address].expired():  # type: ignore[no-untyped-call]
                # An address is given away again after a dropped gradient, and several uses may share one that lives.
                self.counted[address] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.added += storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())

    @property
    def frees_enough(self) -> bool:
        """Whether keeping every use takes no more memory than dropping them and keeping the graph.

        Beside a retained graph stands, at some moment, the largest gradient, so that much is taken in either way.
        """
        freed = sum(size for address, size in self.graph.items() if address not in self.staying)
        return self.added <= freed + self.largest


def retained_by(losses: Tensor, model: nn.Module) -> Retained | None:
    """What the graph of ``losses`` holds beside the model's own tensors; None where it cannot be read."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    graph: dict[int, int] = {}
    waiting, seen = [losses.grad_fn], {losses.grad_fn}
    try:
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            for tensor in _saved(node):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    graph[storage.data_ptr()] = storage.nbytes()
            following = {following for following, _ in node.next_functions} - seen
            seen |= following
            waiting.extend(following)
    except RuntimeError:  # a saved tensor that was changed in place since, say
        return None
    return Retained(graph)


def _saved(node: Any) -> list[Tensor]:
    if hasattr(node, "saved_tensors"):  # a function written in Python
        found: list[Any] = list(node.saved_tensors)
    else:
        found = []
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                found += value if isinstance(value, (list, tuple)) else [value]
    return [value for value in found if isinstance(value, Tensor)]
