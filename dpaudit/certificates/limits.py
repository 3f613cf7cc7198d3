"""Limits that a certificate must state because they follow from its own fields: of the noise, the units, and δ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.delta import delta_limit

UNITS = "units"
"""Key of a mechanism that says which column told the units of privacy, and how their records were bounded."""
_LEAST_SUPPORT = 8.0  # standard deviations; a Gaussian has mass 1.2e-15 beyond


def derived_limits(body: Predicate) -> list[str]:
    """Sentences on what the noise does not prove, where its values end, units that nothing told, and a large δ.

    Parameters
    ----------
    body : Predicate
        Of a certificate; ``mechanism``, ``claim`` and ``ledger`` are read.
    """
    mechanism, claim, ledger = body.mechanism, body.claim, body.ledger
    unproven = mechanism.get("noise_not_proven") or ()
    limits = [f"Of the noise it does not prove: {text}." for text in unproven]
    support = mechanism.get("noise_support_sigma")
    if isinstance(support, bool) or not isinstance(support, (int, float)):
        limits.append("Where the values of the noise end is not stated; a Gaussian's do not.")
    elif support < _LEAST_SUPPORT:
        limits.append(
            f"The noise ends at {support:g} standard deviations, and the accounted Gaussian does not: a release near"
            " that edge can prove which data set it came from."
        )
    if claim is not None and isinstance(mechanism.get(UNITS), Mapping):
        limits += unit_premise(claim.unit, claim.max_records_per_unit, mechanism)
    if claim is not None and ledger is not None:
        sizes = [stage["public_size"] for stage in ledger.stages if stage.get("public_size") is not None]
        if (limit := delta_limit(claim.delta, max(sizes, default=None))) is not None:
            limits.append(f"The claimed {limit}")
    return limits


def unit_premise(unit: str, max_records: int, mechanism: Mapping[str, Any]) -> tuple[str, ...]:
    """The premise on the unit of privacy that nothing checked, as a sentence; empty where a column told the units."""
    stated = mechanism.get(UNITS)
    if isinstance(stated, Mapping) and stated.get("column"):
        return ()
    most = "one record" if max_records == 1 else f"{max_records} records"
    return (
        f"That no {unit} has more than {most} in the data is an assumption: no column told which records belong"
        " together, and nothing counted them.",
    )
