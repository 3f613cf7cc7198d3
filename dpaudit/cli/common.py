"""What a command is written with: options, alone and in groups, and the one way in which a result is printed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click import Choice as Choice
from click import IntRange as IntRange
from click import argument as argument
from click import option as option

from dpaudit.cli.terminal import say, show
from dpaudit.privacy.result import Decided
from dpaudit.privacy.result import Result as Result
from dpaudit.privacy.result import Said as Said
from dpaudit.privacy.stage_text import KEYS, REQUIRED
from dpaudit.privacy.text import printable
from dpaudit.runs.allocator import keep_freed_memory
from dpaudit.storage.plain import plain

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path that the library looks at, and refuses in its own words."""
EXISTING = click.Path(exists=True, path_type=Path)
"""A path that the command line refuses where nothing lies there."""
_STAGE = (
    f"One stage; repeat in order. Keys: {', '.join(REQUIRED)}, and optionally"
    f" {', '.join(key for key in KEYS if key not in REQUIRED)}. q may be a fraction, as in q=256/60000."
)
_LEDGER = "A JSON ledger, a run folder or its ledger.jsonl, or a JSON history of (σ, q, steps)."
_ASSUME = "shuffle_fixed_schedule: drop_last is off, steps and normaliser do not depend on the records."


def in_order(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds options in this order."""
    return lambda function: functools.reduce(lambda made, add: add(made), reversed(options), function)


delta_option = option("--delta", type=float, required=True, help="δ of the guarantee, in (0, 1); no default.")
device_option = option("--device", help="Torch device, such as cuda, in place of the configuration's.")
relation_option = option("--relation", help="add_or_remove_one (when omitted), replace_one or zero_out.")
group_option = option("--group-size", type=int, default=1, show_default=True, help="Units that change together.")
accounting_options = in_order(
    option("--stage", "stages", multiple=True, metavar="KEY=VALUE,...", help=_STAGE),
    option("--ledger", type=EXISTING, help=_LEDGER),
    relation_option,
    group_option,
    option("--assume", multiple=True, help=_ASSUME),
    delta_option,
)
"""A question to accountants: stages or a ledger, relation, group size, assumptions and δ."""


def printed(name: str, *, runs_models: bool = False) -> Callable[[Callable[..., Result]], click.Command]:
    """Make a command of a function, and print what it returns: as text, or as one JSON object with ``--json``.

    A result that decides ends the program with its exit code. The JSON is ASCII: it is JSON in every encoding.
    A command that runs models keeps the memory of freed tensors.
    """
    as_json_option = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object and nothing else.")

    def decorate(function: Callable[..., Result]) -> click.Command:
        @functools.wraps(function)
        def call(*, as_json: bool, **options: Any) -> None:
            if runs_models:
                keep_freed_memory()
            found = function(**options)
            json_text = json.dumps(plain(found.to_dict()), allow_nan=False) if as_json else None
            show(json_text or printable(str(found), keep="\n"))
            if isinstance(found, Decided):
                raise SystemExit(found.exit_code)

        command = click.command(name)(call)
        command.params.append(as_json_option)
        return command

    return decorate


def with_page(found: Result, out: Path | None, draw: Callable[[dict[str, Any]], str]) -> Result:
    """A result, and the page that ``draw`` makes of it written to ``out`` where one is asked for."""
    if out is None:
        return found
    payload = found.to_dict()
    out.write_text(draw(payload), encoding="utf-8")
    return Said(payload | {"page": str(out)}, f"{found}\npage: {out}")


def tell(note: str) -> None:
    """Print a remark on standard error: the command goes on."""
    say(f"note: {note}")
