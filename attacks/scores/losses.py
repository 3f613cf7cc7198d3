"""Losses of records under a model: evaluation mode, no gradient, fp32 log-probabilities, float64 sums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.attacks.canaries.canary import IGNORED, CanarySet
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least, one_of

FloatArray = NDArray[np.float64]


@contextmanager
def evaluation(model: Any) -> Iterator[torch.device]:
    """Put every module into evaluation mode without gradients or autocast; yields the model's device, then restores."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield device
    finally:
        for module, mode in modes.items():
            module.training = mode


def sequence_losses(
    model: Any,
    input_ids: object,
    attention_mask: object,
    labels: object,
    *,
    reduction: str = "sum",
    batch_size: int = 64,
) -> FloatArray:
    """Negative log-likelihood of each record, in nats; lower = more familiar to the model.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model, or a sequence classifier when ``labels`` is one-dimensional.
    input_ids, attention_mask : integer arrays (B, L)
        Padded on the right.
    labels : integer array (B, L) or (B,)
        For a causal model the token ids at their own places, -100 where not scored (the shift by one is done here);
        for a classifier one class per record.
    reduction : {"sum", "mean"}
        Over the scored tokens of a record.

    Returns
    -------
    float64 array (B,)
    """
    one_of(("sum", "mean"), reduction=reduction)
    target = np.asarray(labels, dtype=np.int64)
    ids, mask = np.asarray(input_ids, dtype=np.int64), np.asarray(attention_mask)
    if target.ndim == 1:
        return _classification(model, ids, mask, target, batch_size)
    if target.shape != ids.shape:
        raise InvalidValue(f"labels have shape {target.shape} and must have shape {ids.shape} or ({len(ids)},).")
    scored = target != IGNORED
    scored[:, :1] = False  # no model predicts the first token
    if (target != ids)[scored].any():
        raise InvalidValue("labels differ from input_ids at scored places; a causal model predicts the next input id.")
    losses = np.empty(len(ids))
    for rows, log_probs, _ in _token_log_probs(model, ids, mask, scored, batch_size, moments=False):
        # Log-probabilities are fp32, so they are summed in float64, whose error does not grow with the length. A
        # model's NaN stays NaN.
        total = np.where(scored[rows, 1:], log_probs, 0.0).sum(axis=1)
        losses[rows] = -total if reduction == "sum" else -total / np.maximum(scored[rows].sum(axis=1), 1)
    return losses


def canary_losses(model: Any, canaries: CanarySet, *, batch_size: int = 64) -> FloatArray:
    """Loss of each canary's secret part: summed over scored positions, or the label's cross-entropy.

    Where a coin replaces a label, the label's cross-entropy minus that of the other one.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode; it is not changed.
    canaries : CanarySet
        m canaries.
    batch_size : int, default=64
        Records in one forward pass.

    Returns
    -------
    float64 array (m,), in nats; members of a leaky model have lower losses.
    """

    def losses(labels: NDArray[np.int64]) -> FloatArray:
        return sequence_losses(model, canaries.input_ids, canaries.attention_mask, labels, batch_size=batch_size)

    if canaries.labels is None:
        return losses(np.where(canaries.score_mask, canaries.input_ids, IGNORED))
    found = losses(canaries.labels)
    return found if canaries.others is None else found - losses(canaries.others)


@dataclass(frozen=True, slots=True, eq=False)
class TokenStatistics:
    """What the token-level attacks need, each array (m, L - 1), NaN where no token is scored.

    Attributes
    ----------
    log_probs : float64 array
        log p of token t + 1 given the tokens up to t.
    means, deviations : float64 array
        Mean and standard deviation of log p over the model's own next-token distribution.
    """

    log_probs: FloatArray
    means: FloatArray
    deviations: FloatArray


