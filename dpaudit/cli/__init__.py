"""The command line: thin commands that parse, call the public API and print. One file per command.

Exit codes: 0 done or consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage,
70 a fault in dpaudit itself, 130 stopped, 141 nobody read the output.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
import warnings
from typing import Any

import click

from dpaudit._version import __version__
from dpaudit.cli import terminal
from dpaudit.privacy import spelling
from dpaudit.privacy.endings import INTERNAL, TRACEBACK, ending
from dpaudit.privacy.errors import PrivacyWarning
from dpaudit.privacy.text import printable

COMMANDS = {
    "account": "ε of stages or of a ledger by every accountant asked for.",
    "amend": "Appends a note, a correction or a withdrawal to a certificate.",
    "attack": "Scores for a model and its canaries or members.",
    "audit": "Scores in; empirical lower bounds, ceiling, power and verdict out.",
    "bundle": "All evidence of a certificate in one file, which verify reads.",
    "calibrate": "The noise multiplier (or steps, or sampling probability) that meets a target ε.",
    "certify": "All of it: a TOML file or a run folder in, certificate and report out.",
    "compare": "Accountants side by side; says which is rigorous and which is wrong here.",
    "examine": "White-box tests of a step function against the plan it claims to follow.",
    "export": "A certificate as a paragraph for a contract, or as a registry entry.",
    "exposure": "Canary exposure report.",
    "init": "A commented configuration for your data and model; says what it assumed.",
    "sign": "Signs a certificate or an amendment; makes keys.",
    "timestamp": "A third party's date on the frozen plan or a certificate, checked offline.",
    "train": "A training run from a TOML file, with canaries, into a run folder.",
    "verify": "Re-derives every number of a certificate from its evidence, without the model.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when it is called, so that ``-h`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, by name."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            if near := difflib.get_close_matches(cmd_name, COMMANDS, 1):
                raise click.UsageError(f"No such command {cmd_name!r}; did you mean {near[0]}?", ctx)
            return None
        module = importlib.import_module(f"dpaudit.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="dpaudit %(version)s")
def main() -> None:
    """Make "this model was fine-tuned with differential privacy" checkable.

    \b
    Example:
      dpaudit account --stage "q=0.01,sigma=1.0,steps=1000" --delta 1e-5
      dpaudit init mails.csv --model my-model --unit mail --public-size 2000
      dpaudit certify mails.toml --out runs/first --examine
      dpaudit verify runs/first/release/certificate.json
    """


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """Print a warning of ours as one sentence on standard error, any other as Python does."""
    if issubclass(category, PrivacyWarning):
        terminal.say(f"warning: {message}")
    else:
        click.echo(printable(warnings.formatwarning(message, category, filename, lineno).rstrip(), keep="\n"), err=True)


def run(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns every error into one sentence and an exit code.

    No error ends with the code of a verdict: expected ones with their own, any other with 70.
    """
    spelling.prepare(sys.stdout, sys.stderr)
    warnings.showwarning = _warn
    try:
        code = _code_of(arguments)
        terminal.finish()
    except (BrokenPipeError, terminal.OutputClosed):
        # Whoever read the output went away: the verdict was not delivered, so that no verdict's code may stand for it.
        terminal.abandon(sys.stdout)
        code = 128 + 13
    except OSError as error:
        terminal.abandon(sys.stdout)
        terminal.say(f"the output cannot be written: {error.strerror or error}; check where it goes.")
        code = 64
    sys.exit(code)


def _code_of(arguments: list[str] | None) -> int:
    """Exit code of a command, its error printed."""
    try:
        code = main.main(args=arguments, prog_name="dpaudit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as ended:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click ends with 1 where nobody reads its help
            raise BrokenPipeError from None
        if not isinstance(ended.code, int) and ended.code is not None:  # how some libraries give up
            terminal.say(str(ended.code))
            return INTERNAL
        return ended.code or 0
    except click.ClickException as error:
        where = f" See '{error.ctx.command_path} -h'." if isinstance(error, click.UsageError) and error.ctx else ""
        words = " ".join(error.format_message().split())  # click lists choices on lines of their own
        terminal.say(f"{words if words[-1:] in '.?!' else words + '.'}{where}")
        return 64
    except (BrokenPipeError, terminal.OutputClosed):
        raise
    except (Exception, KeyboardInterrupt) as error:
        sentence, code = ending(KeyboardInterrupt() if isinstance(error, click.Abort) else error)
        if code == INTERNAL and os.environ.get(TRACEBACK):
            traceback.print_exc()
        terminal.say(sentence)
        return code
