"""Model folders: causal or classifier, plain or adapter, loaded in fp32 from disk only."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import integer_at_least

_UNBOUNDED = 10**9  # tokenizers without a limit report about 1e30


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder's ``config.json``; an adapter folder's comes from the base model that it names."""
    path = Path(folder)
    if not path.is_dir():
        raise InvalidValue(
            f"model folder {str(folder)!r} does not exist; names of the Hugging Face hub are not downloaded: save the"
            " model with save_pretrained and give its folder."
        )
    own, adapter = path / "config.json", path / "adapter_config.json"
    try:
        if own.is_file():
            return dict(json.loads(own.read_text(encoding="utf-8")))
        if adapter.is_file():
            settings = json.loads(adapter.read_text(encoding="utf-8"))
            inner = read_config(settings["base_model_name_or_path"])
            if settings.get("task_type") == "SEQ_CLS":
                inner["architectures"] = ["ForSequenceClassification"]
            return inner
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidEvidence(
            f"{path} has a model configuration that cannot be read ({error}); save it again."
        ) from error
    raise InvalidEvidence(
        f"{path} holds neither config.json nor adapter_config.json; give a folder of save_pretrained."
    )


def is_causal(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a causal language model (True) or a sequence classifier (False)."""
    names = read_config(folder).get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return False
    if not names or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return True
    raise InvalidValue(
        f"{folder} holds {', '.join(names)}, which is neither a causal language model nor a sequence classifier; "
        "attacks score next tokens or labels."
    )


def class_names(folder: str | os.PathLike[str]) -> tuple[dict[str, int], int]:
    """Class numbers by the names that a classifier's configuration gives, and the number of classes."""
    config = read_config(folder)
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return {}, int(config.get("num_labels") or 2)
    return {str(name): int(number) for number, name in names.items()}, len(names)


def load_model(folder: str | os.PathLike[str], *, device: str | None = None) -> Any:
    """Load a model in fp32, evaluation mode, without any network access.

    Parameters
    ----------
    folder : path
        Of ``save_pretrained``; an adapter folder needs peft and its base model on disk.
    device : str, optional
        Torch device; default cuda where there is one.
    """
    import torch
    import transformers

    auto = transformers.AutoModelForCausalLM if is_causal(folder) else transformers.AutoModelForSequenceClassification
    try:
        model = auto.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    except Exception as error:  # what a damaged file raises depends on the format and its reader
        raise InvalidEvidence(f"{folder} cannot be loaded as a model ({_reason(error)}); check the folder.") from error


def load_tokenizer(folder: str | os.PathLike[str], *, needed: bool) -> Any:
    """Load the folder's tokenizer; None when there is none and it is not needed."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not needed:
            return None
        raise InvalidEvidence(
            f"{folder} has no tokenizer that can be loaded ({_reason(error)}); save it there."
        ) from error


def perturb(folder: str | os.PathLike[str], texts: Sequence[str], *, n: int, device: str | None) -> list[list[str]]:
    """n neighbours of each text by the masked language model in a folder."""
    import numpy as np
    import torch
    import transformers

    from dpaudit.attacks.scores.neighbours import neighbour_texts

    names = read_config(folder).get("architectures") or []
    if not any(name.endswith("ForMaskedLM") for name in names):
        raise InvalidValue(
            f"{folder} holds {', '.join(names) or 'no architecture'} and must hold a masked language model."
        )
    try:
        model = transformers.AutoModelForMaskedLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        ).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidEvidence(f"{folder} cannot be loaded as a model ({_reason(error)}); check the folder.") from error
    return neighbour_texts(model, load_tokenizer(folder, needed=True), texts, n=n, rng=np.random.default_rng())


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def longest_record(folder: str | os.PathLike[str], tokenizer: Any, max_length: int | None) -> int | None:
    """Longest record in tokens: the given one, bounded by the model's positions and the tokenizer's limit."""
    config = read_config(folder)
    limits = [config.get("max_position_embeddings"), config.get("n_positions")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    bounds = [int(value) for value in limits if value is not None and 0 < value < _UNBOUNDED]
    if max_length is not None:
        integer_at_least(2, max_length=max_length)
        if bounds and max_length > min(bounds):
            raise InvalidValue(f"max_length={max_length} is more than the {min(bounds)} tokens that {folder} can read.")
        return max_length
    return min(bounds, default=None)
