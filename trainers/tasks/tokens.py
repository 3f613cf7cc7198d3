"""The mean token loss of each example, on which every language task rests."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dpaudit.trainers.ghost.head import IGNORED as IGNORED
from dpaudit.trainers.ghost.uses import wide
from dpaudit.trainers.tasks.padding import check_token_labels


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each example's own counted tokens.

    Parameters
    ----------
    logits : Tensor of shape (B, T, V)
        Prediction for the label at the same position.
    labels : Tensor of shape (B, T)
        Token ids; ``-100`` does not count.

    Returns
    -------
    Tensor of shape (B,)
        In nats, at least fp32; 0 for an example without counted tokens.
    """
    check_token_labels(labels, logits.shape[:2], logits.shape[2])
    counted = labels != IGNORED
    logits = wide(logits.flatten(0, 1))
    flat = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none").view(labels.shape)
    return flat.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
