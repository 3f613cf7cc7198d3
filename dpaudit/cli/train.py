"""``dpaudit train``: a training run from a TOML file, with canaries, into a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, emit_result, json_option, tell


@click.command("train")
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, required=True, help="Run folder to create or resume.")
@click.option("--device", help="Torch device, such as cuda, in place of the configuration's.")
@json_option
def command(config: Path, out: Path, device: str | None, as_json: bool) -> None:
    """Fine-tune privately with canaries, from CONFIG (a TOML file) into a run folder.

    Running the same command again after a stop resumes the run: steps already counted stay charged.

    \b
    Example:
      dpaudit train examples/certify.toml --out runs/first
    """
    from dpaudit.runs.train import train

    emit_result(train(config, out, device=device, tell=tell), as_json)
