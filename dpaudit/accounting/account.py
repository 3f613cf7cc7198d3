"""ε of a ledger by every accountant asked for."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence

from dpaudit._version import __version__
from dpaudit.accounting.relations import Charges, charges
from dpaudit.accounting.tuning import Tuning
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import upper_text

BUILT_IN = ("prv", "rdp", "pld", "gdp", "gdp-clt")


def account(
    ledger: Ledger,
    *,
    delta: float,
    accountants: Sequence[str] = ("prv",),
    group_size: int = 1,
    assume: Collection[str] = (),
    tuning: str | Tuning | None = None,
    rtol: float = 5e-3,
) -> tuple[Guarantee, ...]:
    """ε at δ of a ledger, one guarantee for each accountant named.

    Parameters
    ----------
    ledger : Ledger
        What ran, with its relation; its ``max_records_per_unit`` multiplies the group size.
    delta : float
        δ in (0, 1).
    accountants : names
        ``prv`` (certified two-sided), ``rdp``, ``pld``, ``gdp`` (rigorous upper bounds), ``gdp-clt`` (an estimate),
        or the name of an installed plug-in (entry-point group ``dpaudit.accountants``).
    group_size : int
        Units of privacy that change together.
    assume : names
        Explicit statements the ledger cannot make; see :func:`dpaudit.accounting.charges`.
    tuning : str or Tuning, optional
        Law of the number of runs when only the best is released; ``rdp`` only.
    rtol : float
        Relative width that ``prv`` aims at (or 1e-6 absolute).

    Returns
    -------
    tuple of Guarantee
        In the order asked for. Infinite where a stage adds no noise; the assumption then says so.

    Raises
    ------
    UnsupportedStage
        An accountant cannot treat a stage; the message names it and the remedy.
    """
    validate.open_unit(delta=delta)
    if isinstance(accountants, str):
        accountants = (accountants,)
    tuning = Tuning.parse(tuning) if isinstance(tuning, str) else tuning
    results = []
    for name in accountants:
        start = time.perf_counter()
        if name in BUILT_IN:
            cost = charges(ledger, group_size=group_size, assume=assume)
            found = _built_in(name, ledger, cost, delta, tuning, rtol)
            version = __version__ if name.startswith(("prv", "gdp")) else _peer_version()
            notes = [*cost.assumptions, *found.notes]
            results.append(
                Guarantee(
                    accountant=name,
                    version=version,
                    delta=delta,
                    relation=ledger.relation,
                    group_size=group_size * ledger.max_records_per_unit,
                    epsilon_lower=found.lower,
                    epsilon_upper=found.upper,
                    epsilon_estimate=found.estimate,
                    rigorous=name != "gdp-clt",
                    assumption="; ".join([cost.infinite] if cost.infinite else notes),
                    seconds=time.perf_counter() - start,
                )
            )
        else:
            results.append(_plug_in(name)(ledger, delta, group_size))
    return tuple(results)


class _Found:
    """What one built-in accountant found."""

    __slots__ = ("estimate", "lower", "notes", "upper")

    def __init__(
        self,
        upper: float | None = None,
        lower: float | None = None,
        estimate: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.upper, self.lower, self.estimate, self.notes = upper, lower, estimate, tuple(notes)


def _built_in(name: str, ledger: Ledger, cost: Charges, delta: float, tuning: Tuning | None, rtol: float) -> _Found:
    if tuning is not None and name != "rdp":
        raise UnsupportedStage(f"accountant {name!r} cannot charge for tuning; use accountant 'rdp'.")
    match name:
        case "rdp":
            from dpaudit.accounting.rdp import rdp_epsilon

            note = [] if tuning is None else [f"the number of tuning runs is {tuning.name} with mean {tuning.mean:g}"]
            return _Found(rdp_epsilon(cost, ledger.relation, delta, tuning), notes=note)
        case "pld":
            from dpaudit.accounting.pld import pld_epsilon

            return _Found(pld_epsilon(cost, ledger.relation, delta))
        case "gdp-clt":
            from dpaudit.accounting.gdp import clt_mu
            from dpaudit.privacy.gaussian import gaussian_epsilon

            mu = clt_mu(cost)
            value = math.inf if math.isinf(mu) else gaussian_epsilon(mu, delta)
            return _Found(estimate=value, notes=["a central-limit estimate, not a bound"])
        case "gdp":
            from dpaudit.accounting.gdp import exact_mu
            from dpaudit.privacy.gaussian import gaussian_epsilon

            exact = exact_mu(cost)
            if exact is not None:
                return _Found(
                    math.inf if math.isinf(exact) else gaussian_epsilon(exact, delta),
                    notes=[f"exact Gaussian DP with mu={upper_text(exact, 6)}"],
                )
            from dpaudit.accounting.mu import certified_mu

            mu, _ = certified_mu(cost, delta)
            return _Found(
                gaussian_epsilon(mu, delta),
                notes=[f"mu={upper_text(mu, 6)} certified for delta >= {delta:g} from the prv curve"],
            )
        case _:
            from dpaudit.accounting.prv.curves import epsilon_interval

            found = epsilon_interval(cost, delta, rtol=rtol)
            notes = [] if cost.tight else ["no data set is known to attain this bound, so there is no lower one"]
            return _Found(found.upper, lower=found.lower if cost.tight else None, notes=notes)


def _peer_version() -> str:
    from importlib.metadata import version

    return f"{__version__} with dp-accounting {version('dp-accounting')}"


PlugIn = Callable[[Ledger, float, int], Guarantee]


def _plug_in(name: str) -> PlugIn:
    """Load a plug-in accountant; one that cannot be loaded warns and counts as missing."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="dpaudit.accountants"):
        if entry.name != name:
            continue
        try:
            loaded: PlugIn = entry.load()
            return loaded
        except Exception as error:  # a broken plug-in must not break the others
            warnings.warn(f"accountant plug-in {name!r} cannot be loaded and is skipped: {error}", stacklevel=3)
    raise InvalidValue(f"accountant {name!r} is unknown; choose one of {', '.join(BUILT_IN)} or install its plug-in.")


def epsilon_upper(
    ledger: Ledger, delta: float, accountant: str = "prv", *, group_size: int = 1, assume: Collection[str] = ()
) -> float:
    """The certified upper bound of one accountant, as a number."""
    (found,) = account(ledger, delta=delta, accountants=(accountant,), group_size=group_size, assume=assume)
    if found.epsilon_upper is None:
        raise InvalidValue(f"accountant {accountant!r} proves no upper bound; use 'prv', 'pld', 'rdp' or 'gdp'.")
    return found.epsilon_upper
