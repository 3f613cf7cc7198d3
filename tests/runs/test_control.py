"""The positive control's file says what it belongs to, and a control of anything else is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dpaudit.runs.control as control
from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import AuditPlan, Scores, design
from dpaudit.runs.control import binding_of_run, read_control, too_few_controls, train_control
from dpaudit.runs.prepare import Prepared
from dpaudit.storage.run_folder import RunFolder, write_json
from tests.runs.run_helpers import run_cli, small_config, write_toml

CONFIG = "c" * 64


def plan_for(claim: float = 1.0, **more: Any) -> AuditPlan:
    parameters = {"generator_digest": "9" * 64}
    return design(
        200,
        claim,
        1e-5,
        relation="add_or_remove_one",
        unit="record",
        attack="loss",
        attack_parameters=parameters,
        **more,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "run")
    write_json(made.audit_plan, plan_for().to_dict())
    return made


@pytest.fixture
def trained(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A folder with two controls, made without a model."""
    made: list[int] = []

    def one(prepared: Any) -> Any:
        assert prepared.private is prepared.secret is prepared.in_run_secret is prepared.split is None
        made.append(len(made))
        rng = np.random.default_rng(len(made))
        coins = rng.integers(0, 2, 200)
        ids = tuple(f"control{len(made)}-{i}" for i in range(200))
        return Scores(ids, rng.normal(size=200) + 20 * coins, coins)

    monkeypatch.setattr(control, "_one_control", one)
    some: Any = object()
    prepared = Prepared(
        config=some, base=some, folder=folder, plans=(), audit_plan=some, secret=some, private=some, public=some,
        tokenizer=some, split=some, in_run_secret=some,
    )  # fmt: skip
    train_control(prepared, folder.control_scores, CONFIG, runs=2)
    return folder


def read(folder: RunFolder, config: str = CONFIG, audited: tuple[str, ...] = ()) -> Any:
    return read_control(folder.control_scores, binding_of_run(folder, config), audited)


def test_a_control_is_written_with_what_binds_it_and_read_back(trained: RunFolder) -> None:
    found = read(trained)
    assert len(found.scores) == 400 and set(found.runs) == {"0", "1"} and "no noise" in found.fault
    frame = pd.read_parquet(trained.control_scores)
    assert set(frame) == {
        "id",
        "score",
        "member",
        "run",
        "fault",
        "attack",
        "config_sha256",
        "plan_sha256",
        "canaries_sha256",
    }
    assert frame["canaries_sha256"].unique().tolist() == ["9" * 64]


def test_no_control_is_none(folder: RunFolder) -> None:
    assert read(folder) is None


def test_a_control_from_elsewhere_is_refused(folder: RunFolder) -> None:
    """Any file of that name used to be taken, and described as a control of this configuration."""
    member = np.arange(1000) % 2
    frame = pd.DataFrame({"id": [f"other{i}" for i in range(1000)], "score": member + 0.0, "member": member})
    frame.to_parquet(folder.control_scores)
    with pytest.raises(InvalidEvidence, match=r"names neither the configuration.*remove it"):
        read(folder)


def test_a_control_of_another_configuration_plan_or_canaries_is_refused(trained: RunFolder) -> None:
    with pytest.raises(InvalidEvidence, match="config_sha256"):
        read(trained, "d" * 64)
    with pytest.raises(InvalidEvidence, match="1 of the audited canaries"):
        read(trained, audited=("control1-0",))
    for plan, word in (
        (plan_for(coin_commitment="a" * 64), "plan_sha256"),
        (plan_for(guesses=20), "plan_sha256"),
    ):
        write_json(trained.audit_plan, plan.to_dict())
        with pytest.raises(InvalidEvidence, match=word):
            read(trained)


def test_a_file_that_names_two_runs_is_refused(trained: RunFolder) -> None:
    frame = pd.read_parquet(trained.control_scores)
    mixed = frame.assign(plan_sha256=["0" * 64] * 100 + frame["plan_sha256"].astype(str).tolist()[100:])
    mixed.to_parquet(trained.control_scores)
    with pytest.raises(InvalidEvidence, match="2 values of plan_sha256"):
        read(trained)


def test_too_few_controls_are_told_beforehand(trained: RunFolder) -> None:
    plan = plan_for()
    assert plan.control_canaries is not None and too_few_controls(plan, 1) is None
    strict = design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record", errors=0)
    assert "--controls 17" in (too_few_controls(strict, 1) or "") and too_few_controls(strict, 17) is None
    with pytest.raises(InvalidValue, match="controls=0"):
        train_control(SimpleNamespace(folder=trained), trained.control_scores, CONFIG, runs=0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_control_learns_at_the_rates_of_the_run_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpaudit.trainers

    train, seen = dpaudit.trainers.train, []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append((options["optimizer"], options["physical_batch_size"]))
        return train(*arguments, **options)

    monkeypatch.setattr(dpaudit.trainers, "train", watched)
    config = small_config(optimizer__schedule="cosine", optimizer__warmup_steps=2, run__checkpoints=1)
    assert run_cli("certify", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run", "--control").code == 2
    run, of_control = seen[0], seen[-1]
    assert len(seen) > 1 and of_control == run and of_control[0].schedule == "cosine"
