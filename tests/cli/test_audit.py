"""``dpaudit audit`` from files: contract, exit codes, joins and bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from dpaudit.cli import run
from dpaudit.storage.commitment import commitment, manifest


def write(path, rows, header="id,member,score"):
    path.write_text("\n".join([header, *(",".join(str(c) for c in row) for row in rows)]) + "\n")
    return path


def rows_of(m=1000, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    member = rng.integers(0, 2, m)
    scores = rng.normal(size=m) + shift * member
    return [(f"c{i}", int(b), float(s)) for i, (b, s) in enumerate(zip(member, scores))]


def audit(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(["audit", *map(str, arguments)])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def good(capsys, *arguments):
    code, out, err = audit(capsys, *arguments, "--claimed-epsilon", "3", "--delta", "1e-5", "--json")
    assert err == "" and out.count("\n") == 1
    return code, json.loads(out)


def bad(capsys, *arguments):
    code, out, err = audit(capsys, *arguments)
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return code, err


def test_contract(tmp_path, capsys):
    code, value = good(capsys, write(tmp_path / "s.csv", rows_of()))
    assert code == 2 and value["schema"] == "dpaudit.audit/1" and value["verdict"] == "inconclusive"
    assert set(value["primary"]) >= {"estimator", "epsilon_lower", "confidence", "epsilon_lower_at_verdict"}
    assert value["primary"]["confidence"] == 0.95
    assert value["power"] is None and 0 <= value["power_if_attack_were_optimal"] <= 1 and value["ceiling"] > 3.3
    design = value["design"]
    assert set(design) >= {"kind", "coins", "relation", "m", "guesses_in", "guesses_out", "k_rule", "ties"}
    assert (design["kind"], design["coins"], design["relation"]) == ("one_run", "asserted", "add_or_remove_one")
    assert design["m"] == 1000 and design["ties"] == 0 and design["defaulted"] is True
    assert 0.5 < value["auc"]["value"] < 1 and isinstance(value["secondary"], list)


def test_violated_exits_with_one(tmp_path, capsys):
    code, value = good(capsys, write(tmp_path / "s.csv", rows_of(shift=12)))
    assert code == 1 and value["verdict"] == "violated"


def test_consistent_exits_with_zero(tmp_path, capsys):
    scores = write(tmp_path / "s.csv", rows_of(shift=0.7))
    one = write(tmp_path / "one.csv", rows_of(shift=12, seed=1))
    code, value = good(capsys, scores, "--control", one, "--fault", "no noise")
    assert code == 2 and value["power"] > 0.9 and value["power_lower"] < 0.8
    rows = [
        (f"r{run}-{i}", coin, score, f"r{run}") for run in range(20) for i, coin, score in rows_of(shift=40, seed=run)
    ]
    control = write(tmp_path / "c.csv", rows, header="id,member,score,run")
    code, value = good(capsys, scores, "--control", control, "--fault", "no noise")
    assert code == 0 and value["verdict"] == "consistent" and value["power_lower"] > 0.8
    assert "no noise" in value["power_source"]


def test_unfair_coins_are_an_invalid_audit(tmp_path, capsys):
    rows = [(f"c{i}", int(i < 300), i * 0.1) for i in range(1000)]
    code, value = good(capsys, write(tmp_path / "s.csv", rows))
    assert code == 3 and value["verdict"] == "invalid_audit" and value["primary"]["epsilon_lower"] is None
    code, value = good(capsys, tmp_path / "s.csv", "--coins", "none")
    assert code == 2 and value["auc"]["value"] == 0.0 and value["design"]["coins"] == "none"


def test_accounting_mismatch(tmp_path, capsys):
    code, value = good(capsys, write(tmp_path / "s.csv", rows_of()), "--accounted-upper", "3.5")
    assert code == 1 and value["verdict"] == "accounting_mismatch"


def test_parquet_gives_the_same(tmp_path, capsys):
    import pandas as pd

    rows = rows_of()
    pd.DataFrame(rows, columns=["id", "member", "score"]).to_parquet(tmp_path / "s.parquet")
    assert good(capsys, tmp_path / "s.parquet") == good(capsys, write(tmp_path / "s.csv", rows))


def test_manifest_verifies_the_coins(tmp_path, capsys):
    rows, nonce = rows_of(), bytes(range(32))
    record = manifest([r[0] for r in rows], [r[1] for r in rows], 1)
    digest = commitment(nonce, record)
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"manifest": record, "nonce": nonce.hex(), "commitment": digest}))
    scores = write(tmp_path / "s.csv", [(i, s) for i, _, s in rows], "id,score")
    code, value = good(capsys, scores, "--manifest", path)
    assert code == 2 and value["design"]["coins"] == "verified"
    path.write_text(json.dumps(record))
    assert good(capsys, scores, "--manifest", path)[1]["design"]["coins"] == "asserted"
    path.write_text(json.dumps({"manifest": record, "nonce": nonce.hex()}))
    assert good(capsys, scores, "--manifest", path, "--commitment", digest)[1]["design"]["coins"] == "verified"
    claim = ["--claimed-epsilon", "3", "--delta", "1e-5", "--manifest", path]
    code, err = bad(capsys, scores, *claim, "--commitment", "0" * 64)
    assert code == 3 and "commitment" in err
    code, err = bad(capsys, write(tmp_path / "lost.csv", [(i, s) for i, _, s in rows[1:]], "id,score"), *claim)
    assert code == 3 and "'c0'" in err
    extra = [*((i, s) for i, _, s in rows), ("stranger", 0.5)]
    code, err = bad(capsys, write(tmp_path / "extra.csv", extra, "id,score"), *claim)
    assert code == 3 and "'stranger'" in err
    flipped = [(i, 1 - b, s) for i, b, s in rows[:1]] + rows[1:]
    code, err = bad(capsys, write(tmp_path / "flip.csv", flipped), *claim)
    assert code == 3 and "'c0'" in err


def test_plan_fixes_the_design(tmp_path, capsys):
    from dpaudit.auditing import design

    plan = design(1000, 3.0, 1e-5, relation="zero_out", unit="user", guesses=200)
    path = tmp_path / "audit_plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    scores = write(tmp_path / "s.csv", rows_of())
    _, value = good(capsys, scores, "--plan", path)
    assert value["design"]["guesses_in"] == 200 and value["design"]["relation"] == "zero_out"
    code, err = bad(capsys, scores, "--plan", path, "--claimed-epsilon", "4", "--delta", "1e-5")
    assert code == 64 and "plan" in err


def test_replace_one_needs_pairs(tmp_path, capsys):
    rows = rows_of()
    claim = ["--claimed-epsilon", "3", "--delta", "1e-5", "--relation", "replace_one"]
    code, err = bad(capsys, write(tmp_path / "s.csv", rows), *claim)
    assert code == 64 and "pair" in err
    rng = np.random.default_rng(5)
    paired = []
    for p in range(1000):
        first = int(rng.integers(0, 2))
        for which, coin in ((0, first), (1, 1 - first)):
            paired.append((f"p{p}-{which}", coin, rng.normal() + 12 * coin, f"p{p}"))
    code, out, _ = audit(capsys, write(tmp_path / "p.csv", paired, "id,member,score,pair"), *claim, "--json")
    value = json.loads(out)
    assert code == 1 and value["design"]["m"] == 1000 and value["design"]["relation"] == "replace_one"


def test_many_runs_needs_one_canary_per_run(tmp_path, capsys):
    rows = [(*r, f"run{i}") for i, r in enumerate(rows_of(shift=12))]
    path = write(tmp_path / "s.csv", rows, "id,member,score,run")
    code, value = good(capsys, path, "--design", "many_runs")
    assert code == 1 and value["primary"]["estimator"] == "clopper_pearson_split"
    claim = ["--claimed-epsilon", "3", "--delta", "1e-5"]
    assert bad(capsys, path, *claim)[0] == 64
    path = write(tmp_path / "t.csv", [(*r, "run0") for r in rows_of()], "id,member,score,run")
    assert bad(capsys, path, *claim, "--design", "many_runs")[0] == 64


def test_copies_need_the_group_claim(tmp_path, capsys):
    path = write(tmp_path / "s.csv", [(*r, 4) for r in rows_of(shift=12)], "id,member,score,copies")
    code, value = good(capsys, path)
    assert code == 2 and value["claim"]["tested_epsilon"] is None
    code, value = good(capsys, path, "--group-claim", "2.5")
    assert code == 1 and value["claim"]["tested"] == "group (epsilon, delta)"
    mixed = write(tmp_path / "t.csv", [(*r, 1 + i % 2) for i, r in enumerate(rows_of())], "id,member,score,copies")
    code, err = bad(capsys, mixed, "--claimed-epsilon", "3", "--delta", "1e-5")
    assert code == 64 and "copies" in err


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("id,member,score\na,1,nan\nb,0,1\n", 3, "NaN"),
        ("id,member,score\na,1,0.5\na,0,1\n", 3, "'a'"),
        ("id,member,score\na,1,0.5\nb,1,1\n", 3, "one class"),
        ("id,member,score\na,1,1\nb,0,1\n", 3, "constant"),
        ("id,member,score\na,1,x\nb,0,1\n", 3, "'x'"),
        ("id,member,score\na,2,0.5\nb,0,1\n", 3, "0 or 1"),
        ("id,member,score\na,,0.5\nb,0,1\n", 3, "member"),
        ("id,member,score\n", 3, "no rows"),
        ("", 3, "header"),
        ("id,score\na,1\n", 3, "'member'"),
        ("id,member,score\na,1\n", 3, "cells"),
        ("id,member,score\na,1,0.5\n", 3, "1"),
        ("id,member,score,attack\na,1,0.5,loss\nb,0,1,zlib\n", 64, "--attack"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, capsys, text, code, word):
    path = tmp_path / "s.csv"
    path.write_text(text)
    got, err = bad(capsys, path, "--claimed-epsilon", "3", "--delta", "1e-5", "--json")
    assert got == code and word in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--claimed-epsilon", "-1", "--delta", "1e-5"],
        ["--claimed-epsilon", "nan", "--delta", "1e-5"],
        ["--claimed-epsilon", "3", "--delta", "0"],
        ["--claimed-epsilon", "3"],
        ["--claimed-epsilon", "3", "--delta", "1e-5", "--guesses", "600"],
        ["--claimed-epsilon", "3", "--delta", "1e-5", "--alpha", "1.5"],
        ["--claimed-epsilon", "3", "--delta", "1e-5", "--relation", "sideways"],
    ],
)
def test_bad_usage_is_64(tmp_path, capsys, arguments):
    code, _, err = audit(capsys, write(tmp_path / "s.csv", rows_of()), *arguments)
    assert code == 64 and "Traceback" not in err


def test_help_has_an_example_and_is_quick():
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from dpaudit.cli import run\n"
            "try: run(['audit', '-h'])\nfinally: print('scipy' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Example:" in out and out.rstrip().endswith("False")


def test_secret_canary_file_opens_the_commitment(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, nonce = rows_of(), bytes(range(32))
    ids, coins = [r[0] for r in rows], [r[1] for r in rows]
    secret = pa.table({"id": ids, "coin": pa.array(coins, pa.int8()), "nonce": [nonce] * 1000, "copies": [1] * 1000})
    pq.write_table(secret, tmp_path / "canaries.secret.parquet")
    digest = commitment(nonce, manifest(ids, coins, 1))
    scores = write(tmp_path / "s.csv", [(i, s) for i, _, s in rows], "id,score")
    more = ["--manifest", tmp_path / "canaries.secret.parquet", "--commitment", digest]
    assert good(capsys, scores, *more)[1]["design"]["coins"] == "verified"


def test_ledger_gives_accounted_group_and_declared_claims(tmp_path, capsys):
    from dpaudit import Stage
    from dpaudit.accounting.calibrate import stage_ledger

    stage = Stage(sampling="poisson", sampling_probability=0.0128, noise_multiplier=0.8025, steps=1000)
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps(stage_ledger(stage, "add_or_remove_one").to_dict()))
    scores = write(tmp_path / "s.csv", rows_of(shift=1.56, seed=2))
    claim = [scores, "--ledger", ledger, "--delta", "1e-5", "--json"]
    code, out, _ = audit(capsys, *claim, "--claimed-epsilon", "4.1")
    value = json.loads(out)
    assert value["claim"]["accounted_upper"] == pytest.approx(4.0, abs=0.02) and value["claim"]["tested"] == "ledger"
    assert value["design"]["defaulted"] is False
    declared = [f for f in value["findings"] if f["name"] == "declared_mechanism"]
    assert len(declared) == 1 and declared[0]["p_value"] < 0.2
    code, out, _ = audit(capsys, *claim, "--claimed-epsilon", "3", "--copies", "2")
    value = json.loads(out)
    assert code == 1 and value["verdict"] == "accounting_mismatch" and 4.1 < value["claim"]["tested_epsilon"] < 34
    code, out, err = audit(capsys, *claim, "--claimed-epsilon", "4.1", "--relation", "zero_out")
    assert code == 64 and "ledger" in err


@pytest.mark.parametrize("copies", [0, -1])
def test_copies_below_one_are_refused_and_not_taken_as_left_out(tmp_path, capsys, copies):
    path = write(tmp_path / "s.csv", rows_of(shift=3))
    options = ("--claimed-epsilon", "3", "--delta", "1e-5")
    code, err = bad(capsys, path, *options, "--copies", copies)
    assert code == 64 and f"copies={copies}" in err and "must be an integer >= 1" in err


def test_copies_that_contradict_each_other_are_refused(tmp_path, capsys):
    """With 8 copies called one, a correct run would be convicted."""
    rows = [(*row, 8) for row in rows_of(shift=3)]
    path = write(tmp_path / "s.csv", rows, "id,member,score,copies")
    options = ("--claimed-epsilon", "3", "--delta", "1e-5")
    code, err = bad(capsys, path, *options, "--copies", 1)
    assert code == 64 and "--copies says 1, column copies says 8" in err
    assert good(capsys, path, "--copies", 8)[0] == 2
    ids, coins = [r[0] for r in rows], [r[1] for r in rows]
    (tmp_path / "m.json").write_text(json.dumps({"manifest": manifest(ids, coins, 4)}))
    code, err = bad(capsys, path, *options, "--manifest", tmp_path / "m.json")
    assert code == 64 and "column copies says 8, the manifest says 4" in err


def test_reversed_scores_are_named_on_the_terminal(tmp_path, capsys):
    path = write(tmp_path / "s.csv", [(i, m, -s) for i, m, s in rows_of(shift=3)])
    code, out, _ = audit(capsys, path, "--claimed-epsilon", "3", "--delta", "1e-5")
    assert code == 2 and out.count("look reversed") == 2 and "live attack" not in out


def test_a_control_is_another_run(tmp_path, capsys):
    path = write(tmp_path / "s.csv", rows_of(shift=3))
    code, err = bad(capsys, path, "--claimed-epsilon", "3", "--delta", "1e-5", "--control", path)
    assert code == 64 and "the audited scores themselves" in err


def test_an_infinite_claim_cannot_be_audited(tmp_path, capsys):
    code, err = bad(capsys, write(tmp_path / "s.csv", rows_of()), "--claimed-epsilon", "inf", "--delta", "1e-5")
    assert code == 64 and "claimed_epsilon=inf must be finite" in err


def test_a_control_of_another_plan_is_refused(tmp_path, capsys):
    from dpaudit.auditing import design
    from dpaudit.storage.commitment import canonical_json, sha256_file

    plan = tmp_path / "audit_plan.json"
    made = design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record")
    plan.write_bytes(canonical_json(made.to_dict()) + b"\n")
    scores = write(tmp_path / "s.csv", rows_of())

    def control(digest):
        rows = [(f"k{i}", coin, score, digest) for i, coin, score in rows_of(shift=12, seed=1)]
        return write(tmp_path / "c.csv", rows, header="id,member,score,plan_sha256")

    code, _ = good(capsys, scores, "--plan", plan, "--control", control(sha256_file(plan)))
    assert code == 2
    code, err = bad(
        capsys, scores, "--plan", plan, "--control", control("0" * 64), "--claimed-epsilon", "3", "--delta", "1e-5"
    )
    assert code == 3 and "another audit plan" in err
