"""Models that are refused before the first step, whatever the loss: wrapped, compiled, or with computed weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dpaudit.privacy.errors import PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.distributed.shards import local, refuse_other_shards

_WRAPPERS = {
    "DistributedDataParallel": "averages gradients before they are clipped; pass the plain model and"
    " distributed_options()",
    "DataParallel": "adds gradients up before they are clipped; pass the plain model, one process for each device, and"
    " distributed_options()",
    "FullyShardedDataParallel": "is FSDP1, which flattens layers into one parameter; apply fully_shard (FSDP2) instead",
    "DeepSpeedEngine": "owns gradients and updates; pass the plain model, and apply fully_shard (FSDP2) where it does"
    " not fit one device",
    "ReplicateModule": "averages gradients before they are clipped; pass the plain model and distributed_options()",
}


def refuse_model(model: nn.Module) -> None:
    """Refuse a model whose per-example contributions nothing here can bound, with the remedy.

    Raises
    ------
    PrivacyRefusal
        For wrappers that reduce or shard gradients; see :func:`refuse_wrapped`.
    UnsupportedModel
        For compiled modules and computed weights; see :func:`refuse_compiled` and :func:`refuse_computed_weights`.
        Also for lazy modules, whose weights do not exist before the first batch.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise UnsupportedModel(
                f"parameter {name!r} ({kind}) has no shape yet; call the model once on a made-up batch before training,"
                " so that every weight exists."
            )
    refuse_wrapped(model)
    refuse_compiled(model)
    refuse_computed_weights(model)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse wrappers that reduce gradients behind the clipper, and shards that are not data parallel.

    Raises
    ------
    PrivacyRefusal
        For DataParallel, DistributedDataParallel, FSDP1, DeepSpeed, a ``device_map`` over several devices, and tensor
        parallel (DTensor) parameters. FSDP2's ``fully_shard`` passes.
    """
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        for wrapper, why in _WRAPPERS.items():
            if wrapper in kinds:
                raise PrivacyRefusal(f"module {name or 'model'!r} is wrapped by {wrapper}, which {why}.")
    placed = getattr(model, "hf_device_map", None) or {}
    if len(devices := sorted({str(device) for device in placed.values()})) > 1:
        raise PrivacyRefusal(
            f"device_map spreads the model over {', '.join(devices)}, where its layers wait for one another and hooks"
            " move what they compute; load it without device_map, and apply fully_shard (FSDP2) in one process for each"
            " device."
        )
    refuse_other_shards(model)


def refuse_compiled(model: nn.Module) -> None:
    """Refuse modules compiled by ``torch.compile``, before anything is compiled, and TorchScript.

    A compiled part without a trained parameter hides nothing from the clipper, and passes where its graph may be walked
    more than once.

    Raises
    ------
    UnsupportedModel
        For a compiled model or part, whether wrapped, compiled in place, or with a compiled forward.
    """
    for name, module in model.named_modules():
        frozen = not any(p.requires_grad for p in module.parameters())
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModel(
                f"module {name or type(model).__name__} is TorchScript (torch.jit), which hides layers from the"
                " clipper; pass the eager model."
            )
        if is_compiled(module):
            if frozen and not _gives_its_buffers_away():
                continue
            if frozen:
                raise UnsupportedModel(
                    f"module {name} is frozen and compiled, and its graph could be walked once alone, where the"
                    " preflight and the lean mode walk it again; set torch._functorch.config.donated_buffer = False"
                    " before its first call."
                )
            raise UnsupportedModel(
                f"module {name or type(model).__name__} is compiled by torch.compile, which hides layers from the"
                " clipper; pass the eager model."
            )


def is_compiled(module: nn.Module) -> bool:
    """Whether the module is what torch.compile made of one, or was compiled in place, itself or its forward."""
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )


def _gives_its_buffers_away() -> bool:
    """Whether what torch.compile compiles now frees what a second backward pass would need."""
    from torch._functorch import config

    return bool(getattr(config, "donated_buffer", False))


def refuse_computed_weights(model: nn.Module) -> None:
    """Refuse trainable modules whose weight is computed from other tensors: re-parametrised, normalised or pruned.

    The rules for norms and perturbations know a layer's weight as its parameter. Where it is a function of other
    parameters (weight norm, spectral norm, an orthogonal or an own parametrization, a pruning mask), they do not hold.

    Raises
    ------
    UnsupportedModel
        Names the parameter and how to make the weight a parameter again. A wholly frozen module passes.
    """
    for name, module in model.named_modules():
        trained = [local for local, p in _own_parameters(module) if p.requires_grad]
        if not trained:
            continue
        found = _computed(module)
        if found is not None:
            tensor, how, remedy = found
            kind = parametrize.type_before_parametrizations(module).__name__
            local = next((local for local in trained if tensor in local), trained[0])
            at = f"{name}.{local}" if name else local
            raise UnsupportedModel(
                f"parameter {at!r} belongs to a {kind} whose {tensor} is computed"
                f" ({how}), so that no rule here bounds its contribution per example; {remedy}, or freeze the module."
            )


@torch.no_grad()
def refuse_broken_weights(model: nn.Module) -> None:
    """Refuse weights that are not finite before the first step.

    Raises
    ------
    UnsupportedModel
        Names the parameter; every loss would be NaN, which clipping turns into a run of noise alone.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(local(parameter)).all()):
            raise UnsupportedModel(
                f"parameter {name!r} holds values that are NaN or infinite, so that no loss is a number; load the"
                " weights again."
            )


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a module itself, and those that its parametrizations compute from."""
    yield from module.named_parameters(recurse=False)
    if parametrize.is_parametrized(module):
        for local, parameter in module.parametrizations.named_parameters():  # type: ignore[union-attr]
            yield f"parametrizations.{local}", parameter


def _computed(module: nn.Module) -> tuple[str, str, str] | None:
    """Name of a tensor of a module that is computed, how, and how to undo that; None where each is a parameter."""
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        tensor, chain = next(iter(parametrizations.items()))
        how = f"parametrization {type(chain[0]).__name__.lstrip('_')}"
        return tensor, how, f"call torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r})"
    for hook in module._forward_pre_hooks.values():
        kinds = {kind.__name__ for kind in type(hook).__mro__}
        if "BasePruningMethod" in kinds:
            tensor = hook._tensor_name  # type: ignore[attr-defined]
            return tensor, "pruning mask", f"call torch.nn.utils.prune.remove(module, {tensor!r})"
        for kind, undo in (("WeightNorm", "remove_weight_norm"), ("SpectralNorm", "remove_spectral_norm")):
            if kind in kinds:
                tensor = hook.name  # type: ignore[attr-defined]
                return tensor, kind, f"call torch.nn.utils.{undo}(module, {tensor!r})"
    for tensor in ("weight", "bias"):
        value = vars(module).get(tensor)
        if isinstance(value, Tensor) and value.requires_grad:
            return tensor, "a plain tensor", f"make {tensor!r} an nn.Parameter of the module"
    return None
