"""Fixing plan, canaries and coins of a run without a training step, so that the plan can be dated by somebody else."""

from __future__ import annotations

from pathlib import Path

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import read_config
from dpaudit.runs.progress import quiet_transformers
from dpaudit.runs.run import begin


def freeze(config: str | Path, out: str | Path | None) -> Path:
    """Prepare a run and return its frozen ``audit_plan.json``; ``train`` or ``certify`` goes on from there.

    Raises
    ------
    InvalidValue
        As :func:`dpaudit.train` does before its first step.
    """
    from dpaudit.runs.prepare import prepare

    path = Path(config)
    if out is None:
        raise InvalidValue(f"--out is missing; name the run folder, as in: dpaudit timestamp {path} --out runs/first.")
    quiet_transformers()
    job = begin(read_config(path), path.resolve().parent, Path(out))
    with job.folder.locked():
        prepare(job.config, job.base, job.folder)
    return job.folder.audit_plan
