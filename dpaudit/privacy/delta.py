"""What a δ that is large beside the data set allows: one sentence for warnings, certificates and reports."""

from __future__ import annotations

import warnings

from dpaudit.privacy.errors import PrivacyWarning
from dpaudit.privacy.rounding import exact_text


def delta_limit(delta: float, public_size: int | None) -> str | None:
    """One sentence where δ is not below 1/``public_size``; None where it is, or where the size is not known.

    Examples
    --------
    >>> delta_limit(1e-5, 4000) is None
    True
    >>> delta_limit(0.01, 300)
    'delta=0.01 is not below 1/public_size=1/300, and so allows mechanisms that publish one of the 300 records whole.'
    """
    if public_size is None or delta * public_size < 1:
        return None
    return (
        f"delta={exact_text(delta)} is not below 1/public_size=1/{public_size}, and so allows mechanisms that publish"
        f" one of the {public_size} records whole."
    )


def warn_of_large_delta(delta: float, public_size: int) -> None:
    """Warn before the first step where :func:`delta_limit` has something to say; Python shows a text once."""
    if (limit := delta_limit(delta, public_size)) is not None:
        warnings.warn(f"{limit[:-1]}; claim a delta well below 1/public_size.", PrivacyWarning, stacklevel=1)
