"""The lean mode's two passes, which it makes for most models only where they save memory, for every model here."""

from __future__ import annotations

import pytest

from dpaudit.trainers.ghost.retained import Retained


@pytest.fixture(autouse=True)
def two_passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_retained.py":
        monkeypatch.setattr(Retained, "frees_enough", False)
