"""Every command prints on every terminal, and no fault ends with the code of a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import dpaudit.cli as cli
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.spelling import WORDS
from tests import ROOT

STAGE = ("--stage", "q=0.01,sigma=1,steps=10", "--delta", "1e-5")


def dpaudit(*arguments: str, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own; ``code`` runs in the place of ``python -m dpaudit``."""
    variables = {**os.environ, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    start = ["-m", "dpaudit"] if code is None else ["-c", code]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *start, *arguments], env=variables, check=False, **streams)


ALL_HELP = """
import sys
from dpaudit.cli import COMMANDS, _code_of, terminal
from dpaudit.privacy import spelling
spelling.prepare(sys.stdout, sys.stderr)
codes = [_code_of([*command, "-h"]) for command in ([], *([name] for name in COMMANDS))]
codes.append(_code_of(["account", "--stage", "q=0.01,sigma=1,steps=10", "--delta", "1e-5"]))
codes.append(_code_of(["account", "--stage", "q=2,sigma=1,steps=10", "--delta", "1e-5", "--assume", "\\u03b5\\u65e5"]))
terminal.finish()
assert codes == [0] * (len(COMMANDS) + 2) + [64], codes
"""


@pytest.mark.parametrize(
    "encoding", ["ascii", "cp1252", "latin-1", "cp1251", "cp437", "cp932", "gbk", "utf-16", "utf-8"]
)
def test_help_numbers_and_errors_print_in_every_encoding(encoding: str) -> None:
    done = dpaudit(code=ALL_HELP, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    text = done.stdout.decode(encoding)
    assert "dpaudit account --ledger" in text and ("ε" in text or "epsilon" in text)
    assert "sampling_probability" in done.stderr.decode(encoding)


def test_the_c_locale_prints_words() -> None:
    done = dpaudit("account", *STAGE, env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""})
    assert done.returncode == 0 and b"epsilon" in done.stdout and done.stdout.isascii()


def test_json_is_json_in_every_encoding() -> None:
    for encoding in ("ascii", "cp1252", "utf-16"):
        done = dpaudit("account", *STAGE, "--json", env={"PYTHONIOENCODING": encoding})
        assert json.loads(done.stdout.decode(encoding))["schema"] == "dpaudit.account/1"


def test_every_word_is_plain() -> None:
    assert all(len(character) == 1 and word.isascii() for character, word in WORDS.items())


def test_a_verdict_that_nobody_reads_has_no_code_of_a_verdict(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert dpaudit("account", *STAGE, stdout=writer).returncode == 141
    os.close(writer)
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = dpaudit("account", *STAGE, stdout=full)
        assert done.returncode == 64 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int, str]:
    @click.command("verify")
    def command() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)
    with pytest.raises(SystemExit) as ended:
        cli.run(["verify"])
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code",
    [
        (TypeError("x\ny\x1b[8m"), 70),
        (ValueError(), 70),
        (KeyError("a"), 70),
        (OverflowError("too large"), 70),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), 70),
        (RecursionError("deep"), 70),
        (MemoryError(), 70),
        (ImportError("No module named 'x'"), 70),
        (SystemExit("a library ended"), 70),
        (SystemExit(2), 2),
        (SystemExit(None), 0),
        (InvalidEvidence("a\n= signature"), 3),
        (InvalidValue("\u202eb"), 64),
        (PermissionError(13, "Permission denied", "a\nb"), 64),
        (click.UsageError("bad\noption"), 64),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_any_error_is_one_sentence_and_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    found, text = outcome(monkeypatch, capsys, error)
    assert found == code
    text = text.removeprefix("\n")  # click ends the line on which the terminal shows ^C
    assert text.count("\n") == (0 if code in (0, 2) else 1)
    assert text.rstrip("\n").isprintable() and "Traceback" not in text
    if found == 70 and isinstance(error, TypeError):
        assert "DPAUDIT_TRACEBACK=1" in text


def test_the_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DPAUDIT_TRACEBACK", "1")
    code, text = outcome(monkeypatch, capsys, TypeError("x"))
    assert code == 70 and "Traceback" in text


@pytest.mark.parametrize(
    "command, choices", [("export", "paragraph, registry"), ("amend", "note, correction, withdrawal")]
)
def test_a_missing_choice_is_named_on_one_line(command: str, choices: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run([command, "nowhere"])
    assert ended.value.code == 64
    error = capsys.readouterr().err
    assert f"Choose from: {choices}. See 'dpaudit {command} -h'." in error and "\\" not in error
