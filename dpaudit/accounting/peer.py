"""Shared by the accountants built on dp_accounting: the version of both packages, and silencing its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dpaudit._version import __version__


def peer_version() -> str:
    """This package's version with that of dp_accounting."""
    from importlib.metadata import version

    return f"{__version__} with dp-accounting {version('dp-accounting')}"


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
