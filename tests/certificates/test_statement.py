"""A certificate as a value: bytes in, the same bytes out, and nothing that the format does not know."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpaudit import InvalidEvidence
from dpaudit.certificates.statement import Statement
from dpaudit.storage.commitment import canonical_json
from tests import ROOT

REAL = sorted((ROOT / "tests" / "data" / "certificates").rglob("certificate.json"))
PLAIN: dict[str, Any] = json.loads(REAL[0].read_bytes())


def copied() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(PLAIN))
    return value


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_real_certificates_come_back_byte_for_byte(path: Path) -> None:
    statement = Statement.from_bytes(path.read_bytes())
    assert statement.to_bytes() == path.read_bytes()
    assert statement.digest == statement.predicate.digest
    assert Statement.from_plain(statement.to_plain()) == statement


NUMBERS = st.integers(0, 10**9) | st.floats(0, 1e300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(NUMBERS, NUMBERS | st.just("inf") | st.none(), st.dictionaries(st.text("ab", max_size=3), JSON, max_size=4))
def test_numbers_and_open_sections_are_kept_as_they_were_written(claim: Any, upper: Any, free: dict[str, Any]) -> None:
    """A whole number is not turned into a fraction, nor infinity into a number, nor an open section into another."""
    plain = copied()
    body = plain["predicate"]
    body["claim"]["epsilon"] = claim or 1
    body["accounting"]["guarantees"][0]["epsilon_upper"] = upper
    body["provenance"] = free
    statement = Statement.from_plain(plain)
    assert statement.to_bytes() == canonical_json(plain) + b"\n"
    found = statement.predicate.accounting.guarantees[0].epsilon_upper
    assert found == (math.inf if upper == "inf" else upper)


def test_the_order_of_keys_is_no_difference() -> None:
    plain = copied()
    plain["predicate"] = dict(reversed(plain["predicate"].items()))
    assert Statement.from_plain(dict(reversed(plain.items()))).to_bytes() == REAL[0].read_bytes()


def test_a_field_that_is_absent_stays_absent() -> None:
    plain = copied()
    plain["predicate"].pop("pages", None)
    plain["predicate"].pop("examination", None)
    statement = Statement.from_plain(plain)
    assert statement.predicate.pages is None and statement.predicate.examination is None
    assert statement.to_plain() == plain
    named = Statement.from_plain({**plain, "predicate": {**plain["predicate"], "pages": None}})
    assert named.to_plain() != plain and named.digest != statement.digest


@pytest.mark.parametrize("place", [(), ("predicate",), ("predicate", "claim"), ("predicate", "audit")])
def test_an_unknown_key_is_refused(place: tuple[str, ...]) -> None:
    plain = copied()
    holder = plain
    for key in place:
        holder = holder[key]
    holder["more"] = 1
    with pytest.raises(InvalidEvidence, match=r"more.*give the original"):
        Statement.from_plain(plain)


def test_a_statement_is_a_value() -> None:
    statement = Statement.from_plain(PLAIN)
    with pytest.raises(ValidationError, match="frozen"):
        statement.predicate.verdict.name = "consistent"  # type: ignore[misc]
    changed = statement.replaced(predicate=statement.predicate.replaced(reproduction="another")).with_digest()
    assert changed.predicate.digest == changed.digest != statement.digest
    assert statement.to_plain() == PLAIN
