"""What a result is, and which of them decide."""

from __future__ import annotations

import click.testing

from dpaudit.cli.common import printed
from dpaudit.privacy.result import Decided, Said


class Answer(Said):
    """A result that decides."""

    exit_code = 2


def test_only_a_result_with_an_exit_code_decides() -> None:
    assert not isinstance(Said({}, ""), Decided)
    assert isinstance(Answer({}, ""), Decided)


def test_a_command_prints_what_its_function_returns() -> None:
    runner = click.testing.CliRunner()
    said = printed("say")(lambda: Said({"schema": "x/1", "σ": float("inf")}, "σ\x1b[8m\nnext"))
    plain = runner.invoke(said)
    assert plain.exit_code == 0 and plain.output.startswith("σ") and "\x1b" not in plain.output
    assert plain.output.count("\n") == 2
    as_json = runner.invoke(printed("say")(lambda: Said({"schema": "x/1", "σ": 1}, "text")), ["--json"])
    assert as_json.output == '{"schema": "x/1", "\\u03c3": 1}\n'
    assert runner.invoke(printed("decide")(lambda: Answer({}, "no"))).exit_code == 2
