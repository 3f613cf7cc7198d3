"""Printing on any terminal, whoever reads it, and whatever somebody else wrote into a name."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click

from dpaudit.privacy.text import printable


class OutputClosed(Exception):
    """Nobody reads standard output any more. No ``OSError``: click would end with 1 on it, the code of *violated*."""


def show(text: str) -> None:
    """Print a result on standard output."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise OutputClosed from None


def say(text: str) -> None:
    """Print one sentence on standard error, on one line."""
    click.echo(f"dpaudit: {printable(text)}", err=True)


def finish() -> None:
    """Write out what is still held back; raises what a full disk or a closed pipe raises."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def abandon(stream: TextIO | None) -> None:
    """Throw away what a stream holds and cannot write, so that the end of the program does not fail on it again."""
    try:
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass
