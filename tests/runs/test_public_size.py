"""q, σ and the normaliser derive from what was declared and from no count of private records."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dpaudit.runs.config import Config, parse_config, read_config
from dpaudit.runs.control import train_control
from dpaudit.runs.membership import expected_size
from dpaudit.runs.prepare import make_plans, prepare, public_size
from dpaudit.storage.run_folder import RunFolder
from tests.runs.run_helpers import EXAMPLES, small_config


def config(**changes: Any) -> Config:
    return parse_config(small_config(**changes), "c.toml")


def test_the_default_run_keeps_its_numbers() -> None:
    shipped = read_config(EXAMPLES / "certify.toml")
    assert public_size(shipped) == 2500
    (plan,) = make_plans(shipped.model_copy(update={"privacy": shipped.privacy.model_copy(update={"steps": 1})}), 2500)
    assert plan.sampling_probability == 0.08 and plan.normaliser == 200


@pytest.mark.parametrize("name", ["certify", "certify_zo", "encoder", "smollm"])
def test_every_example_declares_what_its_limit_reads(name: str) -> None:
    value = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())
    assert value["privacy"]["public_size"] == value["data"]["limit"]


def test_a_share_put_to_the_coin_is_of_the_declared_size() -> None:
    assert expected_size(config(privacy__public_size=1000, audit__holdout_fraction=0.25)) == 750
    assert public_size(config(privacy__public_size=1000, audit__holdout_fraction=0.25, canaries__copies=2)) == 774


@pytest.mark.parametrize("records", [6, 59, 60, 200])
def test_plans_are_the_same_for_any_number_of_records(tmp_path: Path, records: int) -> None:
    path = tmp_path / "private.txt"
    path.write_text("".join(f"paragraph number {i}\n" for i in range(records)))
    chosen = config(data__path=str(path), data__limit=None)
    prepared = prepare(chosen, tmp_path, RunFolder.create(tmp_path / "run"))
    (plan,) = prepared.plans
    assert len(prepared.private) == records
    assert (plan.public_size, plan.sampling_probability, plan.normaliser) == (72, 8 / 72, 8)


def test_the_control_trains_on_as_many_stand_ins_as_were_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpaudit.trainers

    seen: list[int] = []

    class Seen(Exception):
        pass

    def train(model: Any, records: list[Any], *rest: Any, **options: Any) -> None:
        seen.append(len(records))
        raise Seen

    monkeypatch.setattr(dpaudit.trainers, "train", train)
    monkeypatch.setattr("dpaudit.attacks.flip_coins", lambda count: [1] * count)
    path = tmp_path / "private.txt"
    for records in (50, 51):
        path.write_text("".join(f"paragraph number {i}\n" for i in range(records)))
        chosen = config(data__path=str(path), data__limit=None)
        prepared = prepare(chosen, tmp_path, RunFolder.create(tmp_path / str(records)))
        with pytest.raises(Seen):
            train_control(prepared, tmp_path / "control.parquet", "0" * 64)
    assert seen == [60 + 24, 60 + 24]
