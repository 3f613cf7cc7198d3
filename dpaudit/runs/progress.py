"""Progress of long work on standard error: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 60.0
"""Between two lines where there is no terminal."""


def on_terminal() -> bool:
    """Whether progress may be drawn: standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Progress on standard error; yields ``advance(n)``.

    Without a terminal the work says that it lives: one line a minute, and none for work shorter than that.
    """
    if not on_terminal():
        yield minutely(total, label)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, file=sys.stderr, leave=False) as bar:
        yield lambda n: (bar.update(n), None)[1]


def minutely(total: int, label: str, *, clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
    """``advance(n)`` that prints at most one line a minute; ``clock`` is injected by tests."""
    done, begun = 0, clock()
    told = begun

    def advance(n: int) -> None:
        nonlocal done, told
        done, now = done + n, clock()
        if now - told >= SECONDS and sys.stderr is not None:
            told = now
            print(
                f"dpaudit: {label}: {done} of {total} after {(now - begun) / 60:.0f} min", file=sys.stderr, flush=True
            )

    return advance


def quiet_transformers() -> None:
    """Switch off transformers' own progress bars and warnings, which would break ``--json`` and pipes."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not on_terminal():
        logging.disable_progress_bar()
