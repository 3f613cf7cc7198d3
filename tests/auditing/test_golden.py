"""Golden values of the audit statistics, from independent implementations."""

from __future__ import annotations

import json

import pytest

from dpaudit import auditing as audit
from dpaudit.auditing import gaussian, one_run, rates
from tests import DATA

CASES = json.loads((DATA / "auditing_cases.json").read_text())["cases"]


def of_kind(kind):
    return [pytest.param(case, id=case["id"]) for case in CASES if case["kind"] == kind]


def close(got, case, ref=None, tol=None):
    want = case["expected"][ref or case["ref"]]
    tol = case["tol"] if tol is None else tol
    assert abs(got - want) <= tol * max(1.0, abs(want)), (got, want)


@pytest.mark.parametrize("case", of_kind("onerun_snj"))
def test_one_run_bound(case):
    i = case["inputs"]
    close(audit.snj_epsilon_lower(i["m"], i["r"], i["v"], i["delta"], i["alpha"]), case)


@pytest.mark.parametrize("case", of_kind("onerun_snj_pvalue"))
def test_one_run_p_value(case):
    i = case["inputs"]
    close(one_run.snj_p_value(i["m"], i["r"], i["v"], i["eps"], i["delta"]), case)


@pytest.mark.parametrize("case", of_kind("ceiling_perfect_attack"))
def test_ceilings(case):
    i = case["inputs"]
    m, n, alpha, delta = i["m"], i["n_pos"], i["alpha"], i["delta"]
    close(one_run.snj_ceiling(m, m, delta, alpha), case)
    close(one_run.snj_ceiling(m, m, 0.0, alpha), case, "snj_delta0")
    close(audit.cp_epsilon_lower(n, n, 0, m - n, delta, alpha), case, "cp")
    close(audit.f_dp_epsilon_lower(m, m, m, delta, alpha), case, "fdp")
    close(audit.gdp_epsilon_lower(n, n, 0, m - n, delta, alpha), case, "gdp_cp")


@pytest.mark.parametrize("case", of_kind("onerun_fdp_gauss"))
def test_one_run_gaussian_curve(case):
    i = case["inputs"]
    close(audit.f_dp_epsilon_lower(i["m"], i["r"], i["v"], i["delta"], i["alpha"]), case)


@pytest.mark.parametrize("case", of_kind("clopper_pearson"))
def test_clopper_pearson(case):
    i = case["inputs"]
    counts = (i["tp"], i["n_pos"], i["fp"], i["n_neg"])
    close(audit.cp_epsilon_lower(*counts, i["delta"], i["alpha"]), case)
    one = audit.cp_epsilon_lower(*counts, i["delta"], i["alpha"], both_directions=False)
    close(one, case, "exact_one_dir")
    katz = rates.katz_epsilon_lower(*counts, i["alpha"], both_directions=False)
    close(katz, case, "tf_privacy_katz_delta0")


@pytest.mark.parametrize("case", of_kind("bayesian_eps"))
def test_bayesian(case):
    i = case["inputs"]
    counts = (i["tp"], i["n_pos"], i["fp"], i["n_neg"], i["delta"], i["alpha"])
    close(rates.bayesian_epsilon_lower(*counts), case, tol=1e-3)
    close(rates.jeffreys_epsilon_lower(*counts), case, "privacy_estimates_jeffreys")


@pytest.mark.parametrize("case", of_kind("gdp_mu_lower"))
def test_gaussian_rates(case):
    i = case["inputs"]
    counts = (i["tp"], i["n_pos"], i["fp"], i["n_neg"])
    close(rates.gdp_mu_lower(*counts, i["alpha"]), case)
    close(audit.gdp_epsilon_lower(*counts, i["delta"], i["alpha"]), case, "exact_eps")


@pytest.mark.parametrize("case", of_kind("gdp_eps_from_mu"))
def test_gaussian_epsilon(case):
    close(gaussian.gdp_epsilon(case["inputs"]["mu"], case["inputs"]["delta"]), case)


@pytest.mark.parametrize("case", of_kind("gdp_mu_from_eps"))
def test_gaussian_mu(case):
    close(gaussian.gdp_mu(case["inputs"]["eps"], case["inputs"]["delta"]), case)


@pytest.mark.parametrize("case", of_kind("dp_attack_ceiling"))
def test_attack_limits(case):
    limits = gaussian.dp_attack_limits(case["inputs"]["eps"], case["inputs"]["delta"])
    pairs = {
        "max_balanced_acc_eps_delta": "max_balanced_accuracy",
        "max_adv_eps_delta": "max_advantage",
        "tpr_at_fpr_001_eps_delta": "tpr_at_fpr",
        "mu": "mu",
        "max_balanced_acc_gdp": "gaussian_max_balanced_accuracy",
        "auc_gdp": "gaussian_auc",
        "tpr_at_fpr_001_gdp": "gaussian_tpr_at_fpr",
    }
    for golden, ours in pairs.items():
        close(limits[ours], case, golden)
