"""Row 2: hyper-parameters at fixed ε as heat maps: batch, learning rate, epochs and clipping norm.

The small pretrained model, full fine-tuning on 1,500 private paragraphs at ε = 3. A cell is one combination; no cell is
chosen by what the others show, so nothing is selected on the test part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from findings import language, pretrained, texts
from findings.jobs import Job, Options, named, seeded

RECORDS, LENGTH, EPSILON = 1500, 16, 3.0
BATCHES, RATES, EPOCHS, NORMS = (25, 100, 400), (1e-3, 4e-3, 1.6e-2), (1, 2, 6), (0.01, 0.1, 1.0, 10.0)
SIZE = "small"


def cells() -> Iterator[dict[str, Any]]:
    """Batch by rate, clipping norm by rate, batch by epochs; then batch by rate without privacy."""
    seen = set()
    base = {"batch": 100, "rate": 4e-3, "epochs": 2, "norm": 0.1, "epsilon": EPSILON}
    maps = (
        [{"batch": b, "rate": r} for b in BATCHES for r in RATES],
        [{"norm": c, "rate": r} for c in NORMS for r in RATES],
        [{"batch": b, "epochs": t} for b in BATCHES for t in EPOCHS],
        [{"batch": b, "rate": r, "epsilon": None, "norm": None} for b in BATCHES for r in RATES],
    )
    for change in (cell for cells_of in maps for cell in cells_of):
        cell = {**base, **change}
        if tuple(cell.items()) not in seen:
            seen.add(tuple(cell.items()))
            yield cell


def measured(cell: dict[str, Any], seed: int, options: Options) -> dict[str, Any]:
    """One cell with one seed."""
    torch.manual_seed(seed)
    size = SIZE if options.steps is None else "trial"
    model = pretrained.model("causal", size)
    pad, parts = pretrained.tokenizer().pad_token_id, texts.paragraphs(RECORDS)
    rows = pretrained.encoded(parts.training, LENGTH)
    steps = options.at_most(max(1, round(cell["epochs"] * RECORDS / cell["batch"])))
    common = {"collate": language.collator(pad), "loss_fn": language.lm_losses, "rate": cell["rate"], "steps": steps}
    if cell["epsilon"] is None:
        found = language.ordinary(model, rows, batch=cell["batch"], seed=seed, **common)
    else:
        found = language.private(
            model, rows, epsilon=cell["epsilon"], batch=cell["batch"], clipping_norm=cell["norm"], **common
        )
    test = pretrained.encoded(parts.test, LENGTH)
    return {**found, "perplexity": language.perplexity(model, test, pad=pad), "steps": steps}


def jobs(options: Options) -> Iterable[Job]:
    """Every cell, three seeds."""
    return seeded(
        lambda seed, c=cell: Job(
            2,
            named(**{k: "none" if k == "epsilon" and v is None else v for k, v in c.items()}),
            seed,
            lambda: measured(c, seed, options),
        )
        for cell in cells()
    )
