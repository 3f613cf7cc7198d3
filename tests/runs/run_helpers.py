"""A small configuration of the bundled run, for tests that go through the command line in one process."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click.testing

from dpaudit.cli import main
from dpaudit.privacy.errors import DpauditError
from tests import ROOT

EXAMPLES = ROOT / "examples"


def small_config(**changes: Any) -> dict[str, Any]:
    """The shipped configuration cut down to seconds; ``changes`` are ``section__key=value`` (None removes)."""
    value: dict[str, Any] = tomllib.loads((EXAMPLES / "certify.toml").read_text())
    value["model"]["path"] = str(EXAMPLES / "model")
    value["data"] |= {
        "path": str(EXAMPLES / "data" / "austen_private.txt.xz"),
        "heldout": str(EXAMPLES / "data" / "austen_heldout.txt.xz"),
        "limit": 60,
        "max_length": 16,
    }
    value["privacy"] |= {"public_size": 60, "expected_batch_size": 8, "steps": 4, "noise_multiplier": 2.0}
    value["privacy"] |= {"calibrate_with": "rdp", "accountants": ["rdp"]}
    value["canaries"] |= {"count": 24, "length": 6, "positions": 2}
    value["audit"]["in_run"] = {"canaries": 400}
    value["run"] = {"seed": 0, "checkpoints": 2}
    for name, change in changes.items():
        section, _, key = name.partition("__")
        if change is None:
            value[section].pop(key, None)
        else:
            value[section][key] = change
    return value


def write_toml(path: Path, value: dict[str, Any]) -> Path:
    """Write a mapping of sections, which may hold sections, as TOML."""
    lines = []
    for section, keys in value.items():
        inner = {f"{section}.{key}": item for key, item in keys.items() if isinstance(item, dict)}
        plain = {key: item for key, item in keys.items() if not isinstance(item, dict)}
        for name, table in {section: plain, **inner}.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(item)}" for key, item in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


class Outcome:
    """Exit code, standard output, and the one-sentence error if there was one."""

    def __init__(self, code: int, output: str, error: str) -> None:
        self.code, self.output, self.error = code, output, error

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        value: dict[str, Any] = json.loads(self.output)
        return value


def run_cli(*arguments: str | Path) -> Outcome:
    """Run a command in this process; anything but an expected error propagates."""
    result = click.testing.CliRunner().invoke(main, [str(a) for a in arguments], standalone_mode=False)
    error = result.exception
    if isinstance(error, DpauditError):
        return Outcome(error.exit_code, result.stdout, str(error))
    if isinstance(error, click.UsageError):
        return Outcome(64, result.stdout, error.format_message())
    if error is not None and not isinstance(error, SystemExit):
        raise error
    code = result.return_value if isinstance(result.return_value, int) else result.exit_code
    return Outcome(code, result.stdout, result.stderr)
