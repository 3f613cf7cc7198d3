"""The shipped run whose unit is an author: what it draws, and that it ends with a certificate that verifies."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import dpaudit
from dpaudit.runs.config import read_config
from dpaudit.runs.prepare import make_plans, public_size
from dpaudit.runs.records import private_and_public
from tests.runs.run_helpers import EXAMPLES, write_toml

FILE = EXAMPLES / "per_user.toml"


def test_it_draws_authors_of_many_records() -> None:
    config = read_config(FILE)
    private, public = private_and_public(config, EXAMPLES)
    assert private.units is not None and len(public)
    assert len(set(private.units)) == config.privacy.public_size == 80
    assert max(map(private.units.count, set(private.units))) == 24
    (plan,) = make_plans(config, public_size(config))
    (found,) = dpaudit.account(plan.ledger(), delta=config.claim.delta)
    assert plan.draws_units and plan.ledger().max_records_per_unit == 1
    assert found.epsilon_upper is not None and 7.9 < found.epsilon_upper <= 8


def test_without_its_design_it_is_refused(tmp_path: Path) -> None:
    value = tomllib.loads(FILE.read_text())
    for key in ("sampling_unit", "records_per_unit"):
        del value["privacy"][key]
    value["claim"]["max_records_per_unit"] = 5
    path = write_toml(tmp_path / "changed.toml", value)
    with pytest.raises(dpaudit.InvalidValue, match="one author has 24 records, above max_records_per_unit=5"):
        private_and_public(read_config(path), EXAMPLES)


@pytest.mark.slow
def test_it_ends_with_a_certificate_that_verifies(tmp_path: Path) -> None:
    dpaudit.certify(str(FILE), out=str(tmp_path / "run"))
    path = tmp_path / "run" / "release" / "certificate.json"
    body = json.loads(path.read_text())["predicate"]
    assert body["mechanism"]["units"] == {
        "column": "author", "drawn": "unit", "records_of_a_step": 4, "reduction": "mean",
    }  # fmt: skip
    assert not any("is an assumption: no column" in limit for limit in body["limits"])
    assert dpaudit.verify(str(path)).verdict == body["verdict"]["name"]
