"""Logging a finished run to MLflow (package ``mlflow-skinny``): ε over steps, figures, certificate and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.lower_bound import usable_lower
from dpaudit.certificates.statement import Predicate, Statement
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.guarantee import tightest
from dpaudit.reports.page import render_report, report_drawings


def log_to_mlflow(
    certificate: Statement,
    series: Mapping[str, Any] | None = None,
    *,
    tracking_uri: str | None = None,
    experiment: str = "dpaudit",
    run_id: str | None = None,
) -> str:
    """Log a certificate to MLflow and return the id of the run.

    Only what stands in the certificate and in ``series`` is logged: nothing from ``private/``.

    Parameters
    ----------
    certificate, series
        As for :func:`dpaudit.reports.render_report`.
    tracking_uri : str, optional
        Where to log; MLflow's own setting by default. A local folder is ``file:./mlruns``.
    experiment : str
        Name of the experiment, made when it does not exist.
    run_id : str, optional
        An existing run to add to, such as the one that ``report_to="mlflow"`` of a trainer made.

    Returns
    -------
    str
        Id of the run.

    Raises
    ------
    InvalidValue
        If MLflow is not installed.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
    except ImportError:
        raise InvalidValue("logging to MLflow needs its package; run: pip install mlflow-skinny.") from None
    series = series or {}
    body = certificate.predicate
    client = MlflowClient(tracking_uri=tracking_uri)
    if run_id is None:
        known = client.get_experiment_by_name(experiment)
        made = client.create_experiment(experiment) if known is None else known.experiment_id
        run_id = client.create_run(made).info.run_id
    over = series.get("epsilon_over_steps") or {"steps": [], "epsilon": []}
    steps = zip(over["steps"], over["epsilon"], strict=True)
    metrics = [Metric("privacy/epsilon", float(value), 0, int(step)) for step, value in steps]
    for name, value in _numbers(body).items():
        metrics.append(Metric(f"privacy/{name}", value, 0, 0))
    claim = {} if body.claim is None else body.claim.to_dict()
    params = [Param(f"privacy/{k}", str(v)) for k, v in claim.items()]
    tags = [RunTag("dpaudit.verdict", body.verdict.name), RunTag("dpaudit.statement", body.digest)]
    client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
    client.log_text(run_id, certificate.to_bytes().decode("utf-8"), "dpaudit/certificate.json")
    client.log_text(run_id, render_report(certificate, series), "dpaudit/report.html")
    for drawing in report_drawings(certificate, series).values():
        client.log_text(run_id, drawing.standalone(), f"dpaudit/figures/{drawing.name}.svg")
    client.set_terminated(run_id)
    return str(run_id)


def _numbers(body: Predicate) -> dict[str, float]:
    result = {} if body.audit is None else body.audit.result or {}
    lower = usable_lower(body)
    best = tightest(body.accounting.guarantees)
    found = {
        "epsilon_upper": None if best is None else best.epsilon_upper,
        "epsilon_lower": None if lower is None else lower.epsilon_lower,
        "ceiling": result.get("ceiling"),
        "power": result.get("power"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
