"""``dpaudit train``: a training run from a TOML file, with canaries, into a run folder."""

from __future__ import annotations

from typing import Any

from dpaudit.cli.common import PATH, Result, argument, device_option, option, printed, tell


@printed("train", runs_models=True)
@argument("config", type=PATH)
@option("--out", type=PATH, required=True, help="Run folder to create or resume.")
@device_option
def command(**options: Any) -> Result:
    """Fine-tune privately with canaries, from CONFIG (a TOML file) into a run folder.

    Running the same command again after a stop resumes the run: steps already counted stay charged.

    \b
    Example:
      dpaudit train examples/certify.toml --out runs/first
    """
    from dpaudit.runs.train import train

    return train(tell=tell, **options)
