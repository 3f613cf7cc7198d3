"""``dpaudit exposure``: how far canaries stand out from references that were never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.common import emit, json_option, table
from dpaudit.privacy.rounding import ABSENT, nearest_text, upper_text

if TYPE_CHECKING:
    from dpaudit.auditing import ExposureReport

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
    from dpaudit.runs.exposure import exposure

    report = exposure(canaries, references, group_claims=_claims(claims) or None, delta=delta)
    payload, text = report.to_dict(), to_text(report)
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


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many}"


def to_text(report: ExposureReport) -> str:
    """The report for people: one line per canary, then the tests."""
    from dpaudit.auditing.exposure import mean_exposure_without_leakage
    from dpaudit.auditing.exposure_checks import REVERSED_WORDS
    from dpaudit.auditing.exposure_report import LEVEL

    rows = [("id", "copies", "rank", "exposure", "extrapolated", "p-value")]
    for i, name in enumerate(report.ids):
        far = ABSENT if report.extrapolated is None else nearest_text(report.extrapolated[i], 3)
        rows.append(
            (
                name,
                str(report.copies[i]),
                str(report.ranks[i]),
                nearest_text(report.exposures[i], 3),
                far,
                upper_text(report.p_values[i], 3),
            )
        )
    lines = [table(rows), *([REVERSED_WORDS] if report.looks_reversed else [])]
    for group in report.by_copies:
        lines.append(
            f"{counted(group['canaries'], 'canary', 'canaries')} with {counted(group['copies'], 'copy', 'copies')}"
            f" ({'one record' if group['copies'] == 1 else group['claim']}): mean exposure"
            f" {nearest_text(group['mean_exposure'], 3)} bits, rank-sum p={upper_text(group['p_value'], 3)}"
            + ("" if group["exact"] else " (normal approximation)")
            + (f", p={upper_text(p, 3)} under the claim" if (p := group["p_value_under_claim"]) is not None else "")
        )
    lines.append(
        f"all canaries: rank-sum p={upper_text(report.combined_p_value, 3)} against {report.references} references"
    )
    if not report.fit.used:
        lines.append(f"no extrapolation: {report.fit.reason}")
    chance, below = LEVEL * len(report.ids), int((report.p_values <= LEVEL).sum())
    lines.append(
        f"single p-values are not corrected: {below} of {len(report.ids)} are at most {LEVEL:g}, and about"
        f" {nearest_text(chance, 2)} would be by chance"
    )
    mean = nearest_text(mean_exposure_without_leakage(report.references))
    lines.append(f"Without leakage the mean exposure is {mean} bits. Exposure is no bound on ε.")
    return "\n".join(lines)
