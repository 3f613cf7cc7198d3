"""Exposure: golden values, exact tests, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import exposure_report
from dpaudit.auditing.exposure import (
    exposure,
    exposure_epsilon_lower,
    exposure_extrapolated,
    exposure_from_rank,
    exposure_p_values_under_claim,
    exposure_ranks,
    fit_references,
    mean_exposure_without_leakage,
    rank_sum_test,
)
from dpaudit.cli import run
from dpaudit.privacy.rounding import nearest_text
from tests import DATA, ROOT

CASES = json.loads((DATA / "auditing_cases.json").read_text())["cases"]


def cases(kind):
    return [
        pytest.param(c["inputs"], c["expected"][c["ref"]], c["tol"], id=c["id"]) for c in CASES if c["kind"] == kind
    ]


@pytest.mark.parametrize(("given", "want", "tol"), cases("exposure_log"))
def test_from_rank(given, want, tol):
    assert exposure_from_rank(given["space"], given["rank"]) == pytest.approx(want, abs=tol)


@pytest.mark.parametrize(("given", "want", "tol"), cases("exposure_rank"))
def test_by_rank(given, want, tol):
    references = range(1, 17)
    assert exposure_ranks([given["loss"]], references)[0] == given["rank"]
    assert exposure([given["loss"]], references)[0] == pytest.approx(want, abs=tol)


@pytest.fixture(scope="module")
def skew_references():
    from scipy import stats

    return stats.skewnorm.rvs(4, 50, 10, 5000, random_state=np.random.default_rng(7))


@pytest.mark.parametrize(("given", "want", "tol"), cases("exposure_skewnorm"))
def test_extrapolated(given, want, tol, skew_references):
    fit = fit_references(skew_references)
    assert fit.used and exposure_extrapolated([given["loss"]], fit)[0] == pytest.approx(want, abs=tol * want)


def test_worst_rank_is_just_below_zero():
    assert exposure([99.0], range(16))[0] == pytest.approx(math.log2(16 / 17))


def brute_p_value(canaries, references):
    """Share of relabellings whose rank sum is as low, by enumeration."""
    both = np.concatenate([canaries, references])
    n = len(canaries)
    ranks = np.argsort(np.argsort(both))
    observed = ranks[:n].sum()
    sums = [sum(ranks[list(chosen)]) for chosen in itertools.combinations(range(len(both)), n)]
    return np.mean(np.array(sums) <= observed)


@pytest.mark.parametrize("seed", range(6))
def test_rank_sum_is_exact(seed):
    rng = np.random.default_rng(seed)
    canaries, references = rng.normal(size=3 + seed % 2) - 0.3 * seed, rng.normal(size=9)
    p, exact = rank_sum_test(canaries, references)
    assert exact and p == pytest.approx(brute_p_value(canaries, references), abs=1e-12)


def test_large_rank_sum_says_it_is_approximate():
    rng = np.random.default_rng(0)
    p, exact = rank_sum_test(rng.normal(size=3000), rng.normal(size=3000))
    assert not exact and 0 < p < 1


def test_ties_count_against_the_canary():
    assert exposure_ranks([2.0], [1.0, 2.0, 2.0, 3.0])[0] == 4
    assert rank_sum_test([2.0], [2.0, 2.0, 2.0])[0] == 1.0


def test_extrapolation_is_refused_when_unfounded():
    rng = np.random.default_rng(0)
    assert "fewer" in fit_references(rng.normal(size=999)).reason
    two_humps = np.concatenate([rng.normal(size=2000), rng.normal(20, 1, 2000)])
    fit = fit_references(two_humps)
    assert not fit.used and "skew-normal" in fit.reason
    with pytest.raises(InvalidValue, match="refused"):
        exposure_extrapolated([0.0], fit)


def test_group_bound():
    assert exposure_epsilon_lower(1, 1, 20, 0.0) == pytest.approx(math.log(0.05 * 2**20))
    assert exposure_epsilon_lower(100, 0, 20, 0.0) == 0.0
    assert exposure_epsilon_lower(10, 3, 10, 0.5) == 0.0


def test_report_groups_by_copies():
    rng = np.random.default_rng(1)
    report = exposure_report(["a", "b", "c"], [-9.0, 0.0, -9.0], rng.normal(size=1500), copies=[4, 1, 4])
    value = report.to_dict()
    assert [g["copies"] for g in value["by_copies"]] == [1, 4]
    assert value["by_copies"][1]["claim"] == "group of 4 records" and value["epsilon_lower"] is None
    assert value["canaries"][0]["p_value"] == pytest.approx(1 / 1501)
    assert value["mean_exposure_without_leakage"] == pytest.approx(1.4427, abs=0.01)
    assert value["canaries"][0]["exposure_extrapolated"] > value["canaries"][0]["exposure"]
    with pytest.raises(InvalidEvidence, match="'a'"):
        exposure_report(["a", "a"], [0.0, 1.0], [1.0, 2.0])
    with pytest.raises(InvalidEvidence, match="NaN"):
        exposure_report(["a"], [float("nan")], [1.0, 2.0])


def test_p_values_under_the_group_claim():
    references = np.arange(1.0, 10_001.0)
    report = exposure_report(
        ["a", "b", "c"], [0.0, 0.0, 5000.5], references, copies=[1, 4, 4], group_claims={4: 3.0}, delta=1e-5
    )
    value = report.to_dict()
    assert [c["p_value_under_claim"] for c in value["canaries"]] == [
        None,
        pytest.approx(math.exp(3) / 10_001 + 1e-5),
        1.0,
    ]
    assert value["by_copies"][1]["p_value_under_claim"] == pytest.approx(2 * (math.exp(3) / 10_001 + 1e-5))
    assert value["by_copies"][0]["p_value_under_claim"] is None
    with pytest.raises(InvalidValue, match="delta"):
        exposure_report(["a"], [0.0], references, group_claims={1: 3.0})


def test_p_values_under_the_claim_keep_their_level():
    """A mechanism that shows the canary's secret with the largest advantage (ε, 0) allows."""
    rng, epsilon, r, low = np.random.default_rng(0), 1.0, 999, 0
    for _ in range(4000):
        rank = 1 if rng.random() < math.e / (r + 1) else int(rng.integers(2, r + 2))
        low += exposure_p_values_under_claim([rank], r, epsilon, 0.0)[0] <= 0.01
    assert low <= 40 + 2 * math.sqrt(40)


