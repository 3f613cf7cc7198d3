"""Running one check on evidence of others: whatever it does, the report names it and goes on to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, UNFINISHED, Step
from dpaudit.privacy.errors import DpauditError
from dpaudit.storage.budget import OutOfTime, section

T = TypeVar("T")

MALFORMED = (DpauditError, ArithmeticError, KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)
"""What reading a record raises that has not the form it should have, or that the system does not let us read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """A value that was computed from evidence, or the step that says why it was not.

    Attributes
    ----------
    value : T or None
    failed : Step or None
        "Recomputed and different" where the evidence cannot be read, "not recomputable" where time or memory ended.
    """

    value: T | None
    failed: Step | None = None


def attempt(name: str, make: Callable[[], T]) -> Attempt[T]:
    """Compute a value within its share of the limits; ``name`` is that of the step that reports a failure."""
    try:
        with section():
            return Attempt(make())
    except (OutOfTime, MemoryError):
        return Attempt(None, Step(name, ABSENT, f"{UNFINISHED}, so it supports nothing"))
    except MALFORMED as error:
        return Attempt(None, Step(name, DIFFERENT, f"the evidence cannot be read: {reason(error)}"))


def guarded(name: str, make: Callable[[], list[Step]]) -> list[Step]:
    """Steps as made; evidence that cannot be read is a difference that is named, and what takes too long is left."""
    made = attempt(name, make)
    return [made.failed] if made.failed is not None else (made.value or [])


def reason(error: BaseException) -> str:
    """First line of an error, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
