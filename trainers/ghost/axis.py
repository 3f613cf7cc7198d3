"""Check that the first axis of each layer's input counts examples, and is not another axis that is as long by chance.

A layer applied to a table of P rows (class descriptions, an identity matrix) looks like a layer applied to P examples
when the batch has P of them; its per-example gradients would then be those of the rows. One more example tells them
apart: the batch's axis grows and the table's does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dpaudit.trainers.ghost.sites import Site
from dpaudit.trainers.state import ModelState


class BatchAxis:
    """Watches the first differentiated pass of a model, and repeats it with one more example where it has to.

    Parameters
    ----------
    model : nn.Module
    sites : iterable of Site
        The layers whose inputs are watched.
    together : callable, optional
        Whether any process says so, where the processes of a sharded model must run every pass together.
    """

    def __init__(
        self, model: nn.Module, sites: Iterable[Site], *, together: Callable[[bool], bool] | None = None
    ) -> None:
        self._model, self._together = model, together
        self._call: tuple[Any, Any] | None = None
        self._size = 0
        self._given: set[int] = set()
        self._doubtful = False
        self._counted: list[tuple[Site, int]] | None = None
        self._handles = [
            site.module.register_forward_pre_hook(self._hook(site), with_kwargs=True, prepend=True) for site in sites
        ]

    def begin(self, args: Any, kwargs: Any, size: int | None) -> None:
        """A differentiated pass of ``size`` examples begins."""
        if not self._handles or self._counted is not None:
            return
        self._call, self._size, self._doubtful = (args, kwargs), size or 0, False
        self._given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}

    def verify(self) -> None:
        """Refuse a layer whose first axis did not come of the batch; afterwards nothing is watched any more.

        Raises
        ------
        UnsupportedModel
            Names a parameter of the layer.
        """
        call, size, doubtful = self._call, self._size, self._doubtful
        mine = enough = call is not None and size >= 2
        if self._together is not None and self._handles:
            doubtful, enough = self._together(mine and doubtful), self._together(mine)
        if not enough or call is None:
            return
        self._call = None
        if doubtful:
            # A sharded model gathers its weights in all processes together, so a process whose batch of one shows
            # nothing runs the passes with the others all the same.
            more = tree_map(self._with_one_more, call) if mine else call
            before, after = self._lengths(call), self._lengths(more)
            if mine and before is not None and after is not None and len(before) == len(after):
                for (site, one), (_, two) in zip(before, after, strict=True):
                    if one == two == size:
                        raise site.refusal(f"sees a first axis of {size} that is not the batch's")
        self.close()

    def close(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._call = [], None

    def _hook(self, site: Site) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if x is None or x.dim() == 0:
                return
            if self._counted is not None:
                self._counted.append((site, x.shape[0]))
            elif x.shape[0] == self._size > 1 and not x.requires_grad:
                # An input of the model, or what is computed from one by trained layers, has the batch's axis.
                self._doubtful |= x.untyped_storage().data_ptr() not in self._given

        return seen

    def _with_one_more(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == self._size:
            return torch.cat([value, value[-1:]])
        return value

    @torch.no_grad()
    def _lengths(self, call: tuple[Any, Any]) -> list[tuple[Site, int]] | None:
        """First axes of the inputs, call by call; None where the model cannot run the batch."""
        self._counted = []
        devices = [p.device for p in self._model.parameters() if p.is_cuda][:1]
        try:
            with torch.random.fork_rng(devices=devices), ModelState(self._model):
                # A sharded model gathers its weights in the hooks of its call; ours do nothing without gradients.
                (self._model.forward if self._together is None else self._model)(*call[0], **call[1])
            return self._counted
        except Exception:  # a model for one batch size, say; there is nothing to compare
            return None
        finally:
            self._counted = None
