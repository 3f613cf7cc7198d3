"""A catalogue of privacy faults, each a small mutation of a correct trainer, injected below the examiner's adapter.

Plan and ledger of a faulty run look exactly like the innocent run's. ``CATALOGUE`` was written together with the
detectors; ``HELD_OUT`` after they were frozen, and it is reported separately.
"""

from __future__ import annotations

from tests.faults._case import Case as Case
from tests.faults._case import Fault as Fault
from tests.faults._case import examine_case as examine_case


def catalogue() -> tuple[Fault, ...]:
    """Faults known when the detectors were written."""
    from tests.faults import _field, _first_order, _ledgers, _plain_faults, _zeroth_order

    known = (_plain_faults, _first_order, _zeroth_order, _ledgers, _field)
    return tuple(fault for module in known for fault in module.FAULTS)


def held_out() -> tuple[Fault, ...]:
    """Faults written after the detectors were frozen."""
    try:
        from tests.faults import _held_out
    except ImportError:
        return ()
    return tuple(_held_out.FAULTS)


def held_out_2() -> tuple[Fault, ...]:
    """Faults written after the detectors were frozen a second time."""
    from tests.faults import _held_out_2

    return _held_out_2.FAULTS
