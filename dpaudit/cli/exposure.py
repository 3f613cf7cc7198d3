"""``dpaudit exposure``: how far canaries stand out from references that were never trained on."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import emit, json_option

FILE = click.Path(path_type=Path)


@click.command("exposure")
@click.argument("canaries", type=FILE)
@click.option("--references", type=FILE, required=True, help="CSV or Parquet with a column loss, never trained on.")
@click.option("--group-claim", "claims", multiple=True, metavar="K=EPS", help="ε for groups of K records; repeatable.")
@click.option("--delta", type=float, help="δ of the group claims.")
@click.option("--out", type=FILE, help="Write one HTML page with figures.")
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
    from dpaudit.runs.exposure import exposure

    report = exposure(canaries, references, group_claims=_claims(claims) or None, delta=delta)
    payload, text = report.to_dict(), exposure_text(report)
    if out is not None:
        from dpaudit.reports import exposure_page

        out.write_text(exposure_page(payload), encoding="utf-8")
        payload["page"] = str(out)
        text += f"\npage: {out}"
    emit(payload, as_json, text)


def _claims(texts: tuple[str, ...]) -> dict[int, float]:
    from dpaudit.privacy import validate
    from dpaudit.privacy.errors import InvalidValue

    found: dict[int, float] = {}
    for text in texts:
        copies, _, epsilon = text.partition("=")
        try:
            k, value = int(copies), float(epsilon)
        except ValueError:
            raise InvalidValue(f"group-claim={text!r} must be K=EPS, such as 4=19.8.") from None
        validate.integer_at_least(1, copies=k)
        validate.non_negative(group_claim=value)
        found[k] = value
    return found
