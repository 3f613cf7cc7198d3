"""``dpaudit init``: a commented configuration for a data file and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.common import PATH, emit_result, json_option


@click.command("init")
@click.argument("data", type=PATH)
@click.option("--model", type=PATH, required=True, help="Folder of a Hugging Face model.")
@click.option("--unit", required=True, help="Unit of privacy in words, such as mail; each record is one.")
@click.option("--public-size", type=int, required=True, help="Number of private records as it may be published.")
@click.option("--out", type=PATH, help="File to write.  [default: DATA's name with .toml]")
@click.option("--epsilon", type=float, help="Claimed ε; assumed, and marked so, when left out.")
@click.option("--delta", type=float, help="Claimed δ; assumed, and marked so, when left out.")
@click.option("--text-column", help="Column of the texts, where its name does not tell.")
@click.option("--label-column", help="Column of the class labels, where its name does not tell.")
@click.option("--task", type=click.Choice(["causal-lm", "sequence-classification"]), help="What to learn.")
@json_option
def command(data: Path, model: Path, as_json: bool, **options: Any) -> None:
    """Write a commented configuration for DATA and a model, and say what was assumed.

    Columns and the model's configuration are read, and nothing from the records: the number of records stands in what
    a run publishes, so you declare it (rounded, if you like).

    \b
    Example:
      dpaudit init mails.csv --model my-model --unit mail --public-size 2000
      dpaudit certify mails.toml --out runs/mails --examine
    """
    from dpaudit.runs.init import init

    emit_result(init(data, model, **options), as_json)
