"""Evaluate a model at θ + αv without keeping θ + αv: one layer's weights at a time, out of place.

``PerLayer`` adds αv to a layer's weights in a scratch buffer when the layer is entered and forgets it when the layer is
left: θ is never written, so there is nothing to restore and nothing drifts. Memory is one layer's weights.
``InPlace`` writes θ + αv over fp32 masters and takes it back, for models whose weights are read outside their own
module; a cycle costs 3e-9 rms in fp32. ``Sparse`` serves masks: it saves the k masked values and restores them exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpaudit import _validate
from dpaudit._errors import UnsupportedModel
from dpaudit.trainers._directions import Directions
from dpaudit.trainers._zo_params import Masks, sizes

MODES = ("per_layer", "in_place")


class Perturbation(Protocol):
    """Makes the model compute with θ + αv inside the context, and with θ again after it."""

    def at(self, *, step: int, direction: int, alpha: float) -> contextlib.AbstractContextManager[None]: ...


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

    def words(
        self, directions: Directions, step: int, direction: int, name: str, size: int
    ) -> NDArray[np.uint64] | None:
        """Cached or freshly drawn words of a tensor's direction; None when they do not fit."""
        if self._key != (step, direction):
            self._held.clear()
            self._bytes, self._key = 0, (step, direction)
        if name in self._held:
            return self._held[name]
        needed = 8 * (-(-size // directions.coordinates_per_word))
        if self._bytes + needed > self._limit:
            return None
        words = directions.stream(step=step, direction=direction, tensor=name).words(size)
        self._held[name] = words
        self._bytes += needed
        return words


def add_direction(
    base: Tensor,
    out: Tensor,
    alpha: float,
    directions: Directions,
    *,
    step: int,
    direction: int,
    name: str,
    cache: BitCache,
) -> None:
    """out = base + α·v for flat tensors of one parameter; ``out`` may be ``base``."""
    size = base.numel()
    words = cache.words(directions, step, direction, name, size) if base.device.type == "cpu" else None
    stream = directions.stream(step=step, direction=direction, tensor=name)
    for low, high, values in stream.blocks(size, device=base.device, words=words):
        torch.add(base[low:high], values, alpha=alpha, out=out[low:high])


class PerLayer:
    """Perturb every layer out of place while it runs."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], directions: Directions, cache: BitCache
    ) -> None:
        self._directions, self._cache = directions, cache
        names = {id(p): name for name, p in parameters.items()}
        self._owned: dict[nn.Module, list[tuple[str, str, nn.Parameter]]] = {}
        for module in model.modules():
            own = [(key, names[id(p)], p) for key, p in module._parameters.items() if p is not None and id(p) in names]
            if own:
                self._owned[module] = own
        self._parameters = dict(parameters)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._depth = 0
        self._point: tuple[int, int, float] = (0, 0, 0.0)
        self._seen: set[str] = set()
        self._checked = False

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, alpha: float) -> Iterator[None]:
        """Model at θ + αv inside; θ itself is never written."""
        self._point = (step, direction, alpha)
        handles = []
        for module in self._owned:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        self._seen.clear()
        try:
            if self._checked:
                yield
            else:
                with _DirectReads(self._parameters):
                    yield
        finally:
            for handle in handles:
                handle.remove()
            self._restore_all()
        if not self._checked and self._seen:  # an empty draw runs nothing and shows nothing
            self._refuse_unseen()
            self._checked = True

    def _enter(self, module: nn.Module, _: Any) -> None:
        step, direction, alpha = self._point
        self._depth += 1
        needed = sum(p.numel() for *_, p in self._owned[module])
        buffer, offset = self._buffer(self._owned[module][0][2], needed), 0
        for key, name, p in self._owned[module]:
            if p.dtype is buffer.dtype and p.device == buffer.device:
                flat = buffer[offset : offset + p.numel()]
            else:  # parameters of one module that differ in type or place
                flat = torch.empty(p.numel(), dtype=p.dtype, device=p.device)
            offset += p.numel()
            with _uncounted():
                add_direction(
                    p.detach().view(-1), flat, alpha, self._directions, step=step, direction=direction, name=name,
                    cache=self._cache,
                )  # fmt: skip
            module._parameters[key] = flat.view(p.shape)  # type: ignore[assignment]
            self._seen.add(name)

    def _leave(self, module: nn.Module, _: Any, output: Any) -> Any:
        self._depth -= 1
        lent = {t._parameters[key].untyped_storage().data_ptr() for t in (module,) for key, *_ in self._owned[t]}  # type: ignore[union-attr]
        for key, _name, p in self._owned[module]:
            module._parameters[key] = p
        return _detached_from(output, lent)

    def _buffer(self, like: Tensor, size: int) -> Tensor:
        """Scratch of the outermost running module; a module inside another gets memory of its own."""
        if self._depth > 1:
            return torch.empty(size, dtype=like.dtype, device=like.device)
        key = (like.device, like.dtype)
        if key not in self._scratch or self._scratch[key].numel() < size:
            self._scratch.pop(key, None)
            largest = max(
                sum(p.numel() for *_, p in own)
                for own in self._owned.values()
                if own[0][2].device == like.device and own[0][2].dtype is like.dtype
            )
            self._scratch[key] = torch.empty(largest, dtype=like.dtype, device=like.device)
        return self._scratch[key]

    def _restore_all(self) -> None:
        self._depth = 0
        for module, own in self._owned.items():
            for key, _, p in own:
                module._parameters[key] = p

    def _refuse_unseen(self) -> None:
        for name in self._parameters:
            if name not in self._seen:
                raise UnsupportedModel(
                    f"parameter {name!r} is trainable but its module was not called in the forward pass, so a"
                    " perturbation of it would be lost; freeze it, or use perturbation='in_place'."
                )


class InPlace:
    """Write θ + αv over the fp32 masters and take it back."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], directions: Directions, cache: BitCache) -> None:
        self._parameters, self._directions, self._cache = dict(parameters), directions, cache

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, alpha: float) -> Iterator[None]:
        """Model at θ + αv inside; after it θ, up to the rounding of one addition and one subtraction."""
        self._add(step, direction, alpha)
        try:
            yield
        finally:
            self._add(step, direction, -alpha)

    def _add(self, step: int, direction: int, alpha: float) -> None:
        for name, flat, _, _ in sizes(self._parameters, None):
            add_direction(
                flat, flat, alpha, self._directions, step=step, direction=direction, name=name, cache=self._cache
            )


class Sparse:
    """Perturb the masked coordinates alone, in place, and put the saved values back bit for bit."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Masks, directions: Directions) -> None:
        self._parameters, self._masks, self._directions = dict(parameters), masks, directions

    @contextlib.contextmanager
    def at(self, *, step: int, direction: int, alpha: float) -> Iterator[None]:
        """Model at θ + α·(m⊙w⊙v) inside; exactly θ after it."""
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for name, flat, mask, size in sizes(self._parameters, self._masks):
                assert mask is not None
                values = self._directions.values(
                    step=step, direction=direction, tensor=name, size=size, device=flat.device
                )
                if mask.weight is not None:
                    values.mul_(mask.weight)
                old = flat[mask.index]
                saved.append((flat, mask.index, old))
                flat.index_copy_(0, mask.index, torch.add(old, values, alpha=alpha).to(flat.dtype))
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
    _validate.one_of(MODES, perturbation=mode)
    if masks is not None:
        return Sparse(parameters, masks, directions)
    cache = BitCache(0) if cache is None else cache
    return (
        PerLayer(model, parameters, directions, cache)
        if mode == "per_layer"
        else InPlace(parameters, directions, cache)
    )


class _DirectReads(TorchFunctionMode):
    """During the first pass, refuse a model that reads a trainable weight outside the weight's own module.

    Such a read would see θ instead of θ + αv (a head computed from ``embedding.weight``, say). The check looks at
    which tensors an operation takes, never at their values, so it says nothing about a record.
    """

    paused = False

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _DirectReads.paused and isinstance(result, Tensor) and id(result) not in self._names:
            for value in (*args, *(kwargs or {}).values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if id(item) in self._names:
                        raise UnsupportedModel(
                            f"parameter {self._names[id(item)]!r} is read outside its own module, where a per-layer"
                            " perturbation does not reach; use perturbation='in_place'."
                        )
        return result


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    before, _DirectReads.paused = _DirectReads.paused, True
    try:
        yield
    finally:
        _DirectReads.paused = before


def _detached_from(output: Any, lent: set[int]) -> Any:
    """A copy of every tensor of ``output`` that lives in scratch memory, such as a layer that returns its weight."""
    if isinstance(output, Tensor):
        return output.clone() if output.untyped_storage().data_ptr() in lent else output
    if type(output) in (tuple, list):
        return type(output)(_detached_from(item, lent) for item in output)
    return output
