"""Training from a configuration into a run folder, with canaries and a ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpaudit.runs.config import read_config, with_device
from dpaudit.runs.follower import follow_the_first
from dpaudit.runs.run import begin, train_phase


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What :func:`dpaudit.train` left in the run folder.

    Attributes
    ----------
    status : str
        ``attacked``: trained, and the canaries are scored.
    run : Path
        The run folder; give it to :func:`dpaudit.certify`.
    scores : Path
        Scores of the canaries, without their coins.
    steps : int
        Private steps that were counted.
    heldout_before, heldout_after : float or None
        Perplexity (causal models) or accuracy (classifiers) on public text, before and after.
    """

    status: str
    run: Path
    scores: Path
    steps: int
    heldout_before: float | None
    heldout_after: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.train/1``."""
        return {
            "schema": "dpaudit.train/1",
            "status": self.status,
            "run": str(self.run),
            "steps": self.steps,
            "heldout_before": self.heldout_before,
            "heldout_after": self.heldout_after,
        }

    def __str__(self) -> str:
        return f"trained {self.steps} private steps; scores in {self.scores}\nnext: dpaudit certify {self.run}"


def train(
    config: str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> TrainedRun:
    """Fine-tune privately with canaries, from a TOML configuration into a run folder.

    Running it again after a stop resumes the run: steps already counted stay charged. Where a launcher started several
    processes, the first alone returns: the others end their program with the training phase.

    Parameters
    ----------
    config : path
        TOML configuration; every privacy decision stands in it.
    out : path
        Run folder to create or resume.
    device : str, optional
        Torch device to train on, in place of the configuration's ``optimizer.device``.
    tell : callable, optional
        Receives what is worth knowing before the first step, one sentence at a time.

    Returns
    -------
    TrainedRun

    Raises
    ------
    InvalidValue, PrivacyRefusal, UnsupportedModel
        Before the first step, with what to change.
    """
    path = Path(config)
    declared = with_device(read_config(path), device)
    follow_the_first(declared)
    job = train_phase(begin(declared, path.resolve().parent, Path(out)), tell=tell)
    facts = job.record.facts
    return TrainedRun(
        status=job.record.status,
        run=Path(out),
        scores=job.folder.scores,
        steps=facts["steps_counted"],
        heldout_before=facts["heldout_before"],
        heldout_after=facts["heldout_after"],
    )
