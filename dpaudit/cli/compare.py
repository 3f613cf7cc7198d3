"""``dpaudit compare``: accountants side by side, and which of them is wrong here."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.account import ledger_options, shown
from dpaudit.cli.common import delta_option, emit, json_option, table
from dpaudit.privacy.rounding import ABSENT, exact_text
from dpaudit.runs.ledger_file import ledger_of


@click.command("compare")
@ledger_options
@delta_option
@click.option("--accountant", "accountants", multiple=True, help="Which to compare (all built-in ones); repeatable.")
@click.option("--points", type=click.Path(exists=True, path_type=Path), help="CSV fpr,tpr of an attack to draw.")
@click.option("--out", type=click.Path(path_type=Path), help="Write one HTML page with the curves.")
@json_option
def command(
    stages: tuple[str, ...],
    ledger_path: Path | None,
    relation: str | None,
    group_size: int,
    assume: tuple[str, ...],
    delta: float,
    accountants: tuple[str, ...],
    points: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Accountants side by side; says which is rigorous and which is wrong here.

    \b
    Example:
      dpaudit compare --stage "q=0.01,sigma=0.8,steps=5000" --delta 1e-5
      dpaudit compare --ledger runs/first --delta 1e-6 --out compare.html
    """
    from dpaudit.accounting import compare
    from dpaudit.accounting.registry import BUILT_IN
    from dpaudit.runs.points import read_points

    ledger, echo = ledger_of(stages, ledger_path, relation)
    found = compare(
        ledger,
        delta=delta,
        accountants=accountants or BUILT_IN,
        group_size=group_size,
        assume=assume,
        curves=out is not None,
        empirical=read_points(points) if points else (),
    )
    payload = found.to_dict() | {k: v for k, v in echo.items() if k.startswith("defaulted")}
    if out is not None:
        from dpaudit.reports import compare_page

        out.write_text(compare_page(payload), encoding="utf-8")
        payload["page"] = str(out)
    rows = [["accountant", "ε lower", "ε upper", "estimate", "rigorous", "seconds", "here"]]
    for row in payload["results"]:
        rows.append(
            [
                row["accountant"],
                *shown(row),
                ABSENT if row["seconds"] is None else f"{row['seconds']:.3f}",
                row["remark"],
            ]
        )
    written = f"\npage: {out}" if out else ""
    emit(payload, as_json, f"ε at δ={exact_text(delta)} under {payload['relation']}\n{table(rows)}{written}")
