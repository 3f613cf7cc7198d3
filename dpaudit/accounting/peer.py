"""Shared by the accountants built on dp_accounting: the version of both packages, and silencing its log."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpaudit._version import __version__


def peer_version() -> str:
    """This package's version with that of dp_accounting."""
    from importlib.metadata import version

    return f"{__version__} with dp-accounting {version('dp-accounting')}"


@functools.cache
def renyi_parts() -> Any:
    """What the Rényi accountant needs of dp_accounting: its events, its relations and ``rdp.RdpAccountant``.

    dp_accounting's ``__init__`` imports scipy.signal, scipy.stats and scipy.optimize too, for other accountants: that
    takes twenty times as long. Its modules are therefore loaded here under a package that has their folder and not that
    ``__init__``, and forgotten again, so that whoever imports dp_accounting later gets all of it.
    """
    # Another thread could import dp_accounting meanwhile and find the smaller one, so then all of it is loaded.
    if "dp_accounting" in sys.modules or threading.active_count() > 1:
        return importlib.import_module("dp_accounting")
    found = importlib.util.find_spec("dp_accounting")
    if found is None or not found.submodule_search_locations:
        return importlib.import_module("dp_accounting")
    package = types.ModuleType("dp_accounting")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["dp_accounting"] = package
    try:
        events = importlib.import_module("dp_accounting.dp_event")
        relations = importlib.import_module("dp_accounting.privacy_accountant")
        accountant = importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant")
        return types.SimpleNamespace(**vars(events), **_own(relations), dp_event=events, rdp=accountant)
    finally:
        for name in [n for n in sys.modules if n == "dp_accounting" or n.startswith("dp_accounting.")]:
            del sys.modules[name]


def _own(module: types.ModuleType) -> dict[str, Any]:
    """The classes that a module defines."""
    return {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what dp_accounting logs through absl, and nothing else.

    It warns of every Rényi order whose series does not converge and leaves that order out: the bound stays valid, and
    the caller can do nothing about it.
    """
    logger = logging.getLogger("absl")

    def from_others(record: logging.LogRecord) -> bool:
        return "dp_accounting" not in record.pathname

    # absl hands its logger's records to its own handler, so the filter stands on the logger itself.
    logger.addFilter(from_others)
    try:
        yield
    finally:
        logger.removeFilter(from_others)
