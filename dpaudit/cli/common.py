"""What several commands share: printing, common options, progress, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dpaudit.cli.terminal import say, show
from dpaudit.privacy.stage_text import number
from dpaudit.privacy.text import printable
from dpaudit.privacy.text import table as table
from dpaudit.storage.plain import plain as plain

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def json_option(function: F) -> F:
    """Add ``--json``: one JSON object on standard output and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(function)


def delta_option(function: F) -> F:
    """Add the required ``--delta``."""
    return click.option("--delta", type=float, required=True, help="δ of the guarantee, in (0, 1); no default.")(
        function
    )


def emit(payload: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the payload as JSON (ASCII, so that it is JSON in every encoding), or the text for people."""
    show(json.dumps(plain(payload), allow_nan=False) if as_json else printable(text, keep="\n"))


def tell(note: str) -> None:
    """Print a remark on standard error: the command goes on."""
    say(f"note: {note}")


class Number(click.ParamType[float]):
    """A command-line number that may be written as a fraction."""

    name = "float or fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read :func:`number`."""
        try:
            return number(value) if isinstance(value, str) else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or a fraction such as 256/60000.", param, ctx)
