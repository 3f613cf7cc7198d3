"""Model card, privacy.json and MLflow: the certificate in the places where people look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpaudit.certificates.build import build_certificate
from dpaudit.certificates.short_record import privacy_json
from dpaudit.certificates.statement import Statement
from dpaudit.privacy.verdict import Verdict
from dpaudit.reports import insert_model_card, log_to_mlflow, model_card
from tests.certificates import certificate_run as run


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Statement:
    return build_certificate(run.evidence(tmp_path_factory.mktemp("release")))


def test_model_card_states_claim_evidence_and_limits(certificate: Statement) -> None:
    text = model_card(certificate)
    for words in (
        "**Inconclusive.**",
        "ε ≤ 3 at δ = 1e-5",
        "not measured",
        "60 steps, σ = 0.8, q = 0.01",
        "does not prove",
    ):
        assert words in text, words


def test_model_card_is_replaced_and_not_repeated(certificate: Statement) -> None:
    section = model_card(certificate)
    once = insert_model_card("# My model\n\nText.\n", section)
    assert once.startswith("# My model\n\nText.\n\n<!-- dpaudit:begin -->")
    assert insert_model_card(once, section).strip() == once.strip()
    assert insert_model_card("", section) == section


def test_markdown_in_data_is_shown_as_text(certificate: Statement) -> None:
    poisoned = certificate.to_plain()
    poisoned["predicate"]["mechanism"]["algorithm"] = (
        "x](javascript:alert(1)) | <b>bold</b>\n# heading <!-- dpaudit:end -->"
    )
    text = model_card(Statement.from_plain(poisoned))
    assert "<b>" not in text
    assert "\n# heading" not in text
    assert text.count("<!-- dpaudit:end -->") == 1


def test_privacy_json_points_at_the_certificate(certificate: Statement) -> None:
    value = json.loads(privacy_json(certificate))
    assert value["schema"] == "dpaudit.privacy/1"
    assert value["statement_sha256"] == certificate.digest
    assert value["epsilon_lower"] <= value["epsilon_upper"] <= value["claim"]["epsilon"]
    assert privacy_json(certificate) == privacy_json(certificate)


def test_mlflow_local_store(certificate: Statement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = tmp_path.as_uri()
    series = {"epsilon_over_steps": {"steps": [10, 20, 40], "epsilon": [0.5, 0.8, 1.1]}}
    run_id = log_to_mlflow(certificate, series, tracking_uri=uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert [m.value for m in client.get_metric_history(run_id, "privacy/epsilon")] == [0.5, 0.8, 1.1]
    logged = client.get_run(run_id)
    assert logged.data.tags["dpaudit.verdict"] == "inconclusive"
    assert logged.data.params["privacy/relation"] == "add_or_remove_one"
    names = {a.path for a in client.list_artifacts(run_id, "dpaudit")}
    assert {"dpaudit/certificate.json", "dpaudit/report.html", "dpaudit/figures"} <= names
    assert log_to_mlflow(certificate, tracking_uri=uri, run_id=run_id) == run_id


def test_page_card_and_privacy_json_show_one_lower_bound_or_none(certificate: Statement) -> None:
    """An audit whose coins do not open their commitment used to lend privacy.json its bound."""
    from dpaudit.certificates.lower_bound import usable_lower
    from dpaudit.reports import render_report

    found = usable_lower(certificate.predicate)
    assert found is not None
    value = json.loads(privacy_json(certificate))
    assert value["epsilon_lower"] == found.epsilon_lower and value["confidence"] == 0.95
    assert value["epsilon_lower_at_verdict"] <= value["epsilon_lower"]
    assert "by attack" in model_card(certificate)
    broken = certificate.to_plain()
    body = broken["predicate"]
    body["audit"]["canaries"][0][1] ^= 1
    fault = "the canaries' coins do not match the commitment made before training"
    for name in ("invalid_audit", "violated"):  # a graver verdict may stand above the fault
        body["verdict"] = {"name": name, "reasons": ["a witness", fault], "meaning": Verdict(name).meaning}
        made = Statement.from_plain(broken)
        assert usable_lower(made.predicate) is None and json.loads(privacy_json(made))["epsilon_lower"] is None
        assert "by attack" not in model_card(made) and "by attack" not in render_report(made)
