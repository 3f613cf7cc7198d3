"""Accounting: certified bounds on ε from what a mechanism did. Pure functions of a ledger."""

from dpaudit.accounting.account import account as account
from dpaudit.accounting.account import epsilon_upper as epsilon_upper
from dpaudit.accounting.accountant import Accountant as Accountant
from dpaudit.accounting.accountant import Bounds as Bounds
from dpaudit.accounting.calibrate import calibrate as calibrate
from dpaudit.accounting.compare import compare as compare
from dpaudit.accounting.events import from_event as from_event
from dpaudit.accounting.events import from_opacus as from_opacus
from dpaudit.accounting.events import from_triples as from_triples
from dpaudit.accounting.events import to_event as to_event
from dpaudit.accounting.mu import gaussian_dp as gaussian_dp
from dpaudit.accounting.opacus import register_with_opacus as register_with_opacus
from dpaudit.accounting.tradeoff import tradeoff_curve as tradeoff_curve
from dpaudit.accounting.unit_sampling import compare_unit_sampling as compare_unit_sampling

__all__ = [
    # ε of a ledger, and of several accountants side by side.
    "account",
    "compare",
    "epsilon_upper",
    # A plan that meets a target.
    "calibrate",
    "compare_unit_sampling",
    # Curves.
    "gaussian_dp",
    "tradeoff_curve",
    # Histories of other libraries.
    "from_event",
    "from_opacus",
    "from_triples",
    "register_with_opacus",
    "to_event",
    # What an accountant of one's own implements.
    "Accountant",
    "Bounds",
]
