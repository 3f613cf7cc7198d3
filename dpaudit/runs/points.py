"""Points of an attack's ROC curve from a file, to be drawn beside the accountants' curves."""

from __future__ import annotations

from pathlib import Path

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.storage.tables import numbers, read_table


def read_points(path: Path) -> list[tuple[float, float]]:
    """Empirical (fpr, tpr) points from a CSV file with these two columns."""
    try:
        table = read_table(path, columns=("fpr", "tpr"))
        fpr, tpr = (numbers(table[name], name=name).tolist() for name in ("fpr", "tpr"))
    except InvalidEvidence as error:
        raise InvalidValue(str(error)) from None
    points = list(zip(fpr, tpr, strict=True))
    if any(not (0 <= x <= 1 and 0 <= y <= 1) for x, y in points):
        raise InvalidValue(f"points {str(path)!r} hold a rate outside [0, 1]; write probabilities.")
    return points
