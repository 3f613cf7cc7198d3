"""What a recorded examination comes to for the run that it stands beside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dpaudit.certificates.examined import REQUIRED, SIZES, examination_gaps

FULL = {
    "config_sha256": "c" * 64,
    "tests": [{"name": names[0], "excludes": "a fault"} for names, _ in REQUIRED],
    "excluded": {name: 1.1 for name in SIZES},
    "partial": [],
    "in_full": True,
}


def gaps(**provenance: Any) -> tuple[str, ...]:
    body: Any = SimpleNamespace(examination=FULL, provenance={"config_sha256": "c" * 64, **provenance})
    return examination_gaps(body)


def test_an_examination_in_one_process_is_none_of_a_run_in_several() -> None:
    """What the processes do together is not in it: it cannot lift the run to level 2."""
    assert gaps() == gaps(processes=1) == ()
    assert gaps(processes=4) == ("the run trained in 4 processes and the examination saw one",)
    assert len(gaps(processes="many")) == 1
