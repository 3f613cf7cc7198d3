"""The in-run audit through a run: committed before the first step, kept over a stop, opened at the end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit import InvalidEvidence, PrivacyRefusal
from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries
from dpaudit.auditing import AuditPlan
from dpaudit.auditing.in_run.evidence import InRunEvidence
from dpaudit.auditing.roc import rank_sum_p_value
from dpaudit.runs.config import parse_config
from dpaudit.runs.in_run.planning import canaries_and_reason, in_run_of, read_fixed
from dpaudit.runs.in_run.secret import read_secret
from dpaudit.runs.prepare import make_plans, public_size
from dpaudit.runs.run import begin, train_phase
from dpaudit.storage.run_folder import RunFolder, read_json
from tests.runs.run_helpers import run_cli, small_config, write_toml


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("in_run")
    done = run_cli("train", write_toml(folder / "c.toml", small_config()), "--out", folder / "run")
    assert done.code == 0, done.error
    return RunFolder(folder / "run")


def plan_of(folder: RunFolder) -> Any:
    return in_run_of(AuditPlan.from_dict(read_json(folder.audit_plan)))


def test_the_secret_opens_the_commitment_and_is_kept_private(trained: RunFolder) -> None:
    plan, secret = plan_of(trained), read_secret(trained.in_run_secret)
    assert plan.m == 400 == len(secret.coordinates) and secret.commitment == plan.commitment
    assert secret.dimension == plan.dimension and 0 < int(secret.coins.sum()) < 400
    assert trained.in_run_secret.stat().st_mode & 0o777 == 0o600


def test_the_release_has_every_step_and_no_coin(trained: RunFolder) -> None:
    secret, value = read_secret(trained.in_run_secret), read_json(trained.in_run)
    assert "coins" not in json.dumps(value) and "nonce" not in json.dumps(value)
    evidence = InRunEvidence.from_dict(value, secret.coins)
    assert (evidence.coordinates == secret.coordinates).all()
    assert evidence.energy is not None and len(evidence.energy.step_squares) == 4
    # noise of the declared deviation: the mean square is 1 within six standard deviations, and records add to it
    mean = float(evidence.energy.step_squares.sum()) / (4 * secret.dimension)
    assert 1 - 6 * (2 / (4 * secret.dimension)) ** 0.5 < mean < 1.1


def test_a_changed_secret_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    value = read_json(trained.in_run_secret)
    changed = tmp_path / "private"
    changed.mkdir()
    (changed / "in_run.secret.json").write_text(json.dumps({**value, "nonce": "00" * 32}))
    with pytest.raises(InvalidEvidence, match="does not match the in-run commitment"):
        read_fixed(RunFolder(tmp_path), plan_of(trained))


@pytest.mark.slow
def test_a_stopped_run_keeps_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores after a stop are those of all steps: the state of the observers comes back with the weights."""
    import dpaudit.runs.fit as fitting

    config = parse_config(small_config(), "c.toml")
    job = begin(config, tmp_path, tmp_path / "run")
    write, seen = fitting.CheckpointFile.write, []

    def stop_after_one(self: Any, checkpoint: Any) -> None:
        write(self, checkpoint)
        seen.append(checkpoint)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting.CheckpointFile, "write", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            train_phase(job)
    half = np.asarray(seen[0].observers["canaries"]["scores"])
    train_phase(begin(config, tmp_path, tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    evidence = InRunEvidence.from_dict(read_json(folder.in_run), read_secret(folder.in_run_secret).coins)
    assert evidence.energy is not None and len(evidence.energy.step_squares) == 4
    first = seen[0].observers["recorder"]["step_squares"]
    assert evidence.energy.step_squares[:2].tolist() == first and evidence.energy.lagged[2] == 0
    assert len(half) == 400 and np.abs(evidence.scores - half).max() > 0


def counted(**changes: Any) -> tuple[int, str]:
    config = parse_config(small_config(**changes), "c.toml")
    return canaries_and_reason(config, make_plans(config, public_size(config)), {"w": 50_000})


def test_how_many_there_are_and_why_there_are_none() -> None:
    assert counted(audit__in_run={}) == (5_000, "")
    assert counted(audit__in_run={"canaries": 321}) == (321, "")
    assert counted(audit__in_run={"enabled": False}) == (0, "audit.in_run.enabled is false")
    paired = {"claim__relation": "replace_one", "claim__epsilon": 60.0}
    m, reason = counted(audit__in_run={}, **paired)
    assert m == 0 and "replace_one" in reason
    with pytest.raises(PrivacyRefusal, match=r"audit.in_run cannot be had: .*replace_one.*leave audit.in_run out"):
        counted(audit__in_run={"enabled": True}, **paired)
    with pytest.raises(PrivacyRefusal, match="50001 is more than the 50000 trained numbers"):
        counted(audit__in_run={"canaries": 50_001})


def scalar_scores(m: int, plan: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Scores and coins of m canaries of a run without records, with NumPy's noise."""
    coins, stage = rng.random(m) < 0.5, plan.stage()
    canaries = ScalarInRunCanaries(
        coins, 5, sampling_probability=stage.sampling_probability, noise_multiplier=stage.noise_multiplier,
        releases_per_step=stage.releases_per_step, clip="joint",
    )  # fmt: skip
    for step in range(stage.steps):
        drawn = np.flatnonzero(rng.random(canaries.members) < stage.sampling_probability)
        sums = canaries.differences(step, drawn.tolist(), 1.0).sum(1).numpy()
        noise = stage.noise_multiplier * rng.standard_normal(stage.releases_per_step)
        canaries.observe(step, sums + noise, clipping_norm=1.0, normaliser=1.0)
    return canaries.scores(), coins


def test_zeroth_order_canaries_are_left_out_where_they_could_not_be_alive() -> None:
    """What the rule expects is what simulated runs of either kind show."""
    zeroth = {"stages": 1, "directions": 4, "clip": "joint", "scale": 1e-3}
    value = {**small_config(audit__in_run={}, privacy__method="dp-zoso"), "zeroth_order": zeroth}
    config = parse_config(value, "c.toml")
    first = make_plans(parse_config(small_config(), "c.toml"), 72)[0]
    shared = {"releases_per_step": 4, "clip": "joint", "public_size": 1_600}
    weak = dataclasses.replace(first, expected_batch_size=64, noise_multiplier=0.907, steps=140, **shared)
    strong = dataclasses.replace(first, expected_batch_size=800, noise_multiplier=10.0, steps=200, **shared)
    m, reason = canaries_and_reason(config, [weak], {"scalars": 4})
    assert m == 0 and "164 members and others" in reason and "a live observer takes 6" in reason
    assert canaries_and_reason(config, [strong], {"scalars": 4}) == (1_600, "")
    rng = np.random.default_rng(1)
    assert (
        rank_sum_p_value(*scalar_scores(164, weak, rng)) > 1e-6 >= rank_sum_p_value(*scalar_scores(1_600, strong, rng))
    )


def test_the_numbers_that_are_published_do_not_depend_on_in_run_canaries() -> None:
    with_many, without = (
        parse_config(small_config(audit__in_run=inner, privacy__noise_multiplier=None), "c.toml")
        for inner in ({"canaries": 40_000}, {"enabled": False})
    )
    for config in (with_many, without):
        assert public_size(config) == 72
    assert make_plans(with_many, 72) == make_plans(without, 72)
