"""``dpaudit exposure``: how far canaries stand out from references that were never trained on."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, emit_with_page, json_option


@click.command("exposure")
@click.argument("canaries", type=PATH)
@click.option("--references", type=PATH, required=True, help="CSV or Parquet with a column loss, never trained on.")
@click.option("--group-claim", "claims", multiple=True, metavar="K=EPS", help="ε for groups of K records; repeatable.")
@click.option("--delta", type=float, help="δ of the group claims.")
@click.option("--out", type=PATH, help="Write one HTML page with figures.")
@json_option
def command(
    canaries: Path, references: Path, claims: tuple[str, ...], delta: float | None, out: Path | None, as_json: bool
) -> None:
    """Exposure of CANARIES: CSV or Parquet with id,loss[,copies]; LOWER loss = memorised.

    References are secrets from the same generator that were never trained on; below 1,000 of them, or when a
    skew-normal does not fit them, no extrapolation is given. Without leakage the mean exposure is not 0: the exact
    value is printed. A p-value is evidence of memorisation, never a bound on ε; canaries with k copies concern
    groups of k records, whose claim (dpaudit account --group-size K) can be given for p-values under it.

    \b
    Example:
      dpaudit exposure canaries.csv --references references.csv
      dpaudit exposure canaries.csv --references references.csv --group-claim 4=19.8 --delta 1e-5 --json
    """
    from dpaudit.auditing.text import exposure_text
    from dpaudit.reports import exposure_page
    from dpaudit.runs.exposure import exposure, parse_group_claims

    report = exposure(canaries, references, group_claims=parse_group_claims(claims) or None, delta=delta)
    emit_with_page(report.to_dict(), as_json, exposure_text(report), out, exposure_page)
