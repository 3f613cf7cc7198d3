"""Which norm rule a module gets, and how its inputs and output gradients are captured.

A *site* is one module with trainable parameters. While the module's own forward runs, its parameters are switched to
``requires_grad=False``, so that autograd never computes their batch gradient; the output then goes through
a recorder, an identity whose backward gives the site the output's gradient, one slice per example. The model's code is
not touched, and a parameter that reaches the loss outside its site still receives an autograd gradient, which the
engine's parameter hooks turn into an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.ghost import faster
from dpaudit.trainers.ghost.cross import Use
from dpaudit.trainers.ghost.head import HeadInputs, HeadUse, head_inputs
from dpaudit.trainers.ghost.uses import DirectUse, MatrixUse, RowUse, wide


class Engine(Protocol):
    """What a site needs from the book-keeping."""

    @property
    def listening(self) -> bool:
        """Whether the forward pass now running will be differentiated."""

    def batch(self, leading: int) -> int:
        """B of the forward pass now running; ``leading`` is the guess where no model call announced it."""

    def announce(self, size: int) -> None:
        """A forward pass of B examples begins that does not go through the model's own call."""

    def recorded(self, output: Tensor, saved: tuple[Tensor, ...], record: Callable[..., None]) -> Tensor:
        """The output, unchanged, whose gradient will be given to ``record(gradient, *saved)``."""

    def recorded_linear(
        self,
        x: Tensor,
        output: Tensor,
        weight: nn.Parameter,
        *,
        transposed: bool,
        needs_x: bool,
        record: Callable[..., None],
    ) -> Tensor:
        """The output of s = x W, joined to x by a backward of our own."""

    def gather(self, outputs: list[Tensor], saved: list[Tensor], record: Callable[..., None]) -> tuple[Tensor, ...]:
        """Several outputs recorded together: ``record(gradients, saved, outputs)``."""

    def recorded_head(
        self,
        hidden: Tensor,
        inputs: HeadInputs,
        *,
        ids: Tensor | None,
        record: Callable[[HeadUse, Tensor | None], None] | None,
        wants_bias: bool,
    ) -> Tensor:
        """The (B,) losses of a language-model head, computed in chunks."""

    def add(self, parameter: nn.Parameter, use: Use) -> None:
        """Note one use of a parameter."""

    def held(self, module: nn.Module, owned: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The parameters that a module holds at this moment, for those that it owned when the clipper was made."""


@dataclasses.dataclass(slots=True, eq=False)
class Site:
    """One module and its rule; ``parameters`` maps its local names to its own parameters.

    Under FSDP2 a module owns a shard, and holds another parameter, the whole one, while it runs. ``live`` are the
    parameters of the forward pass now running; without sharding they are the owned ones.
    """

    name: str
    module: nn.Module
    engine: Engine
    parameters: dict[str, nn.Parameter]
    flattened: bool = False
    frozen: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)
    live: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)

    # -- the two hooks ------------------------------------------------------------------------------------------
    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: freeze the weights, so that autograd computes no batch gradient of them."""
        if module is not self.module or not self.engine.listening:
            return
        self.frozen = self.to_freeze()
        for parameter in self.frozen.values():
            parameter.requires_grad_(False)

    def to_freeze(self) -> dict[str, nn.Parameter]:
        """The module's parameters at this moment that are trained, by local name; all are remembered as live."""
        self.live = self.engine.held(self.module, self.parameters)
        return {local: p for local, p in self.live.items() if p.requires_grad}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook (also after an exception): unfreeze the weights and record the output's gradient."""
        if module is not self.module:
            return None
        active, self.frozen = self.frozen, {}
        for parameter in active.values():
            parameter.requires_grad_(True)
        if not active or output is None:
            return None
        return self.with_record({id(self.parameters[local]) for local in active}, args, kwargs, output)

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The output, whose gradient is recorded; ``active`` are the ids of the owned parameters that are trained."""
        raise NotImplementedError

    # -- shapes -------------------------------------------------------------------------------------------------
    def leading(self, tensor: Tensor) -> Tensor:
        """The tensor with a batch axis of B in front; a batch axis of 1 is expanded, (B·T, d) is folded if known."""
        if tensor.dim() == 0:
            raise self.refusal("has an input without a batch axis")
        size = self.engine.batch(tensor.shape[0])
        if tensor.shape[0] == size:
            return tensor
        if tensor.shape[0] == 1:
            return tensor.expand(size, *tensor.shape[1:])
        if self.flattened and tensor.shape[0] % size == 0:
            return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])
        raise self.refusal(f"sees a first axis of {tensor.shape[0]} where the batch has {size} examples")

    def refusal(self, why: str) -> UnsupportedModel:
        """The error that names this module's parameter."""
        local = next(iter(self.parameters))
        return UnsupportedModel(
            f"parameter {self.name + '.' if self.name else ''}{local} of {type(self.module).__name__} cannot be clipped"
            f" per example: it {why}; freeze it or give the module one slice per example."
        )

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The module's first tensor argument."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                return value
        raise self.refusal("was called without a tensor")

    def recorded_as(self, output: Tensor, saved: tuple[Tensor, ...], record: Callable[..., None]) -> Tensor:
        """Record an output whose batch axis may be 1 (then it is expanded, so that its gradient is per example)."""
        size = self.engine.batch(output.shape[0])
        if output.shape[0] == 1 and size > 1:
            output = output.expand(size, *output.shape[1:])
        return self.engine.recorded(output, saved, record)


def _three(tensor: Tensor) -> Tensor:
    """(B, ..., d) as (B, T, d)."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


class LinearSite(Site):
    """nn.Linear (weight (p, d)) and Hugging Face's Conv1D (weight (d, p)).

    The module's own forward runs without a graph, and the recorder's backward replaces its own.
    """

    __slots__ = ()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self.module and self.engine.listening:
            Site.before(self, module, args, kwargs)
            if self.frozen:
                torch.set_grad_enabled(False)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module is self.module and self.frozen:
            torch.set_grad_enabled(True)
        return Site.after(self, module, args, kwargs, output)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What takes the place of the module's forward: in a differentiated pass no graph is needed."""
        return (
            faster.without_graph(self.module, args, kwargs) if self.frozen else faster.usual(self.module, args, kwargs)
        )

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        weight, bias = self.parameters["weight"], self.parameters.get("bias")
        with_weight = id(weight) in active
        with_bias = bias is not None and id(bias) in active
        transposed = isinstance(self.module, nn.Linear)

        def record(gradient: Tensor, *saved: Tensor) -> None:
            b = _three(self.leading(gradient))
            if with_weight:
                self.engine.add(weight, MatrixUse(_three(self.leading(saved[0])), b, transposed, weight.shape))
            if with_bias:
                assert bias is not None
                self.engine.add(bias, DirectUse(wide(b).sum(1)))

        x = self.input(args, kwargs)
        if self.leading(x).shape[0] != x.shape[0] == 1:
            x, output = self.leading(x), self.leading(output)
        held = self.live["weight"]
        return self.engine.recorded_linear(x, output, held, transposed=transposed, needs_x=with_weight, record=record)

    def losses(self, hidden: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        """(B,) losses of this layer as a language-model head, without its logits; see :mod:`.head`."""
        assert isinstance(self.module, nn.Linear)
        weight, bias = self.parameters["weight"], self.parameters.get("bias")
        with_weight, with_bias = weight.requires_grad, bias is not None and bias.requires_grad

        def record(use: HeadUse, biases: Tensor | None) -> None:
            if with_weight:
                self.engine.add(weight, use)
            if biases is not None:
                assert bias is not None
                self.engine.add(bias, DirectUse(biases))

        inputs = head_inputs(hidden, self.module, targets)
        return self.engine.recorded_head(hidden, inputs, ids=ids, record=record, wants_bias=with_bias)


class EmbeddingSite(Site):
    """nn.Embedding, with padding_idx and ids of batch axis 1."""

    __slots__ = ()

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self.recorded_rows(output, self.input(args, kwargs))

    def recorded_rows(self, output: Tensor, ids: Tensor) -> Tensor:
        """Record the gradient of rows looked up by ids."""
        weight = self.parameters["weight"]
        padding = getattr(self.module, "padding_idx", None)

        def record(gradient: Tensor, ids: Tensor) -> None:
            self.engine.add(weight, row_use(weight, self.leading(ids), self.leading(gradient), padding))

        self.leading(ids)
        return self.recorded_as(output, (ids,), record)


def row_use(weight: nn.Parameter, ids: Tensor, gradient: Tensor, padding: int | None) -> Use:
    """The use of an embedding table; a small table is written down."""
    ids, b = ids.reshape(ids.shape[0], -1), _three(gradient)
    if padding is not None:
        b = b.masked_fill((ids == padding)[:, :, None], 0)
    use = RowUse(ids, b, weight.shape)
    return DirectUse(use.instance()) if weight.shape[0] <= ids.shape[1] else use


class OverriddenEmbeddingSite(EmbeddingSite):
    """A subclass of nn.Embedding with its own forward: the look-up inside it is what is recorded."""

    __slots__ = ("look_ups",)
    look_ups: _LookUps | None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self.module and self.engine.listening and self.to_freeze():
            self.look_ups = _LookUps(self)
            self.look_ups.__enter__()  # type: ignore[no-untyped-call]

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        look_ups = getattr(self, "look_ups", None)
        if module is self.module and look_ups is not None:
            self.look_ups = None
            look_ups.__exit__(None, None, None)
        return None


class _LookUps(TorchFunctionMode):
    def __init__(self, site: OverriddenEmbeddingSite) -> None:
        super().__init__()
        self.site = site

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = self.site.live["weight"]
        if func is F.embedding and len(args) > 1 and args[1] is weight:
            rows = func(args[0], weight.detach(), *args[2:], **kwargs)
            return self.site.recorded_rows(rows, args[0])
        return func(*args, **kwargs)


class NormSite(Site):
    """nn.LayerNorm and nn.RMSNorm: gain and shift are small, so G_i is written down."""

    __slots__ = ()

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        weight, bias, module = self.parameters.get("weight"), self.parameters.get("bias"), self.module
        with_weight = weight is not None and id(weight) in active

        def record(gradient: Tensor, *saved: Tensor) -> None:
            b = wide(self.leading(gradient))
            if with_weight:
                assert weight is not None
                x = wide(self.leading(saved[0]))
                shape = list(weight.shape)
                if isinstance(module, nn.LayerNorm):
                    unit = F.layer_norm(x, shape, eps=module.eps)
                else:
                    unit = F.rms_norm(x, shape, eps=module.eps)  # type: ignore[arg-type]
                self.engine.add(weight, DirectUse((unit * b).reshape(len(b), -1, *weight.shape).sum(1)))
            if bias is not None and id(bias) in active:
                self.engine.add(bias, DirectUse(b.reshape(len(b), -1, *bias.shape).sum(1)))

        x = self.input(args, kwargs)
        self.leading(x)
        return self.recorded_as(output, (x.detach(),) if with_weight else (), record)


class GainSite(Site):
    """A module that multiplies or shifts elementwise by 1-D parameters (RMSNorm variants, LayerScale).

    The parameter is replaced, for the duration of the forward, by one copy per example of shape (B, 1, .., d); the
    module's own arithmetic, dtype order included, then yields per-example gradients by itself.
    """

    __slots__ = ()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self.module or not self.engine.listening:
            return
        self.frozen = self.to_freeze()
        if not self.frozen:
            return
        x = self.input(args, kwargs)
        if self.flattened or x.dim() < 2:
            raise self.refusal("sees an input whose examples are not on the first axis")
        size = self.engine.batch(x.shape[0])
        self.leading(x)
        for local, held in self.frozen.items():
            parameter = self.parameters[local]
            copies = held.detach().view(*([1] * (x.dim() - 1)), -1).expand(size, *([-1] * (x.dim() - 1)))

            def record(gradient: Tensor, parameter: nn.Parameter = parameter) -> None:
                self.engine.add(parameter, DirectUse(gradient.reshape(len(gradient), *parameter.shape)))

            # Modules look parameters up in this dictionary; torch.func.functional_call swaps them the same way.
            module._parameters[local] = self.engine.recorded(copies, (), record)  # type: ignore[assignment]

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module is self.module and self.frozen:
            self.frozen = {}
            module._parameters.update(self.live)
        return None


class ConvolutionSite(Site):
    """nn.Conv1d and nn.Conv2d without groups, as a linear layer over unfolded patches."""

    __slots__ = ()

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        weight, bias, module = self.parameters.get("weight"), self.parameters.get("bias"), self.module
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        with_weight = weight is not None and id(weight) in active

        def record(gradient: Tensor, *saved: Tensor) -> None:
            b = self.leading(gradient).flatten(2).mT
            if with_weight:
                assert weight is not None
                a = _patches(module, self.leading(saved[0])).mT
                self.engine.add(weight, MatrixUse(a, b, True, weight.shape))
            if bias is not None and id(bias) in active:
                self.engine.add(bias, DirectUse(wide(b).sum(1)))

        x = self.input(args, kwargs)
        self.leading(x)
        return self.recorded_as(output, (x.detach(),) if with_weight else (), record)


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Unfolded input (B, Cin·k, L) in the order of the weight's (Cin, k...)."""
    flat = isinstance(module, nn.Conv1d)
    one: tuple[int, ...] = (1,) if flat else ()
    zero: tuple[int, ...] = (0,) if flat else ()
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = zero + tuple(module.padding)
    if flat:
        x = x.unsqueeze(2)
    return F.unfold(
        x,
        one + tuple(module.kernel_size),
        dilation=one + tuple(module.dilation),
        padding=padding,
        stride=one + tuple(module.stride),
    )


#: Methods that return the relative position bias, (1, heads, T, T) or (B, heads, T, T): T5's and MPNet's.
_BIAS_METHODS = ("compute_bias", "compute_position_bias")


def bias_method(owner: nn.Module) -> str | None:
    """Name of the method by which a module computes its relative position bias; None where it has none of these."""
    return next((name for name in _BIAS_METHODS if callable(getattr(type(owner), name, None))), None)


class RelativeBiasSite(EmbeddingSite):
    """T5's and MPNet's relative position bias: an embedding of a (T, T) index that the whole batch shares.

    The bias is expanded to one copy per example where the owner's method returns it, (1, heads, T, T) to
    (B, heads, T, T); the look-up inside runs with the table frozen.
    """

    __slots__ = ("buckets",)
    buckets: Tensor | None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module is self.module and self.frozen:
            self.buckets = None if output is None else self.input(args, kwargs)
            for parameter in self.frozen.values():
                parameter.requires_grad_(True)
            self.frozen = {}
        return None

    def wrap(self, compute_bias: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``compute_bias`` with its result recorded."""

        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            self.buckets = None
            bias = compute_bias(*args, **kwargs)
            buckets, self.buckets = self.buckets, None
            if buckets is None:
                return bias
            if bias.dim() != 4 or buckets.dim() != 2:
                raise self.refusal(f"makes a position bias of {bias.dim()} axes, where 4 have a rule")
            weight = self.parameters["weight"]

            def record(gradient: Tensor, buckets: Tensor) -> None:
                b = gradient.permute(0, 2, 3, 1)
                ids = buckets[None, -b.shape[1] :].expand(len(b), -1, -1)
                self.engine.add(weight, row_use(weight, ids, b, None))

            return self.recorded_as(bias, (buckets,), record)

        return wrapped
