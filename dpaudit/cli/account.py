"""``dpaudit account``: ε of stages or of a ledger; and the stage options that other commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from dpaudit.cli.common import delta_option, emit, json_option, table
from dpaudit.privacy.rounding import ABSENT, exact_text, lower_text, nearest_text, upper_text
from dpaudit.privacy.stage_text import KEYS, REQUIRED
from dpaudit.runs.ledger_file import ledger_of

F = TypeVar("F", bound=Callable[..., Any])

STAGE_HELP = (
    f"One stage; repeat in order. Keys: {', '.join(REQUIRED)}, and optionally"
    f" {', '.join(key for key in KEYS if key not in REQUIRED)}. q may be a fraction, as in q=256/60000."
)


def ledger_options(function: F) -> F:
    """Add ``--stage``, ``--ledger``, ``--relation``, ``--group-size`` and ``--assume``."""
    options = (
        click.option("--stage", "stages", multiple=True, metavar="KEY=VALUE,...", help=STAGE_HELP),
        click.option(
            "--ledger",
            "ledger_path",
            type=click.Path(exists=True, path_type=Path),
            help="A JSON ledger, a run folder or its ledger.jsonl, or a JSON history of (σ, q, steps).",
        ),
        click.option("--relation", default=None, help="add_or_remove_one (when omitted), replace_one or zero_out."),
        click.option("--group-size", type=int, default=1, show_default=True, help="Units that change together."),
        click.option(
            "--assume",
            "assume",
            multiple=True,
            help="shuffle_fixed_schedule: drop_last is off, steps and normaliser do not depend on the records.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def shown(result: Mapping[str, Any]) -> list[str]:
    """Cells of one accountant's answer: lower bound, upper bound, estimate, and what kind of answer it is."""
    lower, upper, estimate = (result[f"epsilon_{kind}"] for kind in ("lower", "upper", "estimate"))
    refused = lower is None and upper is None and estimate is None
    kind = "refused" if refused else "yes" if result["rigorous"] else "NO"
    return [lower_text(lower, 6), upper_text(upper, 6), nearest_text(estimate, 6), kind]


@click.command("account")
@ledger_options
@delta_option
@click.option("--accountant", "accountants", multiple=True, help="prv (default), rdp, pld, gdp, gdp-clt; repeatable.")
@click.option(
    "--tuning", default=None, help="Law of the number of tuning runs: geometric:10, log:10, poisson:10 (rdp)."
)
@click.option("--rtol", type=float, default=None, help="Relative width that prv aims at (0.005 when omitted).")
@json_option
def command(
    stages: tuple[str, ...],
    ledger_path: Path | None,
    relation: str | None,
    group_size: int,
    assume: tuple[str, ...],
    delta: float,
    accountants: tuple[str, ...],
    tuning: str | None,
    rtol: float | None,
    as_json: bool,
) -> None:
    """ε of stages or of a ledger by every accountant asked for.

    An accountant that refuses the ledger says why in its row; the exit code is 64 only where nobody answers.

    \b
    Example:
      dpaudit account --stage "q=0.01,sigma=1.0,steps=1000" --delta 1e-5 --relation add_or_remove_one --json
      dpaudit account --ledger runs/first --delta 1e-6 --accountant prv --accountant rdp
    """
    from dpaudit.accounting.account import answered, replies

    ledger, echo = ledger_of(stages, ledger_path, relation)
    found = replies(
        ledger,
        delta=delta,
        accountants=accountants or ("prv",),
        group_size=group_size,
        assume=assume,
        tuning=tuning,
        rtol=rtol,
    )
    answered(found)
    payload: dict[str, Any] = {
        "schema": "dpaudit.account/1",
        "delta": delta,
        **echo,
        "unit": ledger.unit,
        "group_size": group_size * ledger.max_records_per_unit,
        "results": [reply.to_dict() for reply in found],
    }
    rows = [["accountant", "ε lower", "ε upper", "estimate", "rigorous", "seconds", "rests on"]]
    for result in payload["results"]:
        said = result["refused"] or result["assumption"] or ABSENT
        rows.append([result["accountant"], *shown(result), f"{result['seconds']:.3f}", said])
    said = f" ({', '.join(echo['defaulted_fields'])} by default)" if "defaulted" in echo else ""
    emit(payload, as_json, f"ε at δ={exact_text(delta)} under {echo['relation']}{said}\n{table(rows)}")
