"""Accountants by name: those of this package, and plug-ins from the entry-point group ``dpaudit.accountants``."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from dpaudit.accounting.accountant import Accountant, CallableAccountant
from dpaudit.privacy.errors import InvalidValue, UnsupportedStage

_BUILT_IN = {
    "prv": "prv.accountant:PrvAccountant",
    "rdp": "rdp:RdpAccountant",
    "pld": "pld:PldAccountant",
    "gdp": "gdp:GdpAccountant",
    "gdp-clt": "clt:CltAccountant",
}
"""Module and class of every accountant of this package. A further one is a module here and a line in this table."""
BUILT_IN = tuple(_BUILT_IN)
GROUP = "dpaudit.accountants"


def accountant(name: str) -> Accountant[Any]:
    """The accountant of this name.

    Raises
    ------
    InvalidValue
        No accountant has this name.
    UnsupportedStage
        Its plug-in is installed but cannot be loaded.
    """
    if name not in _BUILT_IN:
        return _plug_in(name)
    # A start of ``dpaudit account`` should not pay for the imports of accountants not asked for, so each is loaded by
    # name.
    module, _, kind = _BUILT_IN[name].partition(":")
    made: Accountant[Any] = getattr(importlib.import_module(f"dpaudit.accounting.{module}"), kind)()
    return made


def _plug_in(name: str) -> Accountant[Any]:
    """Load a plug-in: an :class:`Accountant`, a class of them, or a plain function."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        if entry.name != name:
            continue
        try:
            loaded = entry.load()
            made = loaded() if isinstance(loaded, type) and issubclass(loaded, Accountant) else loaded
        except Exception as error:  # a broken plug-in must not break the others
            warnings.warn(f"accountant plug-in {name!r} cannot be loaded and is skipped: {error}", stacklevel=3)
            raise UnsupportedStage(
                f"accountant plug-in {name!r} cannot be loaded ({error}); repair or remove its package."
            ) from None
        if isinstance(made, Accountant):
            return made
        if callable(made):
            return CallableAccountant(name, made)
        raise UnsupportedStage(
            f"accountant plug-in {name!r} is a {type(made).__name__} and must be an Accountant or a function;"
            " report this to its author."
        )
    raise InvalidValue(f"accountant {name!r} is unknown; choose one of {', '.join(BUILT_IN)} or install its plug-in.")
