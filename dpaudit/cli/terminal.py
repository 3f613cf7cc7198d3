"""Printing on any terminal: whatever its encoding, and whatever somebody else wrote into a name."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TextIO

import click

from dpaudit.privacy.text import printable

HANDLER = "dpaudit.words"
_ASCII = "dpaudit_ascii"
WORDS = {
    **{"ε": "epsilon", "δ": "delta", "σ": "sigma", "α": "alpha", "μ": "mu", "Σ": "Sigma", "√": "sqrt", "‖": "||"},
    **{"≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "±": "+-"},
    **{"…": "...", "→": "->", "²": "^2", "∞": "inf", "∖": "\\", "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")"},
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "‐": "-", "\u00a0": " "},
}
"""How a character is written where the terminal's encoding has none for it."""


def prepare() -> None:
    """Let standard output and error spell what their encoding lacks, instead of failing in the middle of a line."""
    codecs.register_error(HANDLER, _spell)
    codecs.register(_ascii_twin)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None:  # replaced by a test or a notebook
            continue
        ascii_only = codecs.lookup(stream.encoding or "ascii").name == "ascii"
        # click takes a stream that calls itself ASCII for a mistake, and writes UTF-8 into it.
        reconfigure(encoding=_ASCII if ascii_only else None, errors=HANDLER)


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


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(WORDS.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lost), error.end


def _ascii_twin(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        name=_ASCII,
        encode=plain.encode,
        decode=plain.decode,
        incrementalencoder=plain.incrementalencoder,
        incrementaldecoder=plain.incrementaldecoder,
        streamwriter=plain.streamwriter,
        streamreader=plain.streamreader,
    )
