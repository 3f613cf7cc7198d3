"""``dpaudit init``: a commented configuration for a data file and a model."""

from __future__ import annotations

from typing import Any

from dpaudit.cli.common import PATH, Choice, Result, argument, option, printed


@printed("init")
@argument("data", type=PATH)
@option("--model", type=PATH, required=True, help="Folder of a Hugging Face model.")
@option("--unit", required=True, help="Unit of privacy in words, such as mail; each record is one.")
@option("--public-size", type=int, required=True, help="Number of private records as it may be published.")
@option("--out", type=PATH, help="File to write.  [default: DATA's name with .toml]")
@option("--epsilon", type=float, help="Claimed ε; assumed, and marked so, when left out.")
@option("--delta", type=float, help="Claimed δ; assumed, and marked so, when left out.")
@option("--text-column", help="Column of the texts, where its name does not tell.")
@option("--label-column", help="Column of the class labels, where its name does not tell.")
@option("--task", type=Choice(["causal-lm", "sequence-classification"]), help="What to learn.")
def command(**options: Any) -> Result:
    """Write a commented configuration for DATA and a model, and say what was assumed.

    Columns and the model's configuration are read, and nothing from the records: the number of records stands in what
    a run publishes, so you declare it (rounded, if you like).

    \b
    Example:
      dpaudit init mails.csv --model my-model --unit mail --public-size 2000
      dpaudit certify mails.toml --out runs/mails --examine
    """
    from dpaudit.runs.init import init

    return init(**options)
