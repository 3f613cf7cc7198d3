"""The clipping rule of each module: how its per-example gradient norm and sum are found."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.ghost.faster import has_usual_forward
from dpaudit.trainers.ghost.instance import InstanceSite, is_elementwise, is_linear, kinds_of, refuse_coupled
from dpaudit.trainers.ghost.sites import (
    ConvolutionSite,
    EmbeddingSite,
    Engine,
    GainSite,
    LinearSite,
    NormSite,
    OverriddenEmbeddingSite,
    RelativeBiasSite,
    Site,
    bias_method,
)

#: Modules whose 2-D inputs are (B·T, d) with the example index slowest, in transformers 5.
_FLATTENS_BATCH_MAJOR = ("OPTDecoderLayer",)


def sites_of(model: nn.Module, engine: Engine) -> Iterator[Site]:
    """A site for every module with trainable parameters of its own, in the model's order.

    Raises
    ------
    UnsupportedModel
        A trainable parameter has no rule; the message names it.
    """
    inside: set[int] = set()
    for name, module in model.named_modules():
        refuse_coupled(name, module)
        own = {local: p for local, p in module._parameters.items() if p is not None}
        if id(module) in inside or not any(p.requires_grad for p in own.values()):
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        flattened = not kinds_of(owner).isdisjoint(_FLATTENS_BATCH_MAJOR)
        kind = _kind(name, module, own, owner)
        if kind is InstanceSite:
            everything = {n: p for n, p in module.named_parameters() if p is not None}
            inside |= {id(m) for m in module.modules()}
            if module is model and next(module.children(), None) is not None:
                raise UnsupportedModel(
                    f"parameter {next(iter(own))} sits directly on the model {type(model).__name__} and has no"
                    " per-example rule; freeze it or move it into a module of its own."
                )
            if any(hasattr(part, "_get_fsdp_state") for part in module.modules() if part is not module):
                raise UnsupportedModel(
                    f"module {name} ({type(module).__name__}) has no rule of its own and runs as a whole, but parts of"
                    " it are sharded apart; leave fully_shard away from the modules inside it."
                )
            yield InstanceSite(name, module, engine, everything)
        else:
            yield kind(name, module, engine, own, flattened)


def _kind(name: str, module: nn.Module, own: dict[str, nn.Parameter], owner: nn.Module) -> type[Site]:
    forward = type(module).forward
    if has_usual_forward(module) or is_linear(module, own):
        return LinearSite
    if isinstance(module, nn.Embedding):
        coupled = [k for k in ("max_norm", "scale_grad_by_freq", "sparse") if getattr(module, k)]
        if coupled:
            raise UnsupportedModel(
                f"parameter {name}.weight is an embedding with {coupled[0]}={getattr(module, coupled[0])}, which"
                " couples examples or hides the gradient; switch the option off."
            )
        if name.endswith(".relative_attention_bias") and bias_method(owner) is not None:
            return RelativeBiasSite
        return EmbeddingSite if forward is nn.Embedding.forward else OverriddenEmbeddingSite
    if forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return NormSite
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward) and getattr(module, "groups", 0) == 1:
        return ConvolutionSite
    return GainSite if is_elementwise(module, own) else InstanceSite
