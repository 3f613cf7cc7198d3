"""Keep losses independent of padding: which targets count, and at which token a record starts.

A record's loss is a function of that record. Padding that other records bring into its batch stands on the right, on
the left, or in the targets alone; wherever it stands, the record counts the same targets, from its own first token on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers.ghost.head import IGNORED

_STRETCHED = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the longest record of the batch."""


def shifted_targets(targets: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Targets (B, T−1) of a causal model's first T−1 positions, from unshifted ``targets`` (B, T).

    A target counts where it is attended AND the position that predicts it is. The first token of a record padded on
    the left is predicted from a padding position, which is there only because another record is longer.
    """
    if attention_mask is None:
        return targets[:, 1:]
    attended = _two_axes(attention_mask, targets) != 0
    return targets[:, 1:].masked_fill(~(attended[:, 1:] & attended[:, :-1]), IGNORED)


def attended_targets(targets: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Targets (B, T) of a model that predicts each token at its own position: those on padding do not count."""
    if attention_mask is None:
        return targets
    return targets.masked_fill(_two_axes(attention_mask, targets) == 0, IGNORED)


def decoder_labels(labels: Tensor) -> Tensor:
    """Labels (B, T) of a decoder with each row's leading -100 moved to its end, (B, T).

    Decoders read the labels, shifted, as their input. Leading padding would move a record's decoder positions.
    """
    lead = _leading(labels != IGNORED)
    if not bool(lead.any()):
        return labels
    at = torch.arange(labels.shape[1], device=labels.device)
    return labels.gather(1, (at + lead[:, None]) % labels.shape[1])


def starting_left(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with each row's leading padding moved to its end, so that every record starts at its own first token.

    Models count positions, pool, and keep states from the first column on. Only where that column is a record's own is
    what they compute the record's alone. A field moves with its tokens where its first axes are those of the (B, T)
    ``attention_mask``: ids, labels, types, positions, embeddings. A batch without such a mask, without leading padding,
    or with a (…, T, …) field that cannot be moved with the tokens comes back as it was.
    """
    found, mask = dict(batch), batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return found
    lead = _leading(mask != 0)
    if not bool(lead.any()) or any(_crossed(name, value, mask) for name, value in found.items()):
        return found
    at = (torch.arange(mask.shape[1], device=mask.device) + lead[:, None]) % mask.shape[1]
    for name, value in found.items():
        if isinstance(value, Tensor) and value.shape[:2] == mask.shape:
            found[name] = torch.take_along_dim(value, at.view(*at.shape, *[1] * (value.ndim - 2)), dim=1)
    return found


def refuse_stretched(model: nn.Module, width: int) -> None:
    """Refuse a batch of ``width`` tokens where that width decides the rotary frequencies of every record in it.

    Raises
    ------
    PrivacyRefusal
        For dynamic and long rotary embeddings beyond the length that they were first trained for.
    """
    config = getattr(model, "config", None)
    groups = getattr(config, "rope_parameters", None)
    if not isinstance(groups, Mapping):
        return
    for rope in (groups, *groups.values()):
        kind = rope.get("rope_type") if isinstance(rope, Mapping) else None
        if kind not in _STRETCHED:
            continue
        most = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        if most is not None and width > int(most):
            raise PrivacyRefusal(
                f"a batch of {width} tokens exceeds the {most} of rope_type={kind!r}, beyond which the longest record"
                f" sets the rotary frequencies of all; cut records to {most} tokens."
            )


def check_token_labels(labels: Tensor, shape: torch.Size, vocabulary: int) -> None:
    """Refuse token labels of another shape than the predictions (B, T), or outside the vocabulary.

    Raises
    ------
    InvalidValue
        One sentence; the offending label, which is private, is not in it.
    """
    if labels.shape != shape:
        raise InvalidValue(
            f"labels of shape {tuple(labels.shape)} must be {tuple(shape)}, one for each token; use -100 where none"
            " counts."
        )
    if labels.is_floating_point():
        raise InvalidValue(f"labels of type {labels.dtype} must be integer token ids; use -100 where none counts.")
    if bool(((labels >= vocabulary) | ((labels < 0) & (labels != IGNORED))).any()):
        raise InvalidValue(
            f"labels must be -100 or in [0, {vocabulary}), the tokens that the model predicts; encode them with the"
            " model's own tokenizer."
        )


def _two_axes(mask: Tensor, targets: Tensor) -> Tensor:
    if mask.shape != targets.shape:
        raise InvalidValue(
            f"attention_mask of shape {tuple(mask.shape)} must be {tuple(targets.shape)}, one entry for each token;"
            " records packed into a row with a block mask have no loss of their own."
        )
    return mask


def _crossed(name: str, value: Any, mask: Tensor) -> bool:
    """Whether a field relates tokens to tokens, as a (B, T, T) bias does, so that moving one axis would tear it."""
    if not isinstance(value, Tensor) or value.ndim < 3 or name.endswith("embeds"):
        return False
    width = mask.shape[1]
    return value.shape[0] == len(mask) and width in (value.shape[2:] if value.shape[1] == width else value.shape[1:])


def _leading(kept: Tensor) -> Tensor:
    """Number of entries before the first kept one, (B,); 0 for a row that keeps none."""
    lead = (kept.cumsum(1) == 0).sum(1)
    return lead.masked_fill(lead == kept.shape[1], 0)
