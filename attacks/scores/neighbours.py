"""Perturbed copies of a text by a masked language model, for the neighbourhood attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dpaudit.attacks.scores.losses import evaluation
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least


def neighbour_texts(
    masked_model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    n: int,
    rng: np.random.Generator,
    share: float = 0.15,
    batch_size: int = 64,
) -> list[list[str]]:
    """n neighbours of each text: a share of its tokens masked and filled in anew by sampling.

    A filled-in token always differs from the one it replaces.

    Parameters
    ----------
    masked_model, tokenizer
        A masked language model and its own tokenizer; public, and not the audited model.
    texts : sequence of m str
    n : int
        Neighbours of each text; 25 to 100 are usual.
    share : float
        Share of ordinary tokens to replace, in (0, 1]; at least one.
    batch_size : int
        Neighbours per forward pass.

    Returns
    -------
    list of m lists of n str
    """
    integer_at_least(1, n=n, batch_size=batch_size)
    if not 0 < share <= 1:
        raise InvalidValue(f"share={share} must be in (0, 1]; 0.15 is usual.")
    if tokenizer.mask_token_id is None:
        raise InvalidValue("the tokenizer has no mask token; give a masked language model and its tokenizer.")
    banned = torch.tensor(sorted(int(i) for i in tokenizer.all_special_ids))
    special = set(banned.tolist())
    jobs: list[tuple[int, np.ndarray, np.ndarray]] = []  # text, original ids, masked places
    for index, text in enumerate(texts):
        ids = np.array([int(i) for i in tokenizer(text, truncation=False)["input_ids"]])
        places = np.flatnonzero([int(i) not in special for i in ids])
        if not places.size:
            raise InvalidValue(f"texts[{index}] has no ordinary token to replace; remove it.")
        count = max(1, int(share * places.size))
        jobs += [(index, ids, rng.choice(places, size=count, replace=False)) for _ in range(n)]
    made: list[list[str]] = [[] for _ in texts]
    for start in range(0, len(jobs), batch_size):
        block = jobs[start : start + batch_size]
        width = max(len(ids) for _, ids, _ in block)
        batch = np.full((len(block), width), tokenizer.pad_token_id or 0, dtype=np.int64)
        attention = np.zeros_like(batch)
        for row, (_, ids, places) in enumerate(block):
            batch[row, : len(ids)], attention[row, : len(ids)] = ids, 1
            batch[row, places] = tokenizer.mask_token_id
        with evaluation(masked_model) as device:
            logits = masked_model(
                input_ids=torch.from_numpy(batch).to(device), attention_mask=torch.from_numpy(attention).to(device)
            ).logits.float()
            logits[:, :, banned.to(device)] = -torch.inf
            for row, (index, ids, places) in enumerate(block):
                table = logits[row, torch.from_numpy(places).to(device)].cpu().numpy()
                table[np.arange(len(places)), ids[places]] = -np.inf
                # The Gumbel trick draws from a softmax by an argmax, so that all randomness is the caller's rng.
                filled = ids.copy()
                filled[places] = np.argmax(table + rng.gumbel(size=table.shape), axis=1)
                made[index].append(str(tokenizer.decode(filled.tolist(), skip_special_tokens=True)))
    return made
