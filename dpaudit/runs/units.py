"""Units of privacy in a run: who a canary is, what the trainers are told, and what the certificate says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpaudit.runs.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpaudit.runs.records import Records


def draws_units(config: Config) -> bool:
    """Whether whole units are drawn and clipped, and not their records."""
    return config.privacy.sampling_unit == "unit"


def units_of_canary(config: Config) -> int:
    """Units of privacy that an inserted canary is: what the audit calls its copies.

    A canary is nobody's record, so that its copies are one unit of its own, or as many as the bound on a unit's records
    asks for. Where nothing tells units, each copy counts as a unit.
    """
    copies = config.canaries.copies
    if draws_units(config):
        return 1
    if config.data.unit_column is None:
        return copies
    return -(-copies // config.claim.max_records_per_unit)


def units_of_beacon(config: Config) -> int:
    """Units of privacy that an inserted beacon is, counted as those of a canary with so many copies."""
    copies = config.canaries.beacon_copies or 0
    return copies if config.data.unit_column is None else -(-copies // config.claim.max_records_per_unit)


def unit_names(config: Config, records: Records, inserted: int, beacons: int = 0) -> Sequence[Any] | None:
    """Name of each record's unit, real ones first and then ``inserted`` canaries; None where no column tells them.

    Parameters
    ----------
    inserted : int
        Canaries whose coin is 1; the copies of each follow one another.
    beacons : int
        Beacons whose coin is 1, likewise; they come last.
    """
    if records.units is None:
        return None
    copies = config.canaries.copies
    each = copies if draws_units(config) else config.claim.max_records_per_unit
    # A pair cannot be the name of a real unit, which is text.
    artificial = [(canary, copy // each) for canary in range(inserted) for copy in range(copies)]
    more = config.canaries.beacon_copies or 0
    artificial += [(inserted + beacon, copy // each) for beacon in range(beacons) for copy in range(more)]
    return [*records.units, *artificial]


def units_statement(config: Config) -> dict[str, Any]:
    """What is promised for whom and how it was enforced, for a certificate; it holds no count of the records."""
    data, privacy, claim = config.data, config.privacy, config.claim
    whole = draws_units(config)
    stated: dict[str, Any] = {"column": data.unit_column, "drawn": privacy.sampling_unit}
    if whole:
        return stated | {"records_of_a_step": privacy.records_per_unit, "reduction": privacy.unit_reduction}
    rule = data.max_records_rule if data.unit_column is not None else "assumed"
    return stated | {"max_records": claim.max_records_per_unit, "rule": rule}
