"""Units of privacy in a run: told by a column, bounded before the coins, and stated without a count."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpaudit
from dpaudit import InvalidValue
from dpaudit.certificates.limits import unit_premise
from dpaudit.privacy.rounding import exact_text
from dpaudit.runs.config import Config, parse_config
from dpaudit.runs.data_commitment import data_hmac
from dpaudit.runs.evidence import mechanism
from dpaudit.runs.membership import hold_out_records
from dpaudit.runs.prepare import group_claim, make_plans, planned_ledger, public_size
from dpaudit.runs.records import Records, private_and_public
from dpaudit.runs.units import unit_names, units_of_canary, units_statement
from dpaudit.storage.run_folder import RunFolder
from tests.runs.run_helpers import small_config, write_toml

WHOLE = {"privacy__sampling_unit": "unit", "privacy__records_per_unit": 4, "claim__max_records_per_unit": 1}
PRV = {"privacy__accountants": ["prv"], "privacy__calibrate_with": "prv"}
SENDERS = ["Ann", " ann ", "ANN", "bob", "cyd", "cyd"]


def mails(folder: Path, senders: list[str] = SENDERS) -> Path:
    path = folder / "mails.csv"
    path.write_text("sender,text\n" + "".join(f"{who},text {i} of a mail\n" for i, who in enumerate(senders)))
    return path


def configured(folder: Path, **changes: Any) -> Config:
    path = mails(folder) if not (folder / "mails.csv").exists() else folder / "mails.csv"
    base = {
        "data__path": str(path), "data__limit": None, "data__unit_column": "sender", "claim__unit": "sender",
        "claim__max_records_per_unit": 2,
    }  # fmt: skip
    return parse_config(small_config(**{**base, **changes}), "here")


def test_a_unit_above_its_bound_is_refused_in_one_sentence(tmp_path: Path) -> None:
    told = (
        "one sender has 3 records, above max_records_per_unit=2, so that no number would hold for one sender; choose at"
        " random (max_records_rule='choose'), draw units whole (sampling_unit='unit'), or raise the bound."
    )
    with pytest.raises(InvalidValue) as error:
        private_and_public(configured(tmp_path), tmp_path)
    assert str(error.value) == told


def test_names_that_differ_in_case_or_blanks_are_one_unit(tmp_path: Path) -> None:
    private, public = private_and_public(configured(tmp_path, claim__max_records_per_unit=3), tmp_path)
    assert private.units == ("ann", "ann", "ann", "bob", "cyd", "cyd") and public.units is None


def test_the_chosen_records_follow_from_their_texts_alone(tmp_path: Path) -> None:
    config = configured(tmp_path, data__max_records_rule="choose")
    private, _ = private_and_public(config, tmp_path)
    assert sorted(private.units or ()) == ["ann", "ann", "bob", "cyd", "cyd"]
    again, _ = private_and_public(config, tmp_path)
    assert again == private  # a resume finds the same records
    kept = [text for text, who in zip(private.texts, private.units or (), strict=True) if who == "ann"]
    lines = (tmp_path / "mails.csv").read_text().splitlines()
    (tmp_path / "mails.csv").write_text("\n".join([lines[0], *lines[1:4]]) + "\n")  # the others are gone
    assert private_and_public(config, tmp_path)[0].texts == tuple(kept)


def test_a_unit_is_public_or_private_with_all_its_records(tmp_path: Path) -> None:
    mails(tmp_path, [f"author {i % 40}" for i in range(200)])
    config = configured(tmp_path, data__heldout=None, data__heldout_fraction=0.5, claim__max_records_per_unit=5)
    private, public = private_and_public(config, tmp_path)
    assert len(private) and len(public) and not set(private.units or ()) & set(public.units or ())


def test_units_are_held_out_whole_and_found_again(tmp_path: Path) -> None:
    names = [f"author {i % 40}" for i in range(200)]
    texts = [f"text {i}" for i in range(200)]
    texts[0] = texts[41] = "kind regards"  # authors 0 and 1 share it: the other would answer for one that is held out
    texts[2] = texts[42] = "twice by author 2"
    records = Records(tuple(texts), units=tuple(names))
    config = configured(tmp_path, audit__holdout_fraction=0.4, claim__max_records_per_unit=5)
    folder = RunFolder.create(tmp_path / "run")
    split = hold_out_records(config, folder, records)
    assert split is not None and len(split.coins) == len(split.ids) == 32 and 0 < split.coins.sum() < 32
    unit_of = [{split.candidates.units[i] for i in np.flatnonzero(split.of == c)} for c in range(32)]  # type: ignore[index]
    assert all(len(unit) == 1 for unit in unit_of) and np.bincount(split.of).tolist() == [5] * 32
    candidates = set().union(*unit_of)
    assert not candidates & {"author 0", "author 1"}
    out = set().union(*(unit for unit, coin in zip(unit_of, split.coins, strict=True) if not coin))
    assert set(split.trained.units or ()) == set(names) - out
    assert len(split.trained) == 200 - 5 * len(out)
    again = hold_out_records(config, folder, records)
    assert again is not None and again.trained == split.trained and again.ids == split.ids


@pytest.mark.parametrize(
    ("cell", "told"),
    [("", "line 3 names no unit of privacy in 'sender'; fill it, with a name of its own")],
)
def test_a_record_of_nobody_is_refused_with_its_place(tmp_path: Path, cell: str, told: str) -> None:
    mails(tmp_path, ["ann", cell, "bob"])
    with pytest.raises(InvalidValue, match=told):
        private_and_public(configured(tmp_path), tmp_path)


def test_a_column_needs_a_table(tmp_path: Path) -> None:
    (tmp_path / "mails.txt").write_text("one\ntwo\n")
    config = configured(tmp_path, data__path=str(tmp_path / "mails.txt"))
    with pytest.raises(InvalidValue, match=r"data\.unit_column='sender' names a column of a table and mails\.txt is"):
        private_and_public(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__unit_column": None, "data__max_records_rule": "choose"}, "data.max_records_rule='choose' chooses"),
        ({"privacy__records_per_unit": 4}, "privacy.records_per_unit=4 with privacy.sampling_unit='record'"),
        ({"privacy__sampling_unit": "unit"}, "privacy.records_per_unit=None with privacy.sampling_unit='unit'"),
        ({**WHOLE, "data__unit_column": None}, "privacy.sampling_unit='unit' draws units, which data.unit_column"),
        ({**WHOLE, "claim__max_records_per_unit": 5}, "claim.max_records_per_unit=5 must be 1 with"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        configured(tmp_path, **changes)


def test_the_plan_counts_what_is_drawn(tmp_path: Path) -> None:
    records = configured(tmp_path, canaries__copies=2)
    whole = configured(tmp_path, **WHOLE, canaries__copies=2)
    assert public_size(records) == 60 + 24 and public_size(whole) == 60 + 12
    (plan,) = make_plans(whole, 72)
    assert plan.draws_units and plan.records_per_unit == 4 and plan.sampling_probability == 8 / 72


def test_a_canary_is_a_unit_of_its_own(tmp_path: Path) -> None:
    records = Records(("a", "b"), units=("ann", "bob"))
    assert unit_names(configured(tmp_path, canaries__copies=3), records, 2) == [
        "ann", "bob", (0, 0), (0, 0), (0, 1), (1, 0), (1, 0), (1, 1),
    ]  # fmt: skip
    whole = configured(tmp_path, **WHOLE, canaries__copies=3)
    assert unit_names(whole, records, 1) == ["ann", "bob", (0, 0), (0, 0), (0, 0)]
    assert unit_names(whole, Records(("a",)), 1) is None
    for changes, units in (
        ({"canaries__copies": 2}, 1),
        ({"canaries__copies": 3}, 2),
        ({**WHOLE, "canaries__copies": 3}, 1),
        ({"data__unit_column": None, "canaries__copies": 3}, 3),
    ):
        assert units_of_canary(configured(tmp_path, **changes)) == units


def test_copies_within_a_unit_test_the_claim_itself(tmp_path: Path) -> None:
    within, above = (configured(tmp_path, canaries__copies=c, **PRV) for c in (2, 3))
    ledger = planned_ledger(make_plans(within, public_size(within)))
    assert group_claim(within, ledger) is None
    two = group_claim(above, ledger)
    (one,) = dpaudit.account(ledger, delta=within.claim.delta)
    assert two is not None and one.epsilon_upper is not None and two > one.epsilon_upper


def test_the_certificate_states_bound_rule_and_column_and_no_count(tmp_path: Path) -> None:
    assert units_statement(configured(tmp_path, data__max_records_rule="choose")) == {
        "column": "sender", "drawn": "record", "max_records": 2, "rule": "choose",
    }  # fmt: skip
    assert units_statement(configured(tmp_path, **WHOLE)) == {
        "column": "sender", "drawn": "unit", "records_of_a_step": 4, "reduction": "mean",
    }  # fmt: skip
    assert units_statement(configured(tmp_path, data__unit_column=None))["rule"] == "assumed"
    config = configured(tmp_path, **WHOLE)
    stated = mechanism(config, planned_ledger(make_plans(config, 72)))
    assert stated["clipping_rule"] == "flat, factor min(1, C/norm) per unit" and "every unit" in stated["sampler"]


def test_the_premise_is_listed_where_nothing_told_the_units() -> None:
    (sentence,) = unit_premise("sender", 5, {})
    assert sentence.startswith("That no sender has more than 5 records in the data is an assumption")
    assert "more than one record in" in unit_premise("mail", 1, {"units": {"column": None}})[0]
    assert unit_premise("sender", 5, {"units": {"column": "from"}}) == ()


def test_a_commitment_to_the_data_covers_who_wrote_them() -> None:
    plain = Records(("a", "b"))
    content = b'{"labels":null,"texts":["a","b"]}'  # as before there were units, so that old commitments still hold
    assert data_hmac(b"k", plain) == hmac.new(b"k", content, hashlib.sha256).hexdigest()
    names = [Records(("a", "b"), units=units) for units in (("x", "y"), ("x", "x"))]
    assert len({data_hmac(b"k", records) for records in (plain, *names)}) == 3


def test_a_simulated_run_of_in_run_canaries_draws_units_too(tmp_path: Path) -> None:
    from dpaudit.runs.in_run.control import simulate

    (plan,) = make_plans(configured(tmp_path, **WHOLE), 72)
    scores, coins = simulate(plan, 50)
    assert scores.shape == coins.shape == (50,) and np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.parametrize("design", ["records", "units"])
def test_a_user_level_run_from_a_table_to_a_verified_certificate(tmp_path: Path, design: str) -> None:
    rng = np.random.default_rng(0)
    senders = [f"author {rng.integers(25)}" for _ in range(80)]
    path = mails(tmp_path, senders)
    changes = WHOLE if design == "units" else {"data__max_records_rule": "choose"}
    base = {
        "data__path": str(path), "data__limit": None, "data__unit_column": "sender", "claim__unit": "sender",
        "claim__max_records_per_unit": 2, "claim__epsilon": 40.0, "privacy__public_size": 50,
        "audit__holdout_fraction": 0.1 if design == "units" else 0.0,
    }  # fmt: skip
    config = write_toml(tmp_path / "run.toml", small_config(**{**base, **PRV, **changes}))
    dpaudit.certify(str(config), out=str(tmp_path / "run"))
    release = tmp_path / "run" / "release"
    body = json.loads((release / "certificate.json").read_text())["predicate"]
    assert body["mechanism"]["units"]["column"] == "sender" and not any("assumption" in t for t in body["limits"])
    assert dpaudit.verify(str(release / "certificate.json")).verdict != "invalid_audit"
    stage = body["ledger"]["stages"][0]
    expected = dpaudit.account(
        dpaudit.Ledger.from_dict({k: v for k, v in body["ledger"].items() if k != "head"}), delta=1e-5
    )[0]
    assert exact_text(stage["sampling_probability"]) == exact_text(8 / (57 if design == "units" else 62))
    assert body["accounting"]["guarantees"][0]["epsilon_upper"] == expected.epsilon_upper
    if design == "units":
        told = json.loads((tmp_path / "run" / "private" / "membership.json").read_text())
        assert told["candidates"] == round(0.2 * len(set(senders)))  # of the units there are, not of the records
    assert str(max(map(senders.count, senders))) not in json.dumps(body["mechanism"]["units"])
