"""Fields that contradict each other differ, and every number that follows from the evidence is derived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.certificates.verify.report import RECORDED
from tests.certificates import certificate_run as run
from tests.certificates.forgery import Forgery


def unit(f: Forgery) -> None:
    f.body["claim"]["unit"] = f.body["ledger"]["unit"] = "author"
    f.write_ledger()


def attack(f: Forgery) -> None:
    f.body["audit"]["plan"]["attack"] = f.result["design"]["attack"] = "loss-ratio"
    f.write_plan()
    f.write_ledger()


def probability(f: Forgery) -> None:
    f.body["ledger"]["stages"][0].update(sampling="poisson", sampling_probability=0.001)
    f.account()
    f.write_ledger()


def public_size(f: Forgery) -> None:
    f.body["ledger"]["stages"][0]["public_size"] = 1
    f.write_ledger()


def public_size_alone(f: Forgery) -> None:
    """The minibatch is left out, so that only the canaries contradict it."""
    f.body["ledger"]["stages"][0]["public_size"] = 1
    del f.body["ledger"]["stages"][0]["expected_batch_size"]
    f.write_ledger()


def clipping(f: Forgery) -> None:
    f.body["mechanism"]["clipping_norm"] = 5.0


def clipping_in_words(f: Forgery) -> None:
    f.body["mechanism"]["clipping_norm"] = "5.0"


def repeated(f: Forgery) -> None:
    f.body["mechanism"]["noise_multiplier"] = 8.0


def repeated_claim(f: Forgery) -> None:
    f.body["mechanism"]["relation"] = "zero_out"


def repeated_sampling(f: Forgery) -> None:
    f.body["mechanism"]["sampling"] = "without_replacement"


def normaliser(f: Forgery) -> None:
    f.body["mechanism"]["normaliser"] = "constant 300 (q times the public size), never the realised batch"


def sampler(f: Forgery) -> None:
    f.body["mechanism"]["sampler"] = "Shuffle: fixed batches"


def noise(f: Forgery) -> None:
    f.body["mechanism"]["noise_source"] = "Laplace from operating-system entropy"


def rule(f: Forgery) -> None:
    f.body["mechanism"]["clipping_rule"] = "joint"


def bound_of_units(f: Forgery) -> None:
    f.body["mechanism"]["units"] = {"column": "author", "drawn": "record", "max_records": 7, "rule": "refuse"}


def whole_units(f: Forgery) -> None:
    f.body["mechanism"]["units"] = {"column": "author", "drawn": "unit", "records_of_a_step": 4}
    f.body["claim"]["max_records_per_unit"] = 3


def replaced(f: Forgery) -> None:
    """The coins replaced records, which says nothing of a claim about adding or removing one."""
    f.body["audit"]["plan"]["attack_parameters"] = {"canaries": {"kind": "label_substitution"}}
    f.write_plan()
    f.write_ledger()


def untold_units(f: Forgery) -> None:
    """Nothing told the units, and the limit that says so is not there."""
    f.body["mechanism"]["units"] = {"column": None, "drawn": "record", "rule": "assumed"}


def examination(f: Forgery) -> None:
    f.body["examination"]["findings"] = [{"name": "noise_scale", "status": "violated", "claim": "x", "text": "small"}]
    (f.folder / "examination.json").write_text(json.dumps(f.body["examination"]))


def limits(f: Forgery) -> None:
    f.body["limits"] = f.body["limits"][:4]


def deviation(f: Forgery) -> None:
    f.write_ledger("recovered after an unclean stop")


def imported(f: Forgery) -> None:
    f.write_ledger("imported from a spreadsheet")


@pytest.mark.parametrize(
    "change, step",
    [
        (unit, "audit.plan.claim"),
        (attack, "audit.scores"),
        (probability, "consistency"),
        (public_size, "consistency"),
        (replaced, "consistency"),
        (public_size_alone, "consistency"),
        (clipping, "consistency"),
        (clipping_in_words, "consistency"),
        (repeated, "consistency"),
        (repeated_claim, "consistency"),
        (repeated_sampling, "consistency"),
        (normaliser, "consistency"),
        (sampler, "consistency"),
        (noise, "consistency"),
        (rule, "consistency"),
        (bound_of_units, "consistency"),
        (whole_units, "consistency"),
        (untold_units, "limits"),
        (examination, "consistency"),
        (limits, "limits"),
        (deviation, "deviations"),
        (imported, "deviations"),
    ],
)
def test_fields_that_contradict_each_other_differ(
    honest: Path, new: Callable[[Path], Forgery], change: Callable[[Forgery], None], step: str
) -> None:
    forgery = new(honest)
    change(forgery)
    assert step in forgery.seal().different()


def exposure(f: Forgery) -> None:
    f.body["exposure"].update(median=0.0, maximum=0.0, values=[])


def exposure_and_more(f: Forgery) -> None:
    f.body["exposure"].update(median=0.0, note="no memorisation")


def design(f: Forgery) -> None:
    f.result["design"].update(members=200, ties=9, coins="asserted", m_needed=7)


def summary(f: Forgery) -> None:
    f.result["summary"] = "Consistent. Proven private."


def order(f: Forgery) -> None:
    f.body["audit"]["commitment_order"] = "proven"


def meaning(f: Forgery) -> None:
    f.body["verdict"]["meaning"] = "This model is private."


def reasons(f: Forgery) -> None:
    f.body["verdict"]["reasons"] = ["everything was checked"]


def forecast(f: Forgery) -> None:
    f.body["audit"]["plan"].update(expected_epsilon_lower=2.9, decidable=False)
    f.write_plan()
    f.write_ledger()


def rule_of_k(f: Forgery) -> None:
    f.body["audit"]["plan"]["control_canaries"] = 30
    f.write_plan()
    f.write_ledger()


def compared_with(f: Forgery) -> None:
    f.result["claim"]["tested_epsilon"] = 9.0


def accounted(f: Forgery) -> None:
    f.result["claim"]["accounted_upper"] = 2.9


def auc(f: Forgery) -> None:
    f.result["auc"]["value"] = 0.5


def confidence(f: Forgery) -> None:
    (f.folder / "scores.parquet").unlink()
    f.result["primary"]["confidence"] = 0.5


def counts(f: Forgery) -> None:
    (f.folder / "scores.parquet").unlink()
    f.result["primary"]["correct"] += 1


def assumption(f: Forgery) -> None:
    f.body["accounting"]["guarantees"][0]["assumption"] = "none"


@pytest.mark.parametrize(
    "change, step",
    [
        (exposure, "exposure"),
        (exposure_and_more, "exposure"),
        (design, "audit.design"),
        (summary, "audit.summary"),
        (order, "audit.order"),
        (meaning, "verdict.meaning"),
        (reasons, "verdict.reasons"),
        (forecast, "audit.plan.forecast"),
        (rule_of_k, "audit.plan.forecast"),
        (compared_with, "audit.claim"),
        (accounted, "audit.claim"),
        (auc, "audit.result"),
        (confidence, "audit.bound"),
        (counts, "audit.counts"),
        (assumption, "accounting.rdp"),
    ],
)
def test_every_number_and_word_that_follows_from_the_evidence_is_derived(
    honest: Path, new: Callable[[Path], Forgery], change: Callable[[Forgery], None], step: str
) -> None:
    forgery = new(honest)
    change(forgery)
    assert step in forgery.seal(verdict=False).different()


def test_facts_are_compared_whatever_version_wrote_them(honest: Path, new: Callable[[Path], Forgery]) -> None:
    for change, step in (
        (design, "audit.design"),
        (auc, "audit.result"),
        (exposure, "exposure"),
        (compared_with, "audit.claim"),
        (summary, "audit.summary"),
    ):
        forgery = new(honest)
        change(forgery)
        forgery.body["verifier"] = {"name": "dpaudit", "version": "0.0.1"}
        assert step in forgery.seal(verdict=False).different()
    forgery = new(honest)
    meaning(forgery)
    del forgery.body["verifier"]["rules"]
    assert "verdict.meaning" in forgery.seal(verdict=False).different()


def test_what_nobody_can_recompute_is_recorded_only(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    invented = {**run.EXAMINATION, "tests": [{"name": "everything", "excludes": "every fault"}]}
    forgery.body["examination"] = invented
    (forgery.folder / "examination.json").write_text(json.dumps(invented))
    report = forgery.seal().verify('required_tests = ["everything"]\nverdicts = ["inconclusive"]\n')
    steps = {step.name: step.outcome for step in report.steps}
    for name in ("examination", "fields", "mechanism", "provenance", "statements", "audit.order"):
        assert steps[name] == RECORDED, name
    assert "trusted_keys" in report.warnings[0] and "trusted_keys" in report.to_text()


def test_words_that_describe_contradict_nothing(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    forgery.body["mechanism"].update(
        sampling="every record at every step", relation="add or remove one paragraph", steps=1, clip="flat", unit="text"
    )
    forgery.body["mechanism"]["clipping_norm"] = "0.1"
    assert "consistency" not in forgery.seal().different()
