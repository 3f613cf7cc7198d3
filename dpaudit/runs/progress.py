"""Progress of long work: a bar on standard error when it is a terminal, and nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def on_terminal() -> bool:
    """Whether progress may be drawn: standard error is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Progress bar on standard error when it is a terminal, silent otherwise; yields ``advance(n)``."""
    if not on_terminal():
        yield lambda n: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, file=sys.stderr, leave=False) as bar:
        yield lambda n: (bar.update(n), None)[1]


def quiet_transformers() -> None:
    """Switch off transformers' own progress bars and warnings, which would break ``--json`` and pipes."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not on_terminal():
        logging.disable_progress_bar()
