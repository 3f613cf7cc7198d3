"""What several commands share: common options, printing, progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from dpaudit.cli.terminal import say, show
from dpaudit.privacy.stage_text import KEYS, REQUIRED, number
from dpaudit.privacy.text import printable
from dpaudit.storage.plain import plain

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path that the library looks at, and refuses in its own words."""
_STAGE_HELP = (
    f"One stage; repeat in order. Keys: {', '.join(REQUIRED)}, and optionally"
    f" {', '.join(key for key in KEYS if key not in REQUIRED)}. q may be a fraction, as in q=256/60000."
)
_SCHEDULE = "shuffle_fixed_schedule: drop_last is off, steps and normaliser do not depend on the records."

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
delta_option = click.option("--delta", type=float, required=True, help="δ of the guarantee, in (0, 1); no default.")
relation_option = click.option("--relation", help="add_or_remove_one (when omitted), replace_one or zero_out.")
group_option = click.option("--group-size", type=int, default=1, show_default=True, help="Units that change together.")


def accounting_options(function: F) -> F:
    """Add the options of a question to accountants: stages or a ledger, relation, group size, assumptions and δ."""
    ledger = click.Path(exists=True, path_type=Path)
    help_of_ledger = "A JSON ledger, a run folder or its ledger.jsonl, or a JSON history of (σ, q, steps)."
    options = (
        click.option("--stage", "stages", multiple=True, metavar="KEY=VALUE,...", help=_STAGE_HELP),
        click.option("--ledger", type=ledger, help=help_of_ledger),
        relation_option,
        group_option,
        click.option("--assume", multiple=True, help=_SCHEDULE),
        delta_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


class Number(click.ParamType[float]):
    """A command-line number that may be written as a fraction."""

    name = "float or fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read :func:`number`."""
        try:
            return number(value) if isinstance(value, str) else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or a fraction such as 256/60000.", param, ctx)


class Result(Protocol):
    """What the library returns to a command: plain values for programs, and text for people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with a schema."""

    def __str__(self) -> str: ...


def emit(payload: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the payload as JSON (ASCII, so that it is JSON in every encoding), or the text for people."""
    show(json.dumps(plain(payload), allow_nan=False) if as_json else printable(text, keep="\n"))


def emit_result(found: Result, as_json: bool) -> None:
    """Print a result as JSON or as text."""
    emit(found.to_dict(), as_json, str(found))


def emit_with_page(
    payload: dict[str, Any], as_json: bool, text: str, out: Path | None, draw: Callable[[dict[str, Any]], str]
) -> None:
    """Print a payload, and first write the page that ``draw`` makes of it to ``out``, where one is asked for."""
    if out is not None:
        out.write_text(draw(payload), encoding="utf-8")
        payload, text = payload | {"page": str(out)}, f"{text}\npage: {out}"
    emit(payload, as_json, text)


def tell(note: str) -> None:
    """Print a remark on standard error: the command goes on."""
    say(f"note: {note}")
