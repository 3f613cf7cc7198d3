from __future__ import annotations

import warnings

import pytest

from dpaudit import PrivacyWarning
from dpaudit.privacy.delta import delta_limit, warn_of_large_delta


@pytest.mark.parametrize(
    ("delta", "size", "large"),
    [(0.01, 300, True), (1 / 300, 300, True), (0.00333, 300, False), (1e-5, 300, False), (0.5, None, False)],
)
def test_the_limit_begins_at_one_over_the_declared_size(delta: float, size: int | None, large: bool) -> None:
    assert (delta_limit(delta, size) is not None) is large


def test_the_warning_is_one_sentence_with_the_remedy_and_is_shown_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_of_large_delta(0.01, 299)
            warn_of_large_delta(1e-6, 299)
    assert [w.category for w in caught] == [PrivacyWarning]
    text = str(caught[0].message)
    assert "delta=0.01" in text and "1/299" in text and text.endswith("claim a delta well below 1/public_size.")
