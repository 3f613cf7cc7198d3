"""Beacons of a run: explicit in the configuration, fixed before training, scored together with the audit's canaries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpaudit import InvalidValue
from dpaudit.runs.beacons import set_apart
from dpaudit.runs.canary_scores import scores_with_beacons
from dpaudit.runs.config import Config, parse_config
from dpaudit.runs.prepare import public_size
from dpaudit.runs.units import unit_names, units_of_beacon
from tests.runs.run_helpers import small_config, write_toml

BEACONS = {"canaries__beacons": 40, "canaries__beacon_copies": 16}


def configured(**changes: Any) -> Config:
    return parse_config(small_config(**changes), "a.toml")


def test_a_configuration_without_beacons_is_written_as_before() -> None:
    plain = configured().model_dump(mode="json")["canaries"]
    assert set(plain) == {"kind", "count", "copies", "length", "positions"}
    beside = configured(**BEACONS).model_dump(mode="json")["canaries"]
    assert beside == {**plain, "beacons": 40, "beacon_copies": 16}
    assert parse_config(configured(**BEACONS).model_dump(mode="json"), "again") == configured(**BEACONS)


def test_half_of_their_copies_are_in_the_public_size() -> None:
    assert public_size(configured(**BEACONS)) == public_size(configured()) + 40 * 16 // 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"canaries__beacons": 40}, "set both to have beacons"),
        ({"canaries__beacon_copies": 16}, "set both to have beacons"),
        ({**BEACONS, "canaries__beacons": 39}, "greater than or equal to 40"),
        ({**BEACONS, "canaries__beacon_copies": 1}, "greater than or equal to 2"),
        (
            {
                **BEACONS,
                "canaries__kind": "label-substitution",
                "claim__relation": "replace_one",
                "model__task": "sequence-classification",
            },
            "'label-substitution' replaces records",
        ),
        (
            {
                **BEACONS,
                "privacy__sampling_unit": "unit",
                "privacy__records_per_unit": 4,
                "data__unit_column": "author",
            },
            "draws whole units",
        ),
    ],
)
def test_beacons_that_cannot_be_had_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        configured(**changes)


def test_copies_beyond_a_units_bound_are_units_of_their_own() -> None:
    config = configured(**BEACONS, data__unit_column="author", claim__max_records_per_unit=4)
    records: Any = SimpleNamespace(units=("ann", "bob"))
    names = unit_names(config, records, 3, 2)
    assert names is not None and len(names) == 2 + 3 + 2 * 16 and len(set(names)) == 2 + 3 + 2 * 4
    assert units_of_beacon(config) == 4 and units_of_beacon(configured(**BEACONS)) == 16


def canary_set(count: int) -> Any:
    from dpaudit.attacks.canaries.canary import from_rows

    rows = [[i + 1, 2, 3][: 2 + i % 2] for i in range(count)]
    return from_rows([str(i) for i in range(count)], rows, [[1]] * count, kind="random-token", params={})


def test_beacons_are_set_apart_at_random_and_once() -> None:
    chosen = []
    for _ in range(20):
        audited, beacons = set_apart(canary_set(50), 40)
        assert (
            beacons is not None
            and len(audited) == 10
            and sorted(audited.texts + beacons.texts) == sorted(str(i) for i in range(50))
        )
        chosen.append(audited.texts)
    assert len(set(chosen)) > 15
    same, none = set_apart(canary_set(5), 0)
    assert none is None and len(same) == 5


@pytest.mark.parametrize("attack", ["loss", "loss-drop", "loss-residual"])
def test_scores_keep_their_ids_and_beacons_do_not_move_the_audit(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpaudit import attacks
    from dpaudit.runs.canary_scores import canary_scores

    def losses(model: float, canaries: Any) -> np.ndarray:  # of each text its own, and large ones for beacons
        return np.array([model * np.sin(int(t)) + (9 * model if int(t) >= 30 else 0) for t in canaries.texts])

    monkeypatch.setattr(attacks, "canary_losses", losses)
    prepared: Any = SimpleNamespace(
        config=SimpleNamespace(audit=SimpleNamespace(attack=attack), model=SimpleNamespace(task="causal-lm"))
    )
    everyone, rng = canary_set(70), np.random.default_rng(0)
    ids = [f"{i:x}" for i in rng.permutation(1000)[:70]]
    secret = SimpleNamespace(canaries=everyone.take(range(30)), ids=tuple(ids[:30]))
    beacons = SimpleNamespace(canaries=everyone.take(range(30, 70)), ids=tuple(ids[30:]))
    own: Any = canary_scores(prepared, secret.canaries, 1.0, 0.5)  # type: ignore[arg-type]
    audited, theirs = scores_with_beacons(prepared, secret, beacons, 1.0, 0.5)  # type: ignore[arg-type]
    assert np.array_equal(audited, own) and len(theirs) == 40
    if attack == "loss":
        assert np.array_equal(theirs, -losses(1.0, beacons.canaries))


@pytest.mark.slow
def test_a_small_run_shows_its_attack_alive_and_a_shuffled_one_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    import dpaudit
    from dpaudit import attacks
    from dpaudit.auditing import Scores
    from dpaudit.auditing.beacons import beacon_finding
    from dpaudit.runs.encoding import private_records
    from dpaudit.runs.prepare import prepare
    from dpaudit.runs.run import reopen
    from dpaudit.runs.sources import load_model
    from dpaudit.storage.run_folder import read_json

    changes = {
        "privacy__steps": 20,
        "privacy__expected_batch_size": 64,
        "privacy__public_size": 100,
        "data__limit": 100,
    }
    changes |= {"privacy__noise_multiplier": 1.2, "privacy__accountants": ["prv"], "privacy__calibrate_with": "prv"}
    value = small_config(**BEACONS, **changes, optimizer__learning_rate=5e-3, claim__epsilon=8.0)
    told: list[str] = []
    run = dpaudit.certify(write_toml(tmp_path / "a.toml", value), tmp_path / "run", tell=told.append)
    assert any("40 beacons of 16 copies" in note and "groups of 16" in note for note in told)

    body = read_json(run.certificate)["predicate"]
    rows, planned = body["beacons"]["canaries"], body["audit"]["plan"]["beacons"]
    inserted = sum(coin for _, coin, _ in rows)
    assert len(rows) == 40 and planned["group_epsilon"] > 8.0
    assert body["provenance"]["records"]["beacons_inserted"] == inserted
    (finding,) = [f for f in body["audit"]["result"]["findings"] if "beacons" in f["name"]]
    if 11 <= inserted <= 29:  # outside, which one run in 450 is, not even perfect beacons reach the level
        assert finding["name"] == "beacons" and finding["p_value"] <= 1e-6
    report = dpaudit.verify(run.certificate)
    assert report.ok and {s.outcome for s in report.steps if s.name.startswith("beacons")} == {"recomputed and equal"}
    page = run.report.read_text()
    assert "40 beacons of 16 copies" in page and "groups of 16" in page

    job = reopen(tmp_path / "run")
    prepared = prepare(job.config, job.base, job.folder)  # read back, with the coins that training had
    assert prepared.beacons is not None and int(prepared.beacons.coins.sum()) == inserted
    audited = len(prepared.secret.canaries.present(prepared.secret.coins))
    assert len(private_records(prepared)) == len(prepared.private) + audited + 16 * inserted

    trained = AutoModelForCausalLM.from_pretrained(job.folder.model)
    base = load_model(job.config, job.base, classes=None)
    frozen, ids, coins = prepared.audit_plan.beacons, prepared.beacons.ids, prepared.beacons.coins
    assert frozen is not None
    plain, rng = attacks.canary_losses, np.random.default_rng(0)
    for shuffled in (False, True):
        if shuffled:
            monkeypatch.setattr(attacks, "canary_losses", lambda *given: rng.permutation(plain(*given)))
        _, values = scores_with_beacons(prepared, prepared.secret, prepared.beacons, trained, base)
        again = beacon_finding(frozen, Scores(ids, values, coins))
        assert again.name == ("dead_beacons" if shuffled else finding["name"])
        assert shuffled or again.p_value == finding["p_value"]
