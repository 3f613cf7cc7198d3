"""What a function of the library returns to whoever shows it: plain values for programs, and text for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


class Result(Protocol):
    """A value with a JSON form and a text, as every command prints one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with a schema."""

    def __str__(self) -> str: ...


@runtime_checkable
class Decided(Protocol):
    """A result that decides: its exit code ends the program that prints it."""

    @property
    def exit_code(self) -> int:
        """The code, such as a verdict's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """A result that is no more than what is printed of it."""

    payload: Mapping[str, Any]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The payload."""
        return dict(self.payload)

    def __str__(self) -> str:
        return self.text