def token_statistics(
    model: Any, input_ids: object, attention_mask: object, *, score_mask: object | None = None, batch_size: int = 64
) -> TokenStatistics:
    """Per-token log-probabilities with their moments, for Min-K% and Min-K%++.

    Parameters
    ----------
    input_ids, attention_mask : integer arrays (m, L)
    score_mask : bool array (m, L), optional
        Tokens to score; by default every token but the first.
    """
    ids, mask = np.asarray(input_ids, dtype=np.int64), np.asarray(attention_mask)
    scored = mask.astype(bool) if score_mask is None else np.array(score_mask, dtype=bool)
    scored[:, :1] = False
    blocks = [
        (values, *moments)
        for _, values, moments in _token_log_probs(model, ids, mask, scored, batch_size, moments=True)
        if moments is not None
    ]
    return TokenStatistics(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _token_log_probs(
    model: Any, ids: NDArray[np.int64], mask: NDArray[Any], scored: NDArray[np.bool_], batch_size: int, *, moments: bool
) -> Iterator[tuple[slice, FloatArray, tuple[FloatArray, FloatArray] | None]]:
    """Yield (rows, log p of tokens 1..L-1, moments) batch by batch; NaN where nothing is scored."""
    integer_at_least(1, batch_size=batch_size)
    if ids.ndim != 2 or mask.shape != ids.shape or scored.shape != ids.shape:
        raise InvalidValue(f"input_ids {ids.shape} and masks {mask.shape}, {scored.shape} must have one shape (m, L).")
    if (scored & ~mask.astype(bool)).any():
        raise InvalidValue("a scored place is masked out by attention_mask; score real tokens only.")
    for start in range(0, len(ids), batch_size):
        rows = slice(start, min(start + batch_size, len(ids)))
        width = max(2, int(np.flatnonzero(mask[rows].any(axis=0)).max(initial=0)) + 1)  # drop padding all rows share
        wanted = scored[rows, 1:width]
        with evaluation(model) as device:
            batch = _tensor(ids[rows, :width], device)
            attention = _tensor(mask[rows, :width], device)
            logits = model(input_ids=batch, attention_mask=attention).logits
            if logits.ndim != 3 or logits.shape[:2] != batch.shape:
                raise InvalidValue(
                    f"the model's output has shape {tuple(logits.shape)} and a causal language model's is "
                    f"({len(batch)}, {width}, vocabulary); load it as a causal model or give class labels."
                )
            # The (places, vocabulary) table is the largest array here, so only scored places are kept.
            places = torch.as_tensor(wanted, device=device)
            table = torch.log_softmax(logits[:, :-1][places].float(), dim=-1)
            chosen = table.gather(1, batch[:, 1:][places][:, None]).squeeze(1)
            pair = None
            if moments:
                p = table.exp()
                mean = (p * table).sum(-1)
                deviation = (p * (table - mean[:, None]) ** 2).sum(-1).sqrt()
                pair = (_spread(mean, wanted, ids.shape[1] - 1), _spread(deviation, wanted, ids.shape[1] - 1))
            values = _spread(chosen, wanted, ids.shape[1] - 1)
        yield rows, values, pair


def _spread(flat: torch.Tensor, wanted: NDArray[np.bool_], width: int) -> FloatArray:
    """Put values back at their places in a NaN array (B, width)."""
    out = np.full((len(wanted), width), np.nan)
    out[:, : wanted.shape[1]][wanted] = flat.double().cpu().numpy()
    return out


def _classification(
    model: Any, ids: NDArray[np.int64], mask: NDArray[Any], labels: NDArray[np.int64], batch_size: int
) -> FloatArray:
    integer_at_least(1, batch_size=batch_size)
    if labels.shape != (len(ids),) or mask.shape != ids.shape:
        raise InvalidValue(f"labels {labels.shape} must hold one class for each of {len(ids)} records.")
    losses = np.empty(len(ids))
    for start in range(0, len(ids), batch_size):
        rows = slice(start, min(start + batch_size, len(ids)))
        with evaluation(model) as device:
            logits = model(
                input_ids=_tensor(ids[rows], device),
                attention_mask=_tensor(mask[rows], device),
            ).logits.float()
            target = _tensor(labels[rows], device)
            if logits.ndim == 2 and logits.shape[1] < 2:
                raise InvalidValue("the model has 1 class, whose cross-entropy is always 0; load a classifier of >= 2.")
            if logits.ndim != 2 or int(target.max()) >= logits.shape[1] or int(target.min()) < 0:
                raise InvalidValue(
                    f"labels reach {int(target.max())} and the model's output has shape {tuple(logits.shape)}; "
                    "labels must be classes of a sequence classifier."
                )
            losses[rows] = torch.nn.functional.cross_entropy(logits, target, reduction="none").double().cpu().numpy()
    return losses


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    # Canary arrays are read-only, and torch warns about memory that it may not write, so it gets a copy.
    return torch.from_numpy(np.array(array, dtype=np.int64)).to(device)
