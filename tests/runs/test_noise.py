"""The configuration's noise reaches plan, run and certificate; a large δ and an empty public part are said at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from dpaudit import PrivacyWarning
from dpaudit.cli import main
from dpaudit.cli import run as command_line
from dpaudit.runs.config import parse_config
from dpaudit.runs.evidence import mechanism
from dpaudit.runs.prepare import make_plans, planned_ledger, public_size
from tests.runs.run_helpers import run_cli, small_config, write_toml


@pytest.mark.parametrize("method", ["dp-adam", "dp-zoso"])
@pytest.mark.parametrize("secure", [None, False, True])
def test_secure_noise_is_a_key_of_the_configuration(secure: bool | None, method: str) -> None:
    value = small_config(privacy__secure_noise=secure, privacy__method=method)
    config = parse_config({**value, "zeroth_order": {"stages": 2}}, "c.toml")
    plans = make_plans(config, public_size(config))
    assert {plan.secure_noise for plan in plans} == {bool(secure)}
    stated = mechanism(config, planned_ledger(plans))
    assert ("the operating system's cryptographic generator, for every bit" in stated["noise_generator"]) is bool(
        secure
    )
    assert stated["noise_support_sigma"] > 8.5 and stated["noise_source"] and stated["noise_not_proven"]


def test_a_large_delta_is_warned_of_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpaudit.runs import prepare

    def stop(*_: Any) -> None:
        raise RuntimeError("far enough")

    monkeypatch.setattr(prepare, "make_plans", stop)
    path = write_toml(tmp_path / "c.toml", small_config(claim__delta=0.05))
    with pytest.warns(PrivacyWarning, match="delta=0.05 is not below 1/public_size=1/72"), pytest.raises(RuntimeError):
        run_cli("train", path, "--out", tmp_path / "run")
    assert not list((tmp_path / "run" / "release").glob("*"))


def test_the_command_line_prints_a_warning_as_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(main, "main", lambda **_: warnings.warn("delta is large.", PrivacyWarning, stacklevel=1))
    with pytest.raises(SystemExit) as stopped:
        command_line([])
    printed = capsys.readouterr()
    assert stopped.value.code == 0 and printed.out == "" and printed.err == "dpaudit: warning: delta is large.\n"


@pytest.mark.parametrize("fraction", [None, 0.0, 1e-9])
@pytest.mark.parametrize("command", ["train", "certify"])
def test_a_run_without_public_records_is_refused_in_one_sentence_and_writes_no_plan(
    tmp_path: Path, command: str, fraction: float | None
) -> None:
    value = small_config(data__heldout=None, data__heldout_fraction=fraction)
    outcome = run_cli(command, write_toml(tmp_path / "c.toml", value), "--out", tmp_path / "run")
    assert outcome.code == 64 and "\n" not in outcome.error
    assert outcome.error.startswith("data.heldout is missing and data.heldout_fraction=")
    assert not list((tmp_path / "run").glob("release/*")) and not list((tmp_path / "run").glob("private/[!.]*"))
    value["data"] = small_config()["data"]  # the same folder then takes the mended file
    assert make_plans(parse_config(value, "c.toml"), 72)


def test_a_run_whose_every_record_is_public_is_refused(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one\ntwo\nthree\n")
    value = small_config(data__heldout=None, data__heldout_fraction=1 - 1e-12, data__path="few.txt")
    outcome = run_cli("train", write_toml(tmp_path / "c.toml", value), "--out", tmp_path / "run")
    assert outcome.code == 64 and "makes every record of data.path public" in outcome.error
