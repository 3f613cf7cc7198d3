"""``dpaudit exposure``: how far canaries stand out from references that were never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.cli.common import PATH, Result, argument, option, printed, with_page


@printed("exposure")
@argument("canaries", type=PATH)
@option("--references", type=PATH, required=True, help="CSV or Parquet with a column loss, never trained on.")
@option("--group-claim", "claims", multiple=True, metavar="K=EPS", help="ε for groups of K records; repeatable.")
@option("--delta", type=float, help="δ of the group claims.")
@option("--out", type=PATH, help="Write one HTML page with figures.")
def command(claims: Sequence[str], out: Path | None, **options: Any) -> Result:
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
    from dpaudit.reports import exposure_page
    from dpaudit.runs.exposure import exposure, parse_group_claims

    found = exposure(group_claims=parse_group_claims(claims) or None, **options)
    return with_page(found, out, exposure_page)
