"""Evaluate a model at θ + βv without keeping θ + βv: one layer's weights at a time, out of place.

``PerLayer`` adds βv to a layer's weights in a scratch buffer when the layer is entered and forgets it when the layer is
left: θ is never written, so there is nothing to restore and nothing drifts. Memory is one layer's weights.
``InPlace`` writes θ + βv over fp32 masters and takes it back, for models whose weights are read outside their own
module; a cycle costs 3e-9 rms in fp32. ``Sparse`` serves masks: it saves the k masked values and restores them exactly.
Of a model in shards (FSDP2), ``PerLayer`` perturbs a layer's gathered weights, ``InPlace`` each process's own shards.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpaudit.privacy import validate
from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.distributed.shards import gather_nothing, is_sharded
from dpaudit.trainers.zeroth_order.coordinates import Masks, moving
from dpaudit.trainers.zeroth_order.directions import Buffer, DirectionAt, Directions, part_buffer

MODES = ("per_layer", "in_place")
GROUP = 1 << 19  # coordinates of small modules that are perturbed together


class Perturbation(Protocol):
    """Makes the model compute with θ + βv inside the context, and with θ again after it."""

    def at(self, *, step: int, direction: int, scale: float) -> contextlib.AbstractContextManager[None]: ...


class BitCache:
    """The current direction's random bits, kept up to ``limit`` bytes so that they are drawn once.

    Speed only: what does not fit is drawn again, with the same bits. A Gaussian direction takes 2 bytes a
    coordinate, a Rademacher direction one eighth.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[str, NDArray[np.uint64]] = {}
        self._bytes = 0
        self._key: tuple[int, int] | None = None

    def words(self, at: DirectionAt, name: str, size: int) -> NDArray[np.uint64] | None:
        """Cached or freshly drawn words of a tensor's direction; None when they do not fit."""
        if self._key != (at.step, at.direction):
            self._held.clear()
            self._bytes, self._key = 0, (at.step, at.direction)
        if name in self._held:
            return self._held[name]
        needed = 8 * (-(-size // at.directions.coordinates_per_word))
        if self._bytes + needed > self._limit:
            return None
        words = at.stream(name).words(size)
        self._held[name] = words
        self._bytes += needed
        return words


def add_direction(
    base: Tensor,
    out: Tensor,
    scale: float,
    at: DirectionAt,
    *,
    name: str,
    cache: BitCache,
    buffer: Buffer | None = None,
    start: int = 0,
) -> None:
    """out = base + β·v for flat tensors of one parameter, or of its part from ``start`` on; ``out`` may be ``base``."""
    size = base.numel()
    words = cache.words(at, name, start + size) if base.device.type == "cpu" else None
    blocks = at.stream(name).blocks(size, start=start, device=base.device, words=words, buffer=buffer)
    for low, high, values in blocks:
        torch.add(base[low:high], values, alpha=scale, out=out[low:high])


class _Perturbed(NamedTuple):
    """One weight of a module and the memory of its perturbed value; a shared weight has memory elsewhere."""

    key: str
    name: str
    parameter: nn.Parameter
    flat: Tensor | None


class PerLayer:
    """Perturb every layer out of place while it runs.

    A weight that several modules share (tied embeddings) is perturbed when the first of them runs and kept, in memory
    of its own, until the last of them has run; a language model's loss, which takes the most memory, comes later. All
    others share scratch memory of the largest module's size, or of ``GROUP`` coordinates: small modules are perturbed
    together with those that ran after them the last time, so that the table of values is read while it is in the
    processor's cache. A module in shards is perturbed alone, when it is entered: FSDP2 has gathered its weights just
    then, and not yet those of the next.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], directions: Directions, cache: BitCache
    ) -> None:
        self._directions, self._cache = directions, cache
        gather_nothing(model)  # a gathered weight is another object than the shard
        names = self._names = {id(p): name for name, p in parameters.items()}
        self._sharded = any(is_sharded(p) for p in parameters.values())
        self._gathered: dict[tuple[nn.Module, str], nn.Parameter] = {}  # the whole weights of a module that runs
        self._owned: dict[nn.Module, list[tuple[str, str, nn.Parameter]]] = {}
        for module in model.modules():
            own = [(key, names[id(p)], p) for key, p in module._parameters.items() if p is not None and id(p) in names]
            if own:
                self._owned[module] = own
        owners = collections.Counter(name for own in self._owned.values() for _, name, _ in own)
        self._shared: dict[str, Tensor | None] = {name: None for name, n in owners.items() if n > 1}
        # Of the modules that share a weight the last one: as registered, and then as first seen to run.
        self._last = {n: m for m, own in self._owned.items() for _, n, _ in own if n in self._shared}
        self._parameters = dict(parameters)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._blocks: dict[torch.device, Buffer] = {}
        self._order: list[nn.Module] = []  # as modules were first seen to run
        self._places: dict[nn.Module, int] = {}
        self._ready: dict[
            nn.Module, list[tuple[str, Tensor]]
        ] = {}  # perturbed weights that stand in the scratch memory
        self._groups: dict[nn.Module, list[tuple[nn.Module, list[_Perturbed]]]] = {}
        self._kinds = {module: (own[0][2].device, own[0][2].dtype) for module, own in self._owned.items()}
        self._needed = {
            module: sum(_aligned(p) for _, name, p in own if name not in self._shared)
            for module, own in self._owned.items()
        }
        self._depth = 0
        self._point: tuple[int, int, float] = (0, 0, 0.0)
        self._seen: set[str] = set()
        self._checked = False

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, scale: float) -> Iterator[None]:
        """Model at θ + βv inside; θ itself is never written."""
        self._point = (step, direction, scale)
        handles = []
        for module in self._owned:
            handles.append(module.register_forward_pre_hook(self._enter))
            # FSDP2's own hook frees the gathered weights, so with shards this one runs before it.
            handles.append(module.register_forward_hook(self._leave, always_call=True, prepend=self._sharded))
        self._seen.clear()
        self._ready.clear()
        try:
            if self._checked:
                yield
            else:
                with _DirectReads(self._name_of):
                    yield
        finally:
            for handle in handles:
                handle.remove()
            self._restore_all()
        # An empty draw runs no module, so nothing follows from modules that did not run.
        if not self._checked and self._seen:
            self._refuse_unseen()
            self._checked = True

    def _name_of(self, tensor: Any) -> str | None:
        """The trained parameter that a tensor is, also where it is a shard's gathered weight; None for any other."""
        if id(tensor) in self._names or not self._sharded or not isinstance(tensor, nn.Parameter):
            return self._names.get(id(tensor))
        weights = ((m._parameters[key], name) for m, own in self._owned.items() for key, name, _ in own)
        return next((name for weight, name in weights if weight is tensor), None)

    def _whole(self, module: nn.Module, key: str, p: nn.Parameter) -> nn.Parameter:
        """A weight in full: itself, or what FSDP2 has gathered of it while its module runs."""
        if not is_sharded(p):
            return p
        found = module._parameters[key]
        if isinstance(found, nn.Parameter):  # otherwise the perturbed value stands in the parameter's place
            self._gathered[module, key] = found
        return self._gathered[module, key]

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._depth += 1
        if module not in self._ready:
            with _uncounted():
                if self._depth == 1:
                    self._ready.clear()
                    for member, weights in self._group(module):
                        self._ready[member] = self._perturbed(member, weights)
                    found = self._ready[module]
                # It runs inside another module in an order that was not seen before, so it gets memory of its own.
                else:
                    found = self._perturbed(module, self._memory_for(module, None))
        else:
            found = self._ready[module]
        if module not in self._places:
            self._places[module] = len(self._order)
            self._order.append(module)
            self._groups.clear()
            self._note_last(module)
        for key, value in found:
            module._parameters[key] = value  # type: ignore[assignment]

    def _note_last(self, module: nn.Module) -> None:
        """A module was seen to run for the first time, maybe as the last of those that share a weight."""
        for _, name, _ in self._owned[module]:
            if name in self._shared:
                owners = [m for m, own in self._owned.items() if any(name == other for _, other, _ in own)]
                if all(owner in self._places for owner in owners):
                    self._last[name] = module

    def _group(self, module: nn.Module) -> list[tuple[nn.Module, list[_Perturbed]]]:
        """The module and those expected after it, as far as they fit into the scratch memory."""
        if module not in self._groups:
            kind = self._kinds[module]
            if kind not in self._scratch:
                sizes = [self._needed[m] for m in self._owned if self._kinds[m] == kind]
                self._scratch[kind] = torch.empty(max(*sizes, min(sum(sizes), GROUP)), dtype=kind[1], device=kind[0])
            scratch, offset = self._scratch[kind], 0
            members: list[tuple[nn.Module, list[_Perturbed]]] = []
            for member in self._order[self._places[module] :] if module in self._places else [module]:
                end = offset + self._needed[member]
                if self._kinds[member] != kind or end > scratch.numel():
                    break
                if members and any(is_sharded(p) for _, _, p in self._owned[member]):
                    break
                members.append((member, self._memory_for(member, scratch[offset:end])))
                offset = end
            self._groups[module] = members
        return self._groups[module]

    def _memory_for(self, module: nn.Module, place: Tensor | None) -> list[_Perturbed]:
        """Memory for a module's perturbed weights: in its place or, without one, of their own."""
        found, offset = [], 0
        for key, name, p in self._owned[module]:
            flat = None
            if name in self._shared:
                pass
            elif place is not None and (p.device, p.dtype) == self._kinds[module]:
                flat = place[offset : offset + p.numel()]
                offset += _aligned(p)
            else:  # parameters of one module may differ in type or place
                flat = torch.empty(p.numel(), dtype=p.dtype, device=p.device)
            found.append(_Perturbed(key, name, p, flat))
        return found

    def _perturbed(self, module: nn.Module, weights: list[_Perturbed]) -> list[tuple[str, Tensor]]:
        """Fill memory with a module's weights at this point; a shared weight is computed once."""
        found = []
        for key, name, p, flat in weights:
            whole = self._whole(module, key, p)
            if flat is None and (flat := self._shared[name]) is None:
                self._shared[name] = flat = torch.empty(p.numel(), dtype=p.dtype, device=p.device)
                self._seen.discard(name)
            if name not in self._shared or name not in self._seen:
                self._seen.add(name)
                self._add(name, whole, flat)
            found.append((key, flat.view(p.shape)))
        return found

    def _add(self, name: str, p: nn.Parameter, out: Tensor) -> None:
        step, direction, scale = self._point
        if p.device not in self._blocks:
            most = max(q.numel() for q in self._parameters.values())
            self._blocks[p.device] = part_buffer(most, p.device)
        add_direction(
            p.detach().view(-1), out, scale, DirectionAt(self._directions, step, direction), name=name,
            cache=self._cache, buffer=self._blocks[p.device],
        )  # fmt: skip

    def _leave(self, module: nn.Module, _: Any, output: Any) -> Any:
        self._depth -= 1
        own = self._owned[module]
        scratch = {module._parameters[key].untyped_storage().data_ptr() for key, *_ in own}  # type: ignore[union-attr]
        for key, name, p in own:
            module._parameters[key] = self._whole(module, key, p)
            if self._last.get(name) is module:
                self._forget(name)
        return _detached_from(output, scratch)

    def _forget(self, name: str) -> None:
        """Give back the memory of a shared weight; a module that asks for it again has it computed again."""
        self._shared[name] = None
        for module in [m for m in self._ready if any(name == other for _, other, _ in self._owned[m])]:
            del self._ready[module]

    def _restore_all(self) -> None:
        self._depth = 0
        for module, own in self._owned.items():
            for key, _, p in own:
                if not is_sharded(p) or not isinstance(module._parameters[key], nn.Parameter):
                    module._parameters[key] = self._whole(module, key, p)
        self._gathered.clear()

    def _refuse_unseen(self) -> None:
        for name in self._parameters:
            if name not in self._seen:
                raise UnsupportedModel(
                    f"parameter {name!r} is trainable but its module was not called in the forward pass, so a"
                    " perturbation of it would be lost; freeze it, or use perturbation='in_place'."
                )


def _aligned(p: Tensor) -> int:
    return -(-p.numel() // 16) * 16


class InPlace:
    """Write θ + βv over the fp32 masters and take it back; each process does so with its shards, which are gathered."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], directions: Directions, cache: BitCache
    ) -> None:
        self._model, self._parameters, self._directions, self._cache = model, dict(parameters), directions, cache

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, scale: float) -> Iterator[None]:
        """Model at θ + βv inside; after it θ, up to the rounding of one addition and one subtraction."""
        self._add(step, direction, scale)
        try:
            yield
        finally:
            self._add(step, direction, -scale)

    def _add(self, step: int, direction: int, scale: float) -> None:
        gather_nothing(self._model)  # so that what is gathered next has the change
        for part in moving(self._parameters, None):
            at = DirectionAt(self._directions, step, direction)
            add_direction(part.flat, part.flat, scale, at, name=part.name, cache=self._cache, start=part.start)


class Sparse:
    """Perturb the masked coordinates alone, in place, and put the saved values back bit for bit."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Masks, directions: Directions) -> None:
        self._parameters, self._masks, self._directions = dict(parameters), masks, directions

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, scale: float) -> Iterator[None]:
        """Model at θ + β·(m⊙w⊙v) inside; exactly θ after it."""
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for name, flat, mask, size, _ in moving(self._parameters, self._masks):
                assert mask is not None
                values = self._directions.values(
                    step=step, direction=direction, tensor=name, size=size, device=flat.device
                )
                if mask.weight is not None:
                    values.mul_(mask.weight)
                old = flat[mask.index]
                saved.append((flat, mask.index, old))
                flat.index_copy_(0, mask.index, torch.add(old, values, alpha=scale).to(flat.dtype))
            yield
        finally:
            for flat, index, old in saved:
                flat.index_copy_(0, index, old)


def perturbation(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    directions: Directions,
    *,
    masks: Masks | None = None,
    mode: str = "per_layer",
    cache: BitCache | None = None,
) -> Perturbation:
    """The perturbation that a mask and a mode call for; see the module's text."""
    validate.one_of(MODES, perturbation=mode)
    if masks is not None:
        return Sparse(parameters, masks, directions)
    cache = BitCache(0) if cache is None else cache
    return (
        PerLayer(model, parameters, directions, cache)
        if mode == "per_layer"
        else InPlace(model, parameters, directions, cache)
    )


class _DirectReads(TorchFunctionMode):
    """During the first pass, refuse a model that reads a trainable weight outside the weight's own module.

    Such a read would see θ instead of θ + βv (a head computed from ``embedding.weight``, say). The check looks at
    which tensors an operation takes, never at their values, so it says nothing about a record.
    """

    paused = False

    def __init__(self, name_of: Callable[[Any], str | None]) -> None:
        super().__init__()
        self._name_of = name_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _DirectReads.paused and isinstance(result, Tensor) and self._name_of(result) is None:
            for value in (*args, *(kwargs or {}).values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(item, Tensor) and (name := self._name_of(item)) is not None:
                        raise UnsupportedModel(
                            f"parameter {name!r} is read outside its own module, where a per-layer perturbation does"
                            " not reach; use perturbation='in_place'."
                        )
        return result


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    before, _DirectReads.paused = _DirectReads.paused, True
    try:
        yield
    finally:
        _DirectReads.paused = before


def _detached_from(output: Any, scratch: set[int]) -> Any:
    """A copy of every tensor of ``output`` that lives in scratch memory, such as a layer that returns its weight."""
    if isinstance(output, Tensor):
        return output.clone() if output.untyped_storage().data_ptr() in scratch else output
    if type(output) in (tuple, list):
        return type(output)(_detached_from(item, scratch) for item in output)
    return output
