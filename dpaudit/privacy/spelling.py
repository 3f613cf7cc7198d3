"""How text is written where an encoding has no character for it: ε as "epsilon", and anything unknown as an escape."""

from __future__ import annotations

import codecs
import io
from typing import Any

HANDLER = "dpaudit.words"
"""Name of the error handler that :func:`register` makes known to :mod:`codecs`."""
ASCII = "dpaudit_ascii"
"""Name of an encoding that is ASCII and does not call itself so."""
WORDS = {
    **{"ε": "epsilon", "δ": "delta", "σ": "sigma", "α": "alpha", "μ": "mu", "Σ": "Sigma", "√": "sqrt", "‖": "||"},
    **{"≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "±": "+-"},
    **{"…": "...", "→": "->", "²": "^2", "∞": "inf", "∖": "\\", "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")"},
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "‐": "-", "\u00a0": " "},
}
"""What stands for a character that the encoding lacks."""


def register() -> None:
    """Make the error handler :data:`HANDLER` and the encoding :data:`ASCII` known to :mod:`codecs`."""
    codecs.register_error(HANDLER, _spell)
    codecs.register(_ascii_twin)


def prepare(*streams: Any) -> None:
    """Let streams of text spell what their encoding lacks, instead of failing in the middle of a line."""
    register()
    for stream in streams:
        if not isinstance(stream, io.TextIOWrapper):  # replaced by a test or a notebook
            continue
        ascii_only = codecs.lookup(stream.encoding or "ascii").name == "ascii"
        # click takes a stream that calls itself ASCII for a mistake, and writes UTF-8 into it.
        stream.reconfigure(encoding=ASCII if ascii_only else None, errors=HANDLER)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(WORDS.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lost), error.end


def _ascii_twin(name: str) -> codecs.CodecInfo | None:
    if name != ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        name=ASCII,
        encode=plain.encode,
        decode=plain.decode,
        incrementalencoder=plain.incrementalencoder,
        incrementaldecoder=plain.incrementaldecoder,
        streamwriter=plain.streamwriter,
        streamreader=plain.streamreader,
    )