@pytest.mark.parametrize("references", [1, 2, 16, 506])
def test_the_mean_without_leakage_is_exact(references):
    """A canary that is one more reference falls into each of the references + 1 gaps equally often."""
    gaps = np.arange(references + 1) + 0.5
    bits = exposure(gaps, np.arange(1, references + 1))
    assert mean_exposure_without_leakage(references) == pytest.approx(bits.mean(), abs=1e-12)


def test_the_mean_without_leakage_is_written_once():
    asymptotic = re.compile(r"\b1\.44\d*\b|log2\(math\.e\)")
    folders = ("dpaudit", "reports")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".html", ".css")]
    found = {p.name for p in files if asymptotic.search(p.read_text().replace("log2(e) = 1.4427", ""))}
    assert not found


def test_groups_stand_out_after_correction():
    rng = np.random.default_rng(5)
    losses = np.concatenate([rng.normal(size=20), rng.normal(size=20) - 3])
    copies = np.repeat([1, 16], 20)
    value = exposure_report([str(i) for i in range(40)], losses, rng.normal(size=300), copies=copies).to_dict()
    single, many = value["by_copies"]
    assert value["level"] == 0.05
    assert many["stands_out"] and many["p_value_corrected"] == min(1.0, 2 * many["p_value"])
    assert single["stands_out"] == (2 * single["p_value"] <= 0.05)
    assert value["single_p_values"]["expected_by_chance"] == pytest.approx(2.0)


def test_null_p_values_are_uniform():
    rng = np.random.default_rng(2)
    hits = sum(rank_sum_test(rng.normal(size=8), rng.normal(size=200))[0] <= 0.05 for _ in range(1000))
    assert hits <= 50 + 2 * math.sqrt(1000 * 0.05 * 0.95)


def test_command(tmp_path, capsys):
    canaries, references = tmp_path / "c.csv", tmp_path / "r.csv"
    canaries.write_text("id,loss,copies\na,0.5,1\nb,9,4\n")
    references.write_text("loss\n" + "\n".join(str(i) for i in range(1, 17)) + "\n")
    with pytest.raises(SystemExit) as caught:
        run(["exposure", str(canaries), "--references", str(references), "--json"])
    value = json.loads(capsys.readouterr().out)
    assert caught.value.code == 0 and value["schema"] == "dpaudit.exposure/1"
    first = value["canaries"][0]
    assert (first["rank"], first["exposure"], first["exposure_extrapolated"]) == (1, 4.0, None)
    assert first["p_value"] == pytest.approx(1 / 17) and value["combined"]["exact"] is True
    with pytest.raises(SystemExit) as caught:
        run(["exposure", str(canaries), "--references", str(references)])
    out = capsys.readouterr().out
    assert f"the mean exposure is {nearest_text(mean_exposure_without_leakage(16))} bits" in out
    assert "1 canary with 1 copy (one record)" in out and "1 canary with 4 copies (group of 4 records)" in out


@pytest.mark.parametrize(
    ("canaries", "references", "word"),
    [
        ("id,loss\na,nan\n", "loss\n1\n", "NaN"),
        ("id,loss\n", "loss\n1\n", "no rows"),
        ("id,loss\na,1\n", "loss\n", "no rows"),
        ("id,score\na,1\n", "loss\n1\n", "'loss'"),
        ("id,loss\na,1\na,2\n", "loss\n1\n", "'a'"),
        ("id,loss,copies\na,1,0\n", "loss\n1\n", "copies"),
        ("id,loss\na,x\n", "loss\n1\n", "'x'"),
    ],
)
def test_bad_files(tmp_path, capsys, canaries, references, word):
    (tmp_path / "c.csv").write_text(canaries)
    (tmp_path / "r.csv").write_text(references)
    with pytest.raises(SystemExit) as caught:
        run(["exposure", str(tmp_path / "c.csv"), "--references", str(tmp_path / "r.csv"), "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 3 and out == "" and err.count("\n") == 1 and word in err
