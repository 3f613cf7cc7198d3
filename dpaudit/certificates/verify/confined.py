"""Verifying in a process of its own, with limits; the caller's process imports nothing that the work itself needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dpaudit.certificates.bundle import opened
from dpaudit.certificates.verify.report import VerificationReport
from dpaudit.storage.confined import LIMITS, Limits, call


def verify_certificate(
    path: Path | str, *, policy: Path | str | None = None, limits: Limits = LIMITS
) -> VerificationReport:
    """Re-derive every number of a certificate from its evidence, without the model, in a confined process.

    Parameters
    ----------
    path : path
        ``certificate.json``, the run folder or ``release/`` folder that holds it, or a bundle of it. Evidence beside
        it (ledger, plan, scores, weights) is used where it is present.
    policy : path, optional
        TOML file with the reader's own rules; see the policy keys in the documentation.
    limits : Limits, optional
        Computing time and memory. What does not finish within them is not recomputed and supports nothing.

    Returns
    -------
    VerificationReport
        ``exit_code`` is the verdict's (0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid), and
        3 when anything that was recomputed differs.

    Raises
    ------
    InvalidEvidence
        When the certificate cannot be read at all, or not within the limits.
    """
    try:
        folder = os.getcwd()
    except OSError:  # the working folder was removed, and an absolute path can be read all the same
        folder = os.sep
    with opened(Path(path), limits) as place:
        arguments = {"path": str(place), "policy": None if policy is None else str(policy), "folder": folder}
        return VerificationReport.from_plain(call(_verify_for_another_process, arguments, limits))


def _verify_for_another_process(path: str, policy: str | None, folder: str) -> dict[str, Any]:
    from dpaudit.certificates.verify.verify import verify_here

    os.chdir(folder)
    return verify_here(path, policy=policy).to_plain()
