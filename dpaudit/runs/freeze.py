"""Fixing plan, canaries and coins of a run without a training step, so that the plan can be dated by somebody else."""

from __future__ import annotations

from pathlib import Path

from dpaudit.certificates.timestamp import TimestampRequest, timestamp_request
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


def request_timestamp(file: str | Path, out: str | Path | None = None) -> TimestampRequest:
    """Write the request that a timestamping authority answers, for a file, or for the plan of a configuration.

    Parameters
    ----------
    file : path
        What is dated; of a ``.toml`` configuration it is the plan, which is frozen first.
    out : path, optional
        Run folder for the plan of a configuration.
    """
    frozen = freeze(file, out) if Path(file).suffix == ".toml" else Path(file)
    return TimestampRequest(file=frozen, request=timestamp_request(frozen))
