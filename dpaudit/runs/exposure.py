"""An exposure report of files: canaries' losses against those of references that were never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpaudit.auditing.exposure_report import ExposureReport


def exposure(
    canaries: str | Path,
    references: str | Path,
    *,
    group_claims: Mapping[int, float] | None = None,
    delta: float | None = None,
) -> ExposureReport:
    """Report how far canaries stand out from references that were never trained on.

    For arrays that are in memory already there is :func:`dpaudit.auditing.exposure_report`, which this calls.

    Parameters
    ----------
    canaries : path
        CSV or Parquet with id, loss[, copies]; a LOWER loss is memorised.
    references : path
        CSV or Parquet with loss: secrets from the same generator that were never trained on.
    group_claims : mapping of int to float, optional
        ε claimed for groups of k records, for p-values of canaries with k copies under it.
    delta : float, optional
        δ of the group claims.

    Returns
    -------
    ExposureReport
        Rank, exposure and p-value of every canary, and the tests by number of copies. A p-value is evidence of
        memorisation and never a bound on ε.

    Raises
    ------
    InvalidEvidence
        When a file cannot be read, or the references hold canaries.

    Examples
    --------
    ::

        report = dpaudit.exposure("canaries.csv", "references.csv")
        report.combined_p_value
    """
    from dpaudit.auditing import exposure_report
    from dpaudit.privacy.errors import InvalidEvidence
    from dpaudit.storage.tables import identifiers, numbers, read_table

    path, others_path = Path(canaries), Path(references)
    cells = read_table(path, columns=("id", "loss"), optional=("copies",))
    ids = identifiers(cells["id"], name=path.name)
    others = _references(others_path, path, ids)
    if not ids or not others:
        raise InvalidEvidence(f"{(path if not ids else others_path).name} holds no rows; give at least one loss.")
    return exposure_report(
        ids,
        numbers(cells["loss"], name="loss", ids=ids),
        numbers(others, name="loss"),
        copies=numbers(cells["copies"], name="copies", ids=ids) if "copies" in cells else None,
        group_claims=None if group_claims is None else dict(group_claims),
        delta=delta,
    )


def parse_group_claims(texts: Sequence[str]) -> dict[int, float]:
    """ε claimed for groups of records, from texts K=EPS.

    >>> parse_group_claims(["4=19.8"])
    {4: 19.8}
    """
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


def _references(path: Path, canaries: Path, ids: list[str]) -> list[Any]:
    """Cells of the reference losses; a file that holds canaries is refused."""
    from dpaudit.privacy.errors import InvalidEvidence
    from dpaudit.privacy.validate import name_some
    from dpaudit.storage.commitment import sha256_file
    from dpaudit.storage.tables import read_table

    cells = read_table(path, columns=("loss",), optional=("id",))
    same = path.is_file() and canaries.is_file() and sha256_file(path) == sha256_file(canaries)
    shared = sorted(set(map(str, cells.get("id", []))) & set(ids))
    if same or shared:
        which = "is the file of the canaries" if same else f"holds {len(shared)} of the canaries ({name_some(shared)})"
        raise InvalidEvidence(
            f"references {path.name} {which}; give losses of other secrets of the same generator, never trained on."
        )
    return cells["loss"]
