"""Modules without a rule of their own: tried for elementwise parameters, else run again one example at a time.

A module without a rule of its own is replayed for every example alone, and its vector-Jacobian product gives G_i.
The replayed output must equal the output of the batch, or the module mixes examples (or draws random numbers) and
is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.ghost.sites import Site
from dpaudit.trainers.ghost.uses import DirectUse

#: Modules that put something without a batch axis through their layers and repeat it over the batch themselves.
_BATCHLESS = {
    "DisentangledSelfAttention": "projects position embeddings that the whole batch shares",  # DeBERTa
    "PromptEmbedding": "looks one prompt up for the whole batch",  # PEFT prompt tuning
    "PromptEncoder": "encodes one prompt for the whole batch",  # PEFT p-tuning
}


def refuse_coupled(name: str, module: nn.Module) -> None:
    """Refuse modules that mix the examples of a batch or hide their parameters."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or _trainable(module)):
        raise UnsupportedModel(
            f"module {name} is {type(module).__name__}, which normalises over the batch, so one example moves another's"
            " gradient; use GroupNorm or LayerNorm, or put it in eval mode and freeze it."
        )
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats:
        raise UnsupportedModel(
            f"module {name} ({type(module).__name__}) keeps running statistics of the records, which would leave with"
            " the model without noise; build it with track_running_stats=False, or put it in eval mode."
        )
    if not _trainable(module):
        return
    if why := next((_BATCHLESS[kind] for kind in kinds_of(module) & _BATCHLESS.keys()), None):
        raise UnsupportedModel(
            f"module {name} ({type(module).__name__}) {why}, which has no per-example gradient there; freeze it or"
            " choose another model or adapter."
        )
    if isinstance(module, nn.RNNBase):
        raise UnsupportedModel(
            f"module {name} ({type(module).__name__}) keeps the examples of its state on the second axis and has no"
            " per-example rule; freeze it or use a transformer."
        )
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        raise UnsupportedModel(
            f"module {name} ({type(module).__name__}) has batch_first=False, so examples are not on the first axis;"
            " build it with batch_first=True."
        )
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)) and module._parameters:
        raise UnsupportedModel(
            f"parameter {name}.{next(iter(module._parameters))} lives in a {type(module).__name__}, which has no"
            " forward to observe; freeze it or move it into a module of its own."
        )


def kinds_of(module: nn.Module) -> set[str]:
    """Names of a module's class and its bases: ``fully_shard`` puts a class of another name before them."""
    return {kind.__name__ for kind in type(module).__mro__}


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def is_elementwise(module: nn.Module, own: dict[str, nn.Parameter]) -> bool:
    """Whether 1-D parameters act elementwise on the last axis, found out by trying.

    Two examples get different parameters, once alone and once together as (2, 1, d); equal outputs prove that the
    module broadcasts them as :class:`GainSite` needs.
    """
    shapes = {p.shape for p in own.values()}
    if next(module.children(), None) is not None or len(shapes) != 1 or len(shape := next(iter(shapes))) != 1:
        return False
    device, dtype = next(iter(own.values())).device, next(iter(own.values())).dtype
    generator = torch.Generator().manual_seed(0)
    mode = module.training

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    try:
        module.eval()
        with torch.no_grad():
            for middle in ((3,), (3, 2)):
                x = draw(2, *middle, shape[0])
                values = {k: draw(2, shape[0]) for k in own}
                together = {k: v.view(2, *[1] * len(middle), -1) for k, v in values.items()}
                # FSDP2's hooks would gather weights and take the module for the root, so the module is called past its
                # hooks.
                both = module_call(module, together, (x,), {})
                alone = [
                    module_call(module, {k: v[i] for k, v in values.items()}, (x[i : i + 1],), {}) for i in range(2)
                ]
                if not isinstance(both, Tensor) or not torch.allclose(both, torch.cat(alone), rtol=1e-2, atol=1e-2):
                    return False
    except Exception:  # any failure only means: not elementwise
        return False
    finally:
        module.train(mode)
    return True


