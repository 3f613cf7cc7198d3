"""The commands account, calibrate and compare: their contracts, their errors, their start-up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidValue, Ledger, Relation, Stage
from dpaudit.cli import run
from dpaudit.privacy.stage_text import parse_stage

STAGE = "q=0.01,sigma=1.0,steps=1000"


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    try:
        run(list(arguments))
        found: Any = 0
    except SystemExit as stop:
        found = stop.code or 0
    assert found == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    out, _ = call(capsys, *arguments, "--json")
    value: dict[str, Any] = json.loads(out)
    return value


def test_account_prints_its_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys,
        *("account", "--stage", STAGE, "--delta", "1e-5", "--relation", "add_or_remove_one"),
        *("--accountant", "prv", "--accountant", "gdp-clt"),
    )
    assert found["schema"] == "dpaudit.account/1" and found["relation"] == "add_or_remove_one"
    prv, clt = found["results"]
    assert prv["epsilon_lower"] <= 1.8283 and prv["epsilon_upper"] >= 1.8274 and prv["rigorous"] is True
    assert prv["epsilon_estimate"] is None and prv["seconds"] >= 0
    assert clt["epsilon_lower"] is None and clt["epsilon_upper"] is None and clt["rigorous"] is False
    assert found["defaulted_fields"] == ["sampling"]


def test_what_was_left_out_is_echoed_as_defaulted(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "account", "--stage", STAGE, "--delta", "1e-5")
    assert found["defaulted"] is True and found["defaulted_fields"] == ["relation", "sampling"]
    full = as_json(
        capsys, "account", "--stage", STAGE + ",sampling=poisson", "--delta", "1e-5", "--relation", "zero_out"
    )
    assert "defaulted" not in full


def test_directions_are_one_gaussian_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    four = "q=0.0625,sigma=4,steps=1000,directions=4,clip=per_direction"
    one = "q=0.0625,sigma=2,steps=1000"
    epsilons = [
        as_json(capsys, "account", "--stage", text, "--delta", "1e-5")["results"][0]["epsilon_upper"]
        for text in (four, one)
    ]
    assert epsilons[0] == epsilons[1]


def test_no_noise_is_infinite_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "account", "--stage", "q=0.1,sigma=0,steps=3", "--delta", "1e-5")
    assert found["results"][0]["epsilon_upper"] == "inf"
    assert "adds no noise" in found["results"][0]["assumption"]


def test_ledgers_are_read_in_every_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stage = Stage(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, sampling="poisson")  # type: ignore[arg-type]
    ledger = Ledger(stages=(stage,), relation=Relation.ADD_OR_REMOVE_ONE)
    plain, history = tmp_path / "ledger.json", tmp_path / "history.json"
    plain.write_text(json.dumps(ledger.to_dict()))
    history.write_text(json.dumps({"history": [[1.0, 0.01, 1000]], "mechanism": "rdp"}))
    first = as_json(capsys, "account", "--ledger", str(plain), "--delta", "1e-5")
    second = as_json(capsys, "account", "--ledger", str(history), "--delta", "1e-5")
    assert "defaulted" not in first and second["defaulted"] is True
    assert first["results"][0]["epsilon_upper"] == second["results"][0]["epsilon_upper"]
    zero_out = as_json(capsys, "account", "--ledger", str(plain), "--delta", "1e-5", "--relation", "zero_out")
    assert zero_out["relation"] == "zero_out"


def test_a_run_ledger_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from dpaudit.storage.journal import DiskJournal

    stage = Stage(sampling_probability=0.5, noise_multiplier=4.0, steps=0, sampling="poisson")  # type: ignore[arg-type]
    path = tmp_path / "release" / "ledger.jsonl"
    path.parent.mkdir()
    journal = DiskJournal(
        path, relation="add_or_remove_one", unit="record", max_records_per_unit=1, audit_plan_sha256="0" * 64
    )
    journal.begin(stage)
    for _ in range(3):
        journal.count()
    journal.seal("end")
    found = as_json(capsys, "account", "--ledger", str(tmp_path), "--delta", "1e-5")
    assert found["stages"][0]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stage", "q=1.5,sigma=1,steps=10", "--delta", "1e-5"), "sampling_probability=1.5"),
        (("--stage", "q=0.5,sigma=-1,steps=10", "--delta", "1e-5"), "noise_multiplier=-1"),
        (("--stage", "q=0.5,sigma=1,steps=-10", "--delta", "1e-5"), "steps=-10"),
        (("--stage", "q=0.5,sigma=1", "--delta", "1e-5"), "lacks steps"),
        (("--stage", "q=0.5,sigma=1,steps=ten", "--delta", "1e-5"), "steps='ten'"),
        (("--stage", "q=0.5,noise=1,steps=10", "--delta", "1e-5"), "key 'noise'"),
        (("--stage", STAGE, "--delta", "0"), "delta=0"),
        (("--stage", STAGE, "--delta", "1e-5", "--relation", "swap"), "relation='swap'"),
        (("--delta", "1e-5"), "--stage"),
        (("--stage", STAGE), "--delta"),
    ],
)
def test_bad_input_is_one_sentence_and_64(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    out, err = call(capsys, "account", *arguments, code=64)
    assert out == "" and words in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_calibrate_prints_its_contract_and_meets_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys,
        *("calibrate", "--epsilon", "3", "--delta", "1e-5", "--sampling-probability", "0.0152", "--steps", "1320"),
    )
    assert found["schema"] == "dpaudit.calibrate/1"
    assert 2.99 < found["epsilon_upper"] <= 3.0
    again = as_json(
        capsys, "account", "--delta", "1e-5", "--stage", f"q=0.0152,sigma={found['noise_multiplier']!r},steps=1320"
    )
    assert again["results"][0]["epsilon_upper"] == found["epsilon_upper"]


def test_calibrate_finds_steps_and_sampling_too(capsys: pytest.CaptureFixture[str]) -> None:
    base = ("calibrate", "--epsilon", "2", "--delta", "1e-5", "--noise-multiplier", "1")
    steps = as_json(capsys, *base, "--sampling-probability", "0.01")
    q = as_json(capsys, *base, "--steps", "1000")
    assert steps["steps"] > 100 and steps["epsilon_upper"] <= 2
    assert 0 < q["sampling_probability"] < 0.1 and q["epsilon_upper"] <= 2
    call(capsys, *base, code=64)


def test_compare_prints_remarks_and_writes_its_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points, page = tmp_path / "points.csv", tmp_path / "page.html"
    points.write_text("fpr,tpr\n0.01,0.05\n")
    options = ("compare", "--stage", "q=0.1,sigma=3,steps=40", "--delta", "1e-5", "--accountant", "prv")
    points.with_name("semi.csv").write_text("fpr;tpr\n0,01;0,05\n")
    refused = call(capsys, *options, "--points", str(points.with_name("semi.csv")), code=64)[1]
    assert "separates its columns with semicolons" in refused
    found = as_json(capsys, *options, "--accountant", "gdp-clt", "--points", str(points), "--out", str(page))
    assert found["schema"] == "dpaudit.compare/1"
    assert [row["accountant"] for row in found["results"]] == ["prv", "gdp-clt"]
    assert all(row["remark"] for row in found["results"])
    assert "<html" in page.read_text(encoding="utf-8").lower()
    points.write_text("a,b\n1,2\n")
    call(capsys, *options, "--points", str(points), code=64)


def test_text_output_names_every_accountant(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = call(capsys, "account", "--stage", STAGE, "--delta", "1e-5")
    assert "relation, sampling by default" in out and "prv" in out


def test_stage_text_refuses_what_is_given_twice() -> None:
    with pytest.raises(InvalidValue, match="twice"):
        parse_stage("q=0.1,q=0.2,sigma=1,steps=1")


def test_prv_starts_without_heavy_imports() -> None:
    code = (
        "import sys\nfrom dpaudit.cli import run\n"
        f"try:\n    run(['account', '--stage', '{STAGE}', '--delta', '1e-5', '--json'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('dp_accounting', 'scipy.stats', 'scipy.optimize', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("stage", [STAGE, "q=1,sigma=3,steps=1,sampling=none", "q=0.02,sigma=2,steps=7"])
@pytest.mark.parametrize("command", ["account", "compare"])
def test_printed_bounds_lie_on_their_side_of_the_value(
    capsys: pytest.CaptureFixture[str], command: str, stage: str
) -> None:
    arguments = [command, "--stage", stage, "--delta", "1e-5"]
    for name in ("prv", "rdp", "gdp-clt") if "none" not in stage else ("prv", "rdp"):
        arguments += ["--accountant", name]
    values = as_json(capsys, *arguments)["results"]
    printed = {line.split()[0]: re.split(r"  +", line) for line in call(capsys, *arguments)[0].splitlines()}
    for value in values:
        _, lower, upper, *_ = printed[value["accountant"]]
        if value["epsilon_upper"] is not None:
            assert float(upper) >= value["epsilon_upper"]
        if value["epsilon_lower"] is not None:
            assert float(lower) <= value["epsilon_lower"]


def test_a_refused_accountant_is_neither_an_estimate_nor_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--stage", STAGE, "--delta", "1e-5", "--relation", "replace_one"]
    out, _ = call(capsys, *arguments, "--accountant", "prv", "--accountant", "rdp")
    row = next(line for line in out.splitlines() if line.startswith("rdp"))
    assert re.split(r"  +", row)[1:5] == ["—", "—", "—", "refused"]
    assert "replace_one" in row


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["--sampling-probability", "0.0152", "--steps", "1320"], "noise_multiplier"),
        (["--sampling-probability", "0.02", "--noise-multiplier", "1.3"], "steps"),
        (["--steps", "700", "--noise-multiplier", "1.1"], "sampling_probability"),
    ],
)
def test_the_printed_calibration_meets_the_target(
    capsys: pytest.CaptureFixture[str], given: list[str], name: str
) -> None:
    arguments = ["calibrate", "--epsilon", "3", "--delta", "1e-5", *given]
    found = as_json(capsys, *arguments)
    words = call(capsys, *arguments)[0].split()
    printed, bound = float(words[2]), float(words[6])
    assert (printed >= found[name]) if name == "noise_multiplier" else (printed <= found[name])
    assert found["epsilon_upper"] <= bound <= 3


def test_a_refusal_is_a_row_and_the_exit_code_is_64_only_where_nobody_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("account", "compare"):
        asked = (command, "--stage", STAGE, "--delta", "1e-11", "--accountant", "pld", "--accountant", "prv")
        found = as_json(capsys, *asked)
        pld, prv = found["results"]
        assert pld["epsilon_upper"] is None and pld["rigorous"] is False and "refuses delta=1e-11" in pld["refused"]
        assert prv["epsilon_upper"] > 0 and prv["refused"] is None and set(pld) == set(prv)
        out, _ = call(capsys, *asked)
        assert "refused" in out and "use accountant 'prv'" in out and "estimates" not in out
        out, err = call(capsys, command, "--stage", STAGE, "--delta", "1e-11", "--accountant", "pld", code=64)
        assert out == "" and "refuses delta=1e-11" in err


@pytest.mark.parametrize(("text", "q"), [("256/60000", 256 / 60000), ("1/100", 0.01), (" 1 / 4 ", 0.25)])
def test_q_may_be_a_fraction(capsys: pytest.CaptureFixture[str], text: str, q: float) -> None:
    assert parse_stage(f"q={text},sigma=1,steps=10")[0].sampling_probability == q
    found = as_json(
        capsys, "calibrate", "--epsilon", "3", "--delta", "1e-5", "--sampling-probability", text, "--steps", "5"
    )
    assert found["stage"]["sampling_probability"] == q


@pytest.mark.parametrize("text", ["1/0", "1/", "/3", "1/2/3", "a/b", "1%"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="q="):
        parse_stage(f"q={text},sigma=1,steps=10")


@pytest.mark.parametrize("command", ["account", "compare"])
def test_help_names_every_stage_key(capsys: pytest.CaptureFixture[str], command: str) -> None:
    from dpaudit.privacy.stage_text import KEYS

    out, _ = call(capsys, command, "-h")
    words = " ".join(out.split())
    assert all(key in words for key in KEYS) and "q=256/60000" in words


@pytest.mark.parametrize(
    "command", ["account", *(pytest.param(c, marks=pytest.mark.slow) for c in ("compare", "calibrate"))]
)
def test_standard_error_is_quiet_at_orders_that_do_not_converge(command: str) -> None:
    options = {
        "account": ["--stage", "q=0.2,sigma=1,steps=10", "--accountant", "rdp"],
        "compare": ["--stage", "q=0.2,sigma=1,steps=10", "--accountant", "rdp"],
        "calibrate": ["--epsilon", "8", "--sampling-probability", "0.2", "--steps", "10", "--accountant", "rdp"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "dpaudit", command, *options, "--delta", "1e-5"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld", "gdp"])
@pytest.mark.parametrize("steps", [2**53 + 1, 2**63 - 1])
def test_steps_that_no_double_counts_are_one_sentence(
    accountant: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["account", "--stage", f"q=0.01,sigma=1,steps={steps}", "--delta", "1e-5", "--accountant", accountant]
    with pytest.raises(SystemExit) as ended:
        run(asked)
    assert ended.value.code == 64
    assert f"steps={steps} must be <= 9007199254740992" in capsys.readouterr().err
