"""A positive control: the same attack on a run of the same configuration with a planted fault.

The control is trained WITHOUT noise, and therefore on public records only: its scores may be published. They measure
how often this attack, with this number of guesses, would convict a run whose noise is missing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.runs.membership import expected_size
from dpaudit.runs.prepare import Prepared, make_canaries
from dpaudit.runs.publish import canary_scores
from dpaudit.runs.records import Records
from dpaudit.runs.sources import load_model

FAULT = "no noise is added, while the ledger claims it; clipping and everything else as configured"


class _NoNoise:
    """The planted fault; marks the run as a test, so that it can never be certified."""

    is_test = True

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        """Zeros."""
        import torch

        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


def train_control(prepared: Prepared, path: Path, advance: Callable[[int], None] = lambda n: None) -> None:
    """Train the control, score its own fresh canaries, and write id, score, member.

    Raises
    ------
    InvalidValue
        For a method whose control is not wired.
    """
    from dpaudit.attacks import commit, draw_nonce, flip_coins, inserted
    from dpaudit.runs.fit import collator, encode, loss_function, merged, select_trainable
    from dpaudit.trainers import OptimizerSettings, train

    config = prepared.config
    if config.privacy.method != "dp-adam":
        raise InvalidValue(
            f"--control with privacy.method={config.privacy.method!r} is not available; it needs method='dp-adam'."
        )
    canaries = make_canaries(config, prepared.tokenizer, prepared.public)
    coins = flip_coins(len(canaries))
    ids = commit(canaries, coins, draw_nonce(), config.canaries.copies).ids
    # As many stand-ins as were declared: the control's scores are published, and may not tell the private count.
    rows = [i % len(prepared.public) for i in range(expected_size(config))]
    stand_in: Records = prepared.public.take(rows)
    supervise = "scored" if config.canaries.kind == "new-token" else "all"
    records = encode(prepared, stand_in) + inserted(canaries, coins, config.canaries.copies, supervise=supervise)
    classes = prepared.public.classes
    model, base = (load_model(config, prepared.base, classes=classes) for _ in range(2))
    model = select_trainable(model, config)
    (plan,) = prepared.plans
    options = config.optimizer
    train(
        model,
        records,
        dataclasses.replace(plan),
        collate=collator(prepared),
        loss_fn=loss_function(prepared),
        journal=MemoryJournal(),
        optimizer=OptimizerSettings(
            algorithm="adamw",
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            warmup_steps=options.warmup_steps,
        ),
        physical_batch_size=options.physical_batch_size,
        callback=lambda report: advance(1),
        noise=_NoNoise(),
    )
    scores = canary_scores(config.audit.attack, canaries, merged(model), base)
    _write(path, ids, scores, np.asarray(coins))


def _write(path: Path, ids: tuple[str, ...], scores: np.ndarray, coins: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(np.asarray(ids))
    table = pa.table(
        {
            "id": pa.array([ids[i] for i in order], pa.string()),
            "score": pa.array(scores[order], pa.float64()),
            "member": pa.array(coins[order].astype(np.int8), pa.int8()),
        }
    )
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def read_control(path: Path) -> Any:
    """The control's scores as the audit takes them, or None when no control was trained."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dpaudit.auditing import Control

    if not path.exists():
        return None
    try:
        table = pq.read_table(path, columns=["id", "score", "member"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InvalidEvidence(f"control scores {path} cannot be read ({str(error).splitlines()[0]}).") from error
    return Control(
        ids=table.column("id").to_pylist(),
        scores=table.column("score").to_numpy(),
        member=table.column("member").to_numpy(),
        fault=FAULT,
    )