def is_linear(module: nn.Module, own: dict[str, nn.Parameter]) -> bool:
    """Whether a subclass of ``nn.Linear`` with its own forward computes what ``nn.Linear`` does, found out by trying.

    Falcon's layers do, for example. Random weights and inputs go through both, in the module's present mode.
    """
    if not isinstance(module, nn.Linear) or not own.keys() <= {"weight", "bias"} or module.weight is None:
        return False
    if next(module.children(), None) is not None:
        return False
    device, dtype = module.weight.device, module.weight.dtype
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for middle in ((), (3,), (3, 2)):
                x = torch.randn(2, *middle, module.in_features, generator=generator).to(device, dtype)
                values = {k: torch.randn(p.shape, generator=generator).to(device, dtype) for k, p in own.items()}
                found = module_call(module, values, (x,), {})
                expected = nn.functional.linear(x, values["weight"], values.get("bias"))
                if not isinstance(found, Tensor) or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
                    return False
    except Exception:  # any failure only means: another computation
        return False
    return True


class InstanceSite(Site):
    """Any other module: replayed example by example."""

    __slots__ = ()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        random = [
            n for n, m in module.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p and m.training
        ]
        if module is self.module and self.engine.listening and random:
            raise self.refusal(
                f"has no rule of its own and contains dropout ({random[0] or 'itself'}), so it cannot be replayed"
            )
        # Zero-argument super() fails in a subclass of a dataclass with slots=True, so the base is called by name.
        Site.before(self, module, args, kwargs)

    def with_record(self, active: set[int], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        flat_in, spec_in = tree_flatten((args, kwargs))
        flat_out, spec_out = tree_flatten(output)
        slots = [i for i, v in enumerate(flat_in) if isinstance(v, Tensor)]
        outs = [i for i, v in enumerate(flat_out) if isinstance(v, Tensor) and v.is_floating_point()]
        inputs = [flat_in[i].detach() for i in slots]
        size = self.engine.batch(inputs[0].shape[0] if inputs and inputs[0].dim() else 1)
        for i in outs:
            self.leading(flat_out[i])
        chosen = {n: p for n, p in self.parameters.items() if id(p) in active}
        live, module = self.live, self.module

        def record(gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
            rows: dict[str, list[Tensor]] = {n: [] for n in chosen}
            for i in range(size):
                leaves = list(flat_in)
                for slot, value in zip(slots, inputs, strict=True):
                    leaves[slot] = value[i : i + 1] if value.dim() and value.shape[0] == size else value
                own_args, own_kwargs = tree_unflatten(leaves, spec_in)
                own = {n: live[n].detach().requires_grad_(True) for n in chosen}
                with torch.enable_grad():
                    again = tree_flatten(module_call(module, own, own_args, own_kwargs))[0]
                    again = [again[j] for j in outs]
                for new, old in zip(again, outputs, strict=True):
                    if not torch.allclose(new, old[i : i + 1], rtol=1e-2, atol=1e-3, equal_nan=True):
                        raise self.refusal("gives an example another output alone than in its batch")
                pairs = [(o, g[i : i + 1]) for o, g in zip(again, gradients, strict=True) if o.requires_grad]
                grads = torch.autograd.grad(
                    [o for o, _ in pairs], list(own.values()), [g for _, g in pairs], allow_unused=True
                )
                for n, g in zip(own, grads, strict=True):
                    rows[n].append(torch.zeros_like(own[n]) if g is None else g)
            for n, p in chosen.items():
                self.engine.add(p, DirectUse(torch.stack(rows[n])))

        joined = self.engine.gather([flat_out[i] for i in outs], inputs, record)
        for i, value in zip(outs, joined, strict=True):
            flat_out[i] = value
        return tree_unflatten(flat_out, spec_out)


def module_call(module: nn.Module, parameters: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
    """The module's forward with other parameters, past its hooks."""
    return torch.func.functional_call(_Bare(module), {f"inner.{n}": p for n, p in parameters.items()}, args, kwargs)


class _Bare(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.forward(*args, **kwargs)
