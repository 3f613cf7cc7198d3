"""Independent pieces of work spread over joblib's backend, which go on when workers are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

CHUNK = 64
"""Pieces handed out together where a backend gives results back in one list (ray): what a lost worker may cost."""
FRUITLESS = 3
"""Attempts in a row that may bring nothing before the backend's error is raised."""


def run_each(
    task: Callable[..., Any],
    arguments: Mapping[int, tuple[Any, ...]],
    done: Callable[[int, Any], None],
    *,
    n_jobs: int | None = None,
) -> None:
    """Call ``task`` once for each entry of ``arguments``, in any order, and hand every result on as it arrives.

    A worker that dies (killed, out of memory, its machine gone) costs what it was computing: that is computed again,
    unless three attempts in a row bring no result at all. A backend that replaces workers itself, as dask's does,
    needs none of this.

    Parameters
    ----------
    task : callable
        Picklable for backends of several processes.
    arguments : mapping of int to tuple
        Positional arguments of every piece, by its number.
    done : callable
        ``done(number, result)``, called in this process, once for each piece.
    n_jobs : int, optional
        joblib's; None takes the surrounding ``joblib.parallel_config``.

    Raises
    ------
    Exception
        What the task raised, at once; or what the backend raised.
    """
    left, fruitless = dict(arguments), 0
    while left:
        arrived = len(left)
        with contextlib.closing(_results(task, dict(left), n_jobs)) as results:
            while True:
                try:
                    number, result = next(results)
                except StopIteration:
                    break
                # An error of the task itself comes as a value, so this one says that workers were lost.
                except Exception:
                    fruitless = fruitless + 1 if len(left) == arrived else 0
                    if fruitless == FRUITLESS:
                        raise
                    break
                if isinstance(result, _Failed):
                    raise result.error
                del left[number]
                done(number, result)


@dataclass(frozen=True, slots=True)
class _Failed:
    """What the task raised, as a value, so that it is told from the loss of a worker."""

    error: Exception


def _numbered(task: Callable[..., Any], number: int, arguments: tuple[Any, ...]) -> tuple[int, Any]:
    try:
        return number, task(*arguments)
    except Exception as error:
        return number, _Failed(error)


def _results(
    task: Callable[..., Any], arguments: dict[int, tuple[Any, ...]], n_jobs: int | None
) -> Generator[tuple[int, Any], None, None]:
    import joblib

    calls = [joblib.delayed(_numbered)(task, number, values) for number, values in arguments.items()]
    try:
        streamed = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    except ValueError:  # a backend that gives lists alone
        with joblib.Parallel(n_jobs=n_jobs) as listed:
            for start in range(0, len(calls), CHUNK):
                yield from listed(calls[start : start + CHUNK])
        return
    yield from streamed(calls)
