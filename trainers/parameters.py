"""Which parameters are trained: all, or one of the low-dimensional alternatives the paper compares with."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, UnsupportedModel

CHOICES = ("all", "head", "bias", "lora", "prefix")
_HEADS = ("classifier", "score", "qa_outputs", "lm_head", "cls", "pre_classifier")


def trained_parameters(model: nn.Module, choice: str, **options: Any) -> nn.Module:
    """The model with the parameters of one method trainable and the rest frozen.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    choice : str
        - "all": full fine-tuning
        - "head": the output head alone (a linear probe where it is one layer)
        - "bias": biases and a classification head, BitFit (Ben Zaken et al. 2106.10199; private: Bu et al. 2210.00036)
        - "lora": low-rank adapters through peft (Hu et al. 2106.09685); ``rank``, ``alpha``, ``targets``
        - "prefix": prefix tuning through peft (Li and Liang 2101.00190); ``length``

        An output layer that is tied to the embeddings counts as embedding: "head" refuses it, "bias" freezes it.
    **options : int, float or sequence of str
        Of "lora" (``rank``, ``alpha``, ``targets``) and "prefix" (``length``); refused with the others.

    Returns
    -------
    nn.Module
        The same model, or for "lora" and "prefix" peft's wrapper around it. Parameters that train only together with a
        new classification head are trained with it.

    Raises
    ------
    InvalidValue
        If ``choice`` or an option is unknown.
    UnsupportedModel
        If the model has nothing of this kind to train.
    """
    validate.one_of(CHOICES, choice=choice)
    if choice in ("lora", "prefix"):
        return _adapted(model, choice, **options)
    if options:
        raise InvalidValue(f"{sorted(options)[0]}= is an option of lora and prefix, not of choice={choice!r}; drop it.")
    head = head_parameters(model)
    if choice == "head" and not head:
        raise UnsupportedModel(
            f"model {type(model).__name__} has no output head of its own (its output layer is tied to the embeddings,"
            " or has another name); choose 'all', 'bias' or 'lora'."
        )
    for name, parameter in model.named_parameters():
        biased = choice == "bias" and name.rpartition(".")[2].endswith("bias")
        parameter.requires_grad_(choice == "all" or name in head or biased)
    if not any(p.requires_grad for p in model.parameters()):
        raise UnsupportedModel(f"model {type(model).__name__} has no bias to train; choose 'all' or 'lora'.")
    return model


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the output head's parameters, without those shared with an embedding."""
    shared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return frozenset(
        name for name, p in model.named_parameters() if name.split(".")[0] in _HEADS and id(p) not in shared
    )


def _adapted(model: Any, choice: str, **options: Any) -> nn.Module:
    if importlib.util.find_spec("peft") is None:
        raise InvalidValue(f"choice={choice!r} needs the package 'peft'; run: pip install peft.")
    import peft

    task = _peft_task(model)
    config: Any
    if choice == "lora":
        known = {"rank": 8, "alpha": 16, "targets": None}
        _refuse_unknown(options, known)
        values = {**known, **options}
        config = peft.LoraConfig(
            task_type=task,
            r=values["rank"],
            lora_alpha=values["alpha"],
            target_modules=values["targets"],
            lora_dropout=0.0,
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        )
    else:
        known = {"length": 10}
        _refuse_unknown(options, known)
        config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens={**known, **options}["length"])
    try:
        wrapped: nn.Module = peft.get_peft_model(model, config)
    except (ValueError, AttributeError) as error:  # peft knows no layers of this family, or the targets fit none
        raise UnsupportedModel(
            f"model {type(model).__name__} cannot be given {choice} by peft ({str(error).splitlines()[0][:120]});"
            " name its linear layers in targets= from Python, or choose 'all' or 'bias'."
        ) from error
    return wrapped


def _refuse_unknown(options: dict[str, Any], known: dict[str, Any]) -> None:
    if unknown := sorted(set(options) - set(known)):
        raise InvalidValue(f"option {unknown[0]!r} is unknown; known options are {', '.join(known)}.")


def _peft_task(model: nn.Module) -> str | None:
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM"
    return None
