"""The command line: thin commands that parse, call the public API and print. One file per command.

Exit codes: 0 done or consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TextIO

import click

from dpaudit._version import __version__
from dpaudit.privacy.errors import DpauditError, PrivacyWarning

COMMANDS = {
    "account": "ε of stages or of a ledger by every accountant asked for.",
    "attack": "Scores for a model and its canaries or members.",
    "audit": "Scores in; empirical lower bounds, ceiling, power and verdict out.",
    "calibrate": "The noise multiplier (or steps, or sampling probability) that meets a target ε.",
    "certify": "All of it: a TOML file or a run folder in, certificate and report out.",
    "compare": "Accountants side by side; says which is rigorous and which is wrong here.",
    "examine": "White-box tests of a step function against the plan it claims to follow.",
    "exposure": "Canary exposure report.",
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
      dpaudit certify config.toml --out runs/first
      dpaudit verify runs/first/release/certificate.json
    """


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one sentence on standard error, any other as Python does."""
    if issubclass(category, PrivacyWarning):
        click.echo(f"dpaudit: warning: {message}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno).rstrip(), err=True)


def run(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns every expected error into one sentence and an exit code."""
    warnings.showwarning = _show_warning
    try:
        code = main.main(args=arguments, prog_name="dpaudit", standalone_mode=False)
    except click.UsageError as error:
        where = f" See '{error.ctx.command_path} -h'." if error.ctx else ""
        click.echo(f"dpaudit: {error.format_message()}{where}", err=True)
        sys.exit(64)
    except click.ClickException as error:
        click.echo(f"dpaudit: {error.format_message()}", err=True)
        sys.exit(64)
    except click.Abort:
        click.echo("dpaudit: stopped before it finished; what was already written is kept.", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("dpaudit: stopped before it finished; what was already written is kept.", err=True)
        sys.exit(130)
    except DpauditError as error:
        click.echo(f"dpaudit: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        name = f" {error.filename!r}" if error.filename else ""
        click.echo(f"dpaudit: cannot read or write{name}: {error.strerror or error}; check the path.", err=True)
        sys.exit(64)
    sys.exit(code if isinstance(code, int) else 0)
