"""An opened manifest is checked when it is made, and opens its own commitment."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from dpaudit import InvalidValue
from dpaudit.privacy.canaries import Canaries

GOOD: dict[str, Any] = {"ids": ("b", "a"), "coins": (0, 1), "copies": 2, "nonce": b"n" * 32}


@pytest.mark.parametrize(
    "changes",
    [
        *({"ids": ("a", "a")}, {"ids": ("a",)}, {"ids": (), "coins": ()}, {"coins": (0, 2)}, {"coins": (0, True)}),
        *({"copies": 0}, {"copies": 1.5}, {"nonce": b"short"}),
    ],
)
def test_what_is_no_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        Canaries(**{**GOOD, **changes})


def test_the_commitment_is_the_digest_of_nonce_and_sorted_manifest() -> None:
    text = b'{"canaries":[["a",1],["b",0]],"copies":2,"version":1}'
    assert Canaries(**GOOD).commitment == hashlib.sha256(b"n" * 32 + text).hexdigest()
    assert Canaries(**{**GOOD, "nonce": None}).commitment is None
