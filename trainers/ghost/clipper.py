"""Ghost clipping by book-keeping: per-example clipped gradient sums at about the cost of an ordinary step.

    clipper = GhostClipping(model, max_grad_norm=0.1)
    losses = ...                        # (B,), one per example, each depending on its example alone
    norms = clipper.backward(losses)    # adds sum_i min(1, C/n_i) g_i into p.grad

One backward pass computes data gradients only (autograd's weight gradients are suppressed). Every layer's input a
and output gradient b give the per-example norms (Li et al. 2110.05679) and, once the factors are known, the
clipped sum as one weighted product aᵀ diag(c) b (Bu et al. 2210.00038). In the lean mode b is dropped as soon as its
norm is known, and a second pass over the same graph gives the sum, unless the pass frees as much memory as all b take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.clipping import Clipping, Flat, PerLayer
from dpaudit.trainers.contribution import ClippedSum
from dpaudit.trainers.distributed.shards import InOrder, Scatter, any_process, first_process, gather_nothing, has_shards
from dpaudit.trainers.ghost import products
from dpaudit.trainers.ghost.axis import BatchAxis
from dpaudit.trainers.ghost.book import Book, Phase
from dpaudit.trainers.ghost.cross import Use
from dpaudit.trainers.ghost.faster import FrozenLinear, has_usual_forward
from dpaudit.trainers.ghost.head import HeadInputs, HeadLosses, HeadUse
from dpaudit.trainers.ghost.instance import InstanceSite
from dpaudit.trainers.ghost.recording import JointRecord, LinearRecord, Record
from dpaudit.trainers.ghost.retained import PackedTensors, Retained, retained_by
from dpaudit.trainers.ghost.rules import sites_of
from dpaudit.trainers.ghost.sites import LinearSite, RelativeBiasSite, Site, bias_method
from dpaudit.trainers.ghost.units import UnitRows
from dpaudit.trainers.refusals import is_compiled, refuse_model


class GhostClipping:
    """Adds per-example clipped gradient sums into ``p.grad``, for any model whose parameters have a rule.

    Parameters
    ----------
    model : nn.Module
        Its trainable parameters are those with ``requires_grad`` now. Not compiled.
    max_grad_norm : float
        C > 0, in the units of the gradient of ONE example's loss. Everywhere else C is ``clipping_norm``, as in the
        ledger; this one argument has the name that loops written for Opacus and Hugging Face already use.
    clipping : Flat, PerLayer, Automatic or AdaptiveFlat, optional
        The rule; ``Flat`` with this C by default. Its ``clipping_norm`` must be the same C.
    group : int, default=1
        G, successive rows of every forward pass that are one unit of privacy, with one loss: pairs of answers, views of
        a record. Units of different sizes are told by ``units`` of :meth:`clipped_sum`.
    lean : bool, default=False
        Keep no output gradients where these would take memory: a second backward pass instead, about 1.5 times the
        time. The first step finds out: where a backward pass frees at least what the gradients take, as it does for
        most transformers without activation checkpointing, later steps keep them and make one pass. A model in shards
        always makes two.

    Raises
    ------
    UnsupportedModel
        A trainable parameter's per-example gradient cannot be bounded; the message names it.

    Notes
    -----
    The norms are private: they are a function of single records. :meth:`close`, or leaving the ``with`` block, takes
    every hook off the model.
    """

    adds_onto = True

    def __init__(
        self,
        model: nn.Module,
        max_grad_norm: float,
        *,
        clipping: Clipping | None = None,
        group: int = 1,
        lean: bool = False,
    ) -> None:
        validate.positive(max_grad_norm=max_grad_norm)
        validate.integer_at_least(1, group=group)
        self.model = model
        self.clipping: Clipping = Flat(max_grad_norm) if clipping is None else clipping
        if self.clipping.sensitivity != max_grad_norm:
            raise InvalidValue(
                f"clipping bounds a contribution by {self.clipping.sensitivity}, which must equal"
                f" max_grad_norm={max_grad_norm}; give both the same C."
            )
        self.group, self.lean = group, lean
        self._units: UnitRows | None = None
        self.anchor = torch.zeros((), requires_grad=True)
        self._book: Book | None = None
        self._size: int | None = None
        self._handles: list[Any] = []
        self._restore: list[Callable[[], None]] = []
        self._sharded = has_shards(model)
        if self._sharded:
            gather_nothing(model)
        refuse_model(model)
        self._names = {p: n for n, p in model.named_parameters() if p.requires_grad}
        if not self._names:
            raise UnsupportedModel(
                f"model {type(model).__name__} has no trainable parameter; unfreeze some to train it."
            )
        sites = list(sites_of(model, self))
        self._layer_of: dict[nn.Parameter, int] = {}
        owners: dict[nn.Parameter, int] = {}
        self.layers: tuple[str, ...] = ()
        for site in sites:
            mine = [p for p in site.parameters.values() if p in self._names]
            for p in mine:
                owners[p] = owners.get(p, 0) + 1
            if new := [p for p in mine if p not in self._layer_of]:
                self._layer_of.update(dict.fromkeys(new, len(self.layers)))
                self.layers = (*self.layers, site.name)
        for parameter, name in self._names.items():
            if parameter not in self._layer_of:
                raise UnsupportedModel(f"parameter {name} has no per-example rule; freeze it.")
            _check_dtype(name, parameter)
        self._paired = {p for p, count in owners.items() if count > 1}
        self._whole: set[nn.Parameter] = set()
        self._drops = lean  # whether output gradients are dropped; ``_packed`` is there until that is found out
        self._packed = PackedTensors(model) if lean and not self._sharded else None
        self._order: list[nn.Parameter] | None = None
        self._attach(sites)

    # -- life cycle ---------------------------------------------------------------------------------------------
    def _attach(self, sites: list[Site]) -> None:
        self._handles.append(self.model.register_forward_pre_hook(self._announce, with_kwargs=True, prepend=True))
        self._sites, self._axis = sites, BatchAxis(self.model, sites, together=any_process if self._sharded else None)
        for parameter, name in self._names.items():
            self._handles.append(_hook(parameter, self._bypass(name)))
        for site in sites:
            self._handles.append(site.module.register_forward_pre_hook(site.before, with_kwargs=True))
            # FSDP2 attaches a backward hook of its own to the outputs of sharded layers, so they are recorded before
            # that.
            self._handles.append(
                site.module.register_forward_hook(site.after, with_kwargs=True, always_call=True, prepend=self._sharded)
            )
            if isinstance(site, RelativeBiasSite):
                owner: Any = self.model.get_submodule(site.name.rpartition(".")[0])
                method = bias_method(owner)
                assert method is not None
                setattr(owner, method, site.wrap(getattr(owner, method)))
                self._restore.append(functools.partial(delattr, owner, method))
        self._take_over(sites)

    def _take_over(self, sites: list[Site]) -> None:
        """Put forward passes by the faster matrix products on linear layers; see :mod:`.faster`."""
        if not products.has_onednn():
            return
        own = {id(site.module): site for site in sites}
        # What is replayed or compiled keeps the forward that it was replayed or compiled with.
        whole = [site.module for site in sites if isinstance(site, InstanceSite)]
        whole += [module for module in self.model.modules() if is_compiled(module)]
        apart = {id(part) for module in whole for part in module.modules()}
        for module in self.model.modules():
            if not has_usual_forward(module) or id(module) in apart or "forward" in vars(module):
                continue
            site = own.get(id(module))
            # Bound methods, so that a copy of the model gets one of its own module.
            forward: Any = site.forward if isinstance(site, LinearSite) else FrozenLinear(module).forward
            module.forward = forward
            self._restore.append(functools.partial(delattr, module, "forward"))

    def close(self) -> None:
        """Take every hook off the model; the clipper is then of no further use."""
        self._axis.close()
        if self._packed is not None:
            self._packed.close()
        for handle in self._handles:
            handle.remove()
        for site in self._sites:  # an interrupt inside a forward pass skips the hooks that restore ``requires_grad``
            site.after(site.module, (), {}, None)
        for restore in self._restore:
            restore()
        self._handles, self._restore, self._book, self._size = [], [], None, None

    def __enter__(self) -> GhostClipping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what sites ask (Engine) ----------------------------------------------------------------------------------
    @property
    def listening(self) -> bool:
        """Whether the forward pass now running will be differentiated."""
        if torch.compiler.is_compiling():
            raise UnsupportedModel("torch.compile cannot be combined with ghost clipping; train the eager model.")
        return torch.is_grad_enabled()

    def batch(self, leading: int) -> int:
        """B of the forward pass now running."""
        if self._size is None:
            self._size = leading
        return self._size

    def announce(self, size: int) -> None:
        """A forward pass of B examples begins that does not go through the model's own call."""
        self._size = size

    def held(self, module: nn.Module, owned: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The parameters that a module holds at this moment: the owned ones, or whole ones gathered from shards."""
        if not self._sharded:
            return owned
        found = {local: module.get_parameter(local) for local in owned}
        for local, parameter in found.items():
            if parameter.requires_grad and parameter not in self._whole:
                self._whole.add(parameter)
                self._handles.append(_hook(parameter, self._bypass(self._names[owned[local]])))
        return found

    def recorded(self, output: Tensor, saved: tuple[Tensor, ...], record: Callable[..., None]) -> Tensor:
        """The output, unchanged, whose gradient will be given to ``record``."""
        joined: Tensor = Record.apply(self.anchor, output, record, *saved)  # type: ignore[no-untyped-call]
        return joined

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
        joined: Tensor = LinearRecord.apply(self.anchor, x, output, weight.detach(), transposed, record, needs_x)  # type: ignore[no-untyped-call]
        return joined

    def gather(self, outputs: list[Tensor], saved: list[Tensor], record: Callable[..., None]) -> tuple[Tensor, ...]:
        """Several outputs recorded together: ``record(gradients, saved, outputs)``."""
        return JointRecord.apply(self.anchor, record, len(outputs), *outputs, *saved)  # type: ignore[no-any-return, no-untyped-call]

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
        losses: Tensor = HeadLosses.apply(self.anchor, hidden, inputs, ids, record, wants_bias)  # type: ignore[no-untyped-call]
        return losses

    def add(self, parameter: nn.Parameter, use: Use) -> None:
        """Note one use of a parameter for the norms, or add its clipped sum in the second pass."""
        book = self._book
        if book is None:
            raise PrivacyRefusal(
                f"parameter {self._names[parameter]} was differentiated outside GhostClipping.backward, which would"
                " train without clipping; call clipper.backward(losses) or close the clipper."
            )
        book.add(parameter, use if self._units is None else self._units.folded(use))

    # -- the step -------------------------------------------------------------------------------------------------
    def backward(self, losses: Tensor, *, units: Tensor | None = None) -> Tensor:
        """Add Σ_u c_u g_u into ``p.grad`` and return the norms: :meth:`clipped_sum` for loops of one's own.

        Parameters
        ----------
        losses, units
            As for :meth:`clipped_sum`.

        Returns
        -------
        Tensor
            (U,) norms n_u before clipping, at least fp32, PRIVATE. Not finite where the gradient was not finite (then
            the contribution was zero).
        """
        found = self.clipped_sum(losses, units=units)
        found.deliver()
        return found.norms

    def clipped_sum(
        self,
        losses: Tensor,
        *,
        units: Tensor | None = None,
        onto: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> ClippedSum:
        """Σ_u c_u g_u with its norms and its sensitivity; ``p.grad`` is not touched.

        Parameters
        ----------
        losses : Tensor
            (U,), loss u a function of unit u alone; not averaged over the batch. Without losses the sum is empty. By
            default every row of the forward pass is a unit.
        units : Tensor or None
            (R,) integers in [0, U): the unit of each row of the forward pass, in any order and of any size.
        onto : mapping of nn.Parameter to Tensor, optional
            Running sums of earlier micro-batches, handed over: this one's are added to them in place, so that one
            whole gradient is alive.

        Returns
        -------
        ClippedSum
            Of a sharded model (FSDP2), each process has its own shard of the sum over all processes' examples, and
            the norms of its own examples.
        """
        self._check(losses, units)
        bound = self.clipping.sensitivity
        wide = torch.float64 if losses.dtype == torch.float64 else torch.float32
        if len(losses) == 0:
            return ClippedSum(dict(onto or {}), losses.detach().to(wide), bound)
        self._units = self._rows_of(losses, units)
        try:
            # Layers' inputs belong to the graph of the forward pass, and sums of them would make it longer.
            with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
                norms, sums = self._clipped(losses, dict(onto or {}))
        finally:
            self._book, self._size, self._units = None, None, None
        return ClippedSum({p: total.detach() for p, total in sums.items()}, norms.to(wide), bound)

    def _rows_of(self, losses: Tensor, units: Tensor | None) -> UnitRows | None:
        if units is not None:
            return UnitRows.assigned(units.to(losses.device), len(losses))
        return UnitRows.blocks(len(losses), self.group, losses.device) if self.group > 1 else None

    def _clipped(self, losses: Tensor, onto: dict[nn.Parameter, Tensor]) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        squares, book = self._measure(losses)
        norms = squares.sum(0).clamp_min(0).sqrt()
        if isinstance(self.clipping, PerLayer):
            factors = self.clipping.factors(squares.clamp_min(0).sqrt())
        else:
            factors = self.clipping.factors(norms).expand(len(self.layers), -1)
        if self._sharded:
            self._scatter(losses, book, factors, onto)
        elif self._drops:
            self._pass(losses, Phase.SUMS, factors=factors, sums=onto, last=True)
        else:
            book.sums = onto
            onto = {p: total for p, total in book.settle(factors, self._names) if total is not None}
        return norms, onto

    def _scatter(self, losses: Tensor, book: Book, factors: Tensor, onto: dict[nn.Parameter, Tensor]) -> None:
        """Bring the sums of a sharded model to their owners, one parameter at a time, in one order on every process."""
        sending = Scatter(onto)
        if not self.lean:
            for parameter, total in book.settle(factors, self._names):
                sending.give(parameter, total)
            sending.settle()
            return
        if (
            self._order is None
        ):  # as the first process's backward pass comes to them; shared parameters wait for the end
            alone = [p for p in book.seen if p not in self._paired]
            found = first_process([self._names[p] for p in alone])
            named = {name: p for p, name in self._names.items()}
            self._order = [*(named[name] for name in found), *(p for p in self._names if self._names[p] not in found)]
        line = InOrder(self._order, sending.give)
        after = self._pass(losses, Phase.SUMS, factors=factors, ready=line.offer, last=True)
        for parameter, total in after.sums.items():
            line.offer(parameter, total)
        line.finish()
        sending.settle()

    def _measure(self, losses: Tensor) -> tuple[Tensor, Book]:
        """(layers, B) squared norms, and the book that holds the uses (empty in the lean mode)."""
        self._find_out_whether_to_drop(losses)
        phase = Phase.NORMS if self._drops else Phase.KEEP
        book = self._pass(losses, phase, last=not self._drops)
        if not book.squares:
            raise PrivacyRefusal(
                "losses reach no trainable parameter of the model through its modules; compute them from this model's"
                " output while the clipper is open."
            )
        squares, rows = book.norms(len(self.layers))
        # A second pass gathers weights again, so that the processes of a sharded model make it together.
        doubt = any_process(bool(len(rows))) if self._drops and self._sharded else bool(len(rows))
        if doubt:
            if self._drops:
                again = self._pass(losses, phase, exact=True)
                squares[:, rows] = again.norms(len(self.layers))[0][:, rows]
            else:
                squares = book.recompute(squares, rows)
        return squares, book

    def _find_out_whether_to_drop(self, losses: Tensor) -> None:
        """In the first step of the lean mode, a pass whose norms are not used tells what the others should keep."""
        if self._packed is None:
            return
        self._packed.close()
        retained = None if self._packed.seen else retained_by(losses, self.model)
        self._packed = None
        if retained is not None:
            self._pass(losses, Phase.NORMS, retained=retained)
            self._drops = not retained.frees_enough

    def _pass(
        self,
        losses: Tensor,
        phase: Phase,
        *,
        exact: bool = False,
        factors: Tensor | None = None,
        sums: dict[nn.Parameter, Tensor] | None = None,
        ready: Callable[[nn.Parameter, Tensor | None], None] | None = None,
        retained: Retained | None = None,
        last: bool = False,
    ) -> Book:
        while True:
            book = Book(
                len(losses), phase, self._layer_of, self._paired, exact=exact, factors=factors, ready=ready,
                writes_down=not self.lean, retained=retained,
            )  # fmt: skip
            if sums is not None:
                book.sums = sums
            self._book = book
            try:
                torch.autograd.backward(losses, torch.ones_like(losses), retain_graph=not last)
            finally:
                self._book = None
            if not book.lost:
                return book
            self._paired |= book.lost

    def _check(self, losses: Tensor, units: Tensor | None) -> None:
        if not self._handles:
            raise InvalidValue("this GhostClipping is closed; make a new one.")
        if losses.dim() != 1:
            raise InvalidValue(
                f"losses of shape {tuple(losses.shape)} must be (B,), one loss per example; do not average over"
                " the batch."
            )
        if units is not None and self.group > 1:
            raise InvalidValue(f"units and group={self.group} both say which rows are one unit; give one of them.")
        if len(losses) == 0:
            if self._sharded:
                raise InvalidValue(
                    "losses of length 0 would leave the other processes of a sharded model waiting; run any one record"
                    " and give losses * 0, whose sum is zero."
                )
            return
        if not losses.requires_grad:
            raise InvalidValue(
                "losses do not require a gradient; run the forward pass with gradients enabled and the clipper open."
            )
        rows = len(losses) * self.group if units is None else len(units)
        if self._size is not None and self._size != rows:
            if units is None and self.group == 1:
                raise InvalidValue(
                    f"{len(losses)} losses stand against a forward pass of {self._size} examples just before; give one"
                    " loss for each example (row) of the last forward pass with gradients."
                )
            raise InvalidValue(
                f"{len(losses)} losses of units with {rows} rows stand against a forward pass of {self._size} rows just"
                " before; say of every row of the last forward pass with gradients which unit it belongs to."
            )
        self._axis.verify()
        known = set(self._names.values())
        for name, p in self.model.named_parameters():
            # A gathered weight is another object than its shard, under the same name.
            if not p.requires_grad or (name in known if self._sharded else p in self._names):
                continue
            raise PrivacyRefusal(f"parameter {name} was unfrozen after the clipper was made; make a new GhostClipping.")

    # -- hooks on the model -----------------------------------------------------------------------------------------
    def _announce(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return  # an evaluation between forward and backward has another batch size than the losses
        named = [kwargs.get(k) for k in ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids")]
        for value in (*named, *args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim():
                self._size = value.shape[0]
                break
        else:
            self._size = None
        self._axis.begin(args, kwargs, self._size)

    def _bypass(self, name: str) -> Callable[[Tensor], None]:
        def refuse(gradient: Tensor) -> None:
            raise UnsupportedModel(
                f"parameter {name} received a gradient past its module (a fused loss, a functional call or a compiled"
                " graph), which cannot be clipped; let its module compute the output."
            )

        return refuse


def _hook(parameter: nn.Parameter, call: Callable[[Tensor], None]) -> Any:
    return parameter.register_hook(call)  # type: ignore[no-untyped-call]


def _check_dtype(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise UnsupportedModel(f"parameter {name} of type {parameter.dtype} has no real gradient; freeze it.")
    if parameter.dtype.itemsize < 4 and not hasattr(parameter, "grad_dtype"):
        raise UnsupportedModel(
            f"parameter {name} is {parameter.dtype}, and this torch cannot hold its clipped sum in float32; use"
            " torch >= 2.10 or float32 weights."
        )
