"""A certificate in other forms: nothing in them that it does not hold, and bounds rounded to the safe side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpaudit.certificates.forms import contract_paragraph, export, registry_entry, yaml
from dpaudit.certificates.statement import Statement
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from tests.certificates.certificate_run import release
from tests.runs.run_helpers import run_cli


@pytest.fixture
def statement(tmp_path: Path) -> Statement:
    return Statement.from_bytes(release(tmp_path / "release").read_bytes())


def test_paragraph_holds_claim_bound_digest_and_what_it_is_not(statement: Statement) -> None:
    text = contract_paragraph(statement)
    body = statement.predicate
    assert "epsilon = 3 and delta = 1e-5" in text and "adding or removing one" in text
    assert body.digest in text and statement.subject[0].digest.sha256 in text
    assert f"verdict of the certificate (statement {body.digest}) is {body.verdict.name}" in text
    assert "does not say that the model is private or safe" in text
    upper = min(g.epsilon_upper for g in body.accounting.guarantees if g.epsilon_upper is not None)
    told = float(
        text.split("give epsilon of at most ")[1].split(".", 2)[0]
        + "."
        + text.split("at most ")[1].split(".")[1][:4].split(" ")[0]
    )
    assert told >= upper - 1e-9
    assert "\n" not in text


def test_without_an_audit_it_says_so(statement: Statement) -> None:
    body = statement.predicate.replaced(audit=None)
    assert "The released model was not attacked." in contract_paragraph(statement.replaced(predicate=body))
    with pytest.raises(InvalidEvidence, match="no claim or no ledger"):
        contract_paragraph(statement.replaced(predicate=statement.predicate.replaced(claim=None)))


def test_registry_entry_has_the_registry_s_keys_and_names_what_is_missing(statement: Statement) -> None:
    found = registry_entry(statement)
    deployment = found.entry["deployment"]
    assert set(deployment) == {
        *("product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation", "resources"),
    }
    assert deployment["privacy_loss"]["privacy_parameters"] == {"epsilon": 3.0, "delta": 1e-5}
    assert "product.name" in found.missing and "name" not in deployment["product"]
    stated = {"stated_by_owner": {"model": "m 1", "provider": "P", "contact": "c", "not_stated": ["justification"]}}
    body = statement.predicate.replaced(provenance=stated)
    named = registry_entry(statement.replaced(predicate=body))
    assert named.entry["deployment"]["product"]["data_curators"] == ["P"]
    assert "product.name" not in named.missing and "implementation.justification" in named.missing


def test_hostile_words_stay_inside_their_quotes(statement: Statement) -> None:
    nasty = 'x"\nstatus: Published\n!!python/object: y: [&a {}]'
    stated = {"stated_by_owner": {"model": nasty}}
    text = yaml(registry_entry(statement.replaced(predicate=statement.predicate.replaced(provenance=stated))).entry)
    lines = [line for line in text.splitlines() if "Published" in line]
    assert len(lines) == 1
    assert json.loads(lines[0].split(":", 1)[1]) == nasty


def test_command_prints_both(tmp_path: Path) -> None:
    path = release(tmp_path / "release")
    assert "is claimed to be" in run_cli("export", path, "--as", "paragraph").output
    value = run_cli("export", path, "--as", "registry", "--json").json
    assert value["schema"] == "dpaudit.export/1" and value["missing"]
    assert run_cli("export", path).code == 64


def test_an_unknown_form_is_refused(statement: Statement) -> None:
    with pytest.raises(InvalidValue, match="form='yaml' is unknown"):
        export(statement, "yaml")
