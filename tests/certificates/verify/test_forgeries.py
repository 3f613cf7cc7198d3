"""Forged certificates: nothing stated supports a verdict, and what contradicts the evidence is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit import InvalidEvidence
from dpaudit.certificates.amend import amend
from dpaudit.certificates.verify.report import ABSENT, EQUAL, RECORDED
from tests.certificates import certificate_run as run
from tests.certificates.forgery import Forgery

CONFIG = "c" * 64


def scores_of(forgery: Forgery, shift: float, seed: int = 5) -> np.ndarray:
    coins = np.array([row[1] for row in forgery.body["audit"]["canaries"]])
    return np.random.default_rng(seed).normal(size=len(coins)) + shift * coins


def exposed(forgery: Forgery) -> None:
    """Give the certificate the exposure that its scores have."""
    import pandas as pd

    from dpaudit.auditing import exposure_summary

    rows = forgery.body["audit"]["canaries"]
    table = pd.read_parquet(forgery.folder / "scores.parquet").set_index("id")["score"]
    forgery.body["exposure"] = exposure_summary([table[r[0]] for r in rows], [r[1] for r in rows], copies=1)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest run of 400 canaries without a control: inconclusive."""
    base = tmp_path_factory.mktemp("base")
    provenance = {"dpaudit": "0.1.0", "commit": "0" * 40, "dirty": False, "config_sha256": CONFIG}
    run.release(base / "plain", provenance=provenance)
    forgery = Forgery(base / "plain", base / "release")
    stage = {"sampling": "none", "sampling_probability": 1.0, "noise_multiplier": 1.6, "steps": 1}
    forgery.body["ledger"]["stages"][0].update(stage, expected_batch_size=3000.0)
    forgery.account()
    forgery.write_ledger()
    forgery.write_scores(scores_of(forgery, 0.62))
    forgery.audit_again()
    exposed(forgery)
    assert forgery.seal().verify().exit_code == 2
    return forgery.folder


@pytest.fixture(scope="module")
def deserved(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with enough controls: consistent, and deservedly so."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("deserved") / "release")
    forgery.write_control(400, 40.0, runs=20)
    forgery.audit_again()
    assert forgery.seal().verify().exit_code == 0
    return forgery.folder


@pytest.fixture(scope="module")
def convicted(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaks: the declared mechanism is refuted, while the primary bound is still below the claim."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("convicted") / "release")
    for shift in np.arange(1.0, 4.0, 0.1):
        forgery.write_scores(scores_of(forgery, float(shift)))
        forgery.audit_again()
        if forgery.result["verdict"] == "violated":
            break
    assert forgery.result["primary"]["epsilon_lower_at_verdict"] < 2.9
    exposed(forgery)
    assert forgery.seal().verify().exit_code == 1
    return forgery.folder


@pytest.fixture
def new(tmp_path: Path) -> Callable[[Path], Forgery]:
    made: list[int] = []

    def copy(release: Path) -> Forgery:
        made.append(1)
        return Forgery(release, tmp_path / f"forged{len(made)}")

    return copy


def test_a_deserved_verdict_stands_and_is_not_read_into_missing_evidence(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    whole = new(deserved).verify()
    assert whole.verdict == "consistent" and whole.power_lower is not None and whole.power_lower >= 0.8
    for lost in (["scores.parquet"], ["control_scores.parquet"], ["scores.parquet", "control_scores.parquet"]):
        forgery = new(deserved)
        for name in lost:
            (forgery.folder / name).unlink()
        report = forgery.verify()
        assert report.ok and report.verdict == "inconclusive" and report.exit_code == 2, lost
        assert report.stated_verdict == "consistent" and report.power_lower is None
        power = next(step for step in report.steps if step.name == "audit.power")
        assert power.outcome == ABSENT and "null" in power.detail
        assert forgery.verify('verdicts = ["consistent"]').exit_code == 1


def test_power_typed_in_supports_nothing(honest: Path, new: Callable[[Path], Forgery]) -> None:
    for gone in ([], ["scores.parquet"], ["scores.parquet", "audit_plan.json", "ledger.jsonl"]):
        forgery = new(honest)
        for name in gone:
            (forgery.folder / name).unlink()
        forgery.claim_consistent()
        forgery.seal(verdict=False)
        forgery.body["verdict"].update(name="consistent", reasons=["no violation was found"])
        forgery.seal(verdict=False)
        report = forgery.verify('minimum_power = 0.8\nverdicts = ["consistent"]\n')
        assert report.exit_code in (1, 2, 3) and report.verdict != "consistent", gone
        assert any(step.name == "audit.power" and step.outcome != EQUAL for step in report.steps)


def test_a_conviction_is_not_lost_by_a_difference_in_version(convicted: Path, new: Callable[[Path], Forgery]) -> None:
    for verifier in ({}, {"version": "0.1.1"}, {"version": "9.9", "rules": "9"}):
        forgery = new(convicted)
        forgery.claim_consistent()
        forgery.result["auc"]["value"] += 1e-3
        forgery.body["verifier"].update(verifier)
        forgery.seal(verdict=False)
        forgery.body["verdict"] = {**forgery.body["verdict"], "name": "consistent", "reasons": []}
        different = forgery.seal(verdict=False).different()
        assert {"audit.result", "audit.findings", "audit.power", "audit.verdict", "verdict"} <= set(different)
        assert forgery.verify().exit_code == 3


def test_a_difference_in_version_never_leaves_numbers_that_support(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    forgery = new(deserved)
    forgery.body["verifier"]["version"] = "0.0.9"
    forgery.result["expected_epsilon_lower"] = 2.9
    steps = {step.name: step for step in forgery.seal(verdict=False).verify().steps}
    assert steps["audit.result"].outcome == ABSENT and "expected_epsilon_lower" in steps["audit.result"].detail
    assert steps["audit.findings"].outcome == steps["audit.power"].outcome == EQUAL


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"plan_sha256": "0" * 64}, "plan_sha256"),
        ({"config_sha256": "0" * 64}, "config_sha256"),
        ({"attack": "another"}, "attack"),
        ({"canaries_sha256": "0" * 64}, "canaries_sha256"),
    ],
)
def test_a_control_of_another_run_is_refused(
    deserved: Path, new: Callable[[Path], Forgery], changes: dict[str, str], word: str
) -> None:
    forgery = new(deserved)
    forgery.write_control(400, 40.0, runs=20, **changes)
    assert word in forgery.seal().different()["audit.power"]


def test_a_control_that_names_no_run_supports_nothing(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    import pandas as pd

    forgery = new(deserved)
    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path)[["id", "score", "member", "run"]].to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    report = forgery.seal(verdict=False).verify()
    assert report.exit_code != 0 and report.power_lower is None
    power = next(step for step in report.steps if step.name == "audit.power")
    assert power.outcome == ABSENT and "not bound to this run" in power.detail


def test_what_an_earlier_version_called_consistent_reads_as_inconclusive(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    """The rule on power changed since: an honest certificate of that time is not called forged, and not consistent."""
    import pandas as pd

    forgery = new(deserved)
    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path)[["id", "score", "member"]].to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    forgery.body["verifier"] = {"name": "dpaudit", "version": "0.1.0"}
    del forgery.result["power_lower"]
    report = forgery.seal(verdict=False).verify()
    assert report.stated_verdict == "consistent" and report.ok and report.exit_code == 2, report.to_text()


def test_the_audited_canaries_are_no_control(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(deserved)
    ids = [row[0] for row in forgery.body["audit"]["canaries"]]
    forgery.write_control(400, 40.0, id=None)
    import pandas as pd

    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path).assign(id=ids).to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    assert "audited canaries" in forgery.seal().different()["audit.power"]


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


def normaliser(f: Forgery) -> None:
    f.body["mechanism"]["normaliser"] = "constant 300 (q times the public size), never the realised batch"


def sampler(f: Forgery) -> None:
    f.body["mechanism"]["sampler"] = "Shuffle: fixed batches"


def noise(f: Forgery) -> None:
    f.body["mechanism"]["noise_source"] = "Laplace from operating-system entropy"


def rule(f: Forgery) -> None:
    f.body["mechanism"]["clipping_rule"] = "joint"


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
        (public_size_alone, "consistency"),
        (clipping, "consistency"),
        (normaliser, "consistency"),
        (sampler, "consistency"),
        (noise, "consistency"),
        (rule, "consistency"),
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
        (compared_with, "audit.claim"),
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


@pytest.mark.parametrize("status", ["Violated", "VIOLATED", "violated ", "failed", "", None, 3])
def test_an_unknown_status_is_refused(honest: Path, new: Callable[[Path], Forgery], status: Any) -> None:
    for place in ("findings", "result", "examination"):
        forgery = new(honest)
        holder = {"findings": forgery.body, "result": forgery.result, "examination": forgery.body["examination"]}[place]
        holder["findings"] = [{"name": "noise_scale", "status": status, "claim": "x", "text": "the noise is missing"}]
        forgery.body["digest"] = "0" * 64
        with pytest.raises(InvalidEvidence, match="status"):
            forgery.seal(verdict=False).verify()


def test_an_earlier_key_of_a_finding_still_counts(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    forgery.body["findings"] = [{"name": "membership", "verdict": "violated", "text": "more was right than may be"}]
    report = forgery.seal(verdict=False).verify()
    assert report.exit_code == 3 and "violated" in forgery.different()["verdict"]


def test_the_group_claim_is_the_recomputed_one(honest: Path, new: Callable[[Path], Forgery]) -> None:
    from dpaudit.certificates.group import group_epsilon

    def grouped(stated: float | None, status: str = "complete") -> Forgery:
        forgery = new(honest)
        audit, stage = forgery.body["audit"], forgery.body["ledger"]["stages"][0]
        stage.update(noise_multiplier=6.0)
        for key in ("expected_batch_size", "public_size"):
            stage.pop(key)
        forgery.body["claim"]["epsilon"] = 0.8
        forgery.body["mechanism"]["normaliser"] = "none"
        forgery.account(("gdp",))
        true = group_epsilon(forgery.ledger(), delta=1e-5, accountants=("gdp",), copies=4)
        assert true is not None
        audit["copies"] = 4
        audit["plan"].update(copies=4, claimed_epsilon=0.8, group_epsilon=true if stated is None else stated)
        audit["plan"]["alpha_split"] = {"primary": 0.04, "declared_mechanism": 0.0, "examiner": 0.0}
        forgery.body["run_status"] = status
        forgery.body["exposure"] = None
        forgery.write_plan()
        forgery.write_ledger()
        forgery.write_scores(scores_of(forgery, 8.0))
        forgery.audit_again()
        return forgery.seal()

    true = grouped(None)
    assert true.body["verdict"]["name"] == "violated" and "audit.group_claim" not in true.different()
    for stated in (99.0, 1.0):
        forgery = grouped(stated)
        assert "audit.group_claim" in forgery.different()
        # Tested at the recomputed value, the leak convicts, whatever the plan says.
        forgery.result["verdict"] = "inconclusive"
        assert "verdict" in forgery.different() or forgery.verify().stated_verdict == "violated"
    # A run that stopped early may have planned for more, and is tested at what it cost.
    early = grouped(99.0, "unfinished")
    assert "audit.group_claim" not in early.different() and early.body["verdict"]["name"] == "violated"


RULES = 'max_epsilon = 4.0\nunits = ["paragraph"]\nverdicts = ["inconclusive"]\n'


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"claim.unit": "page"}, "unit='page'"),
        ({"predicate.claim.unit": "page"}, "unit='page'"),
        ({"claim.epsilon": 99.0}, "max_epsilon"),
        ({"ledger.stages.0.noise_multiplier": 0.3}, "max_epsilon"),
        ({"verdict.name": "violated"}, "violated"),
        ({"verdict": "violated"}, "violated"),
        ({"deviations": ["the loader was not Poisson"]}, "deviates"),
        ({"claim.unitt": "page"}, "'claim.unitt'"),
        ({"claim": None}, "no claim"),
        ({"claim": "none"}, "after its corrections"),
    ],
)
def test_a_correction_acts_on_the_policy(
    honest: Path, new: Callable[[Path], Forgery], changes: dict[str, Any], word: str
) -> None:
    forgery = new(honest)
    rules = RULES + "allow_deviations = false\n"
    assert forgery.verify(rules).exit_code == 0
    amend(forgery.folder / "certificate.json", kind="correction", author="owner", text="A mistake.", changes=changes)
    report = forgery.verify(rules)
    assert report.exit_code == 1 and word in " ".join(report.policy_failures), report.policy_failures


def test_a_correction_never_makes_a_policy_laxer(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    changes = {"claim.epsilon": 0.1, "claim.unit": "user", "verdict.name": "consistent"}
    amend(forgery.folder / "certificate.json", kind="correction", author="me", text="Better.", changes=changes)
    report = forgery.verify('max_epsilon = 1.0\nunits = ["user"]\nverdicts = ["consistent"]\n')
    assert report.exit_code == 1 and len(report.policy_failures) >= 3 and report.verdict == "inconclusive"
    amend(
        forgery.folder / "certificate.json",
        kind="correction",
        author="me",
        text="Worse.",
        changes={"verdict.name": "violated"},
    )
    assert forgery.verify().verdict == "violated" and forgery.verify().exit_code == 1


def test_minimum_power_reads_the_recomputed_lower_limit(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(deserved)
    assert forgery.verify("minimum_power = 0.8\n").exit_code == 0
    forgery.write_control(400, 40.0, runs=2)
    forgery.audit_again()
    report = forgery.seal().verify('minimum_power = 0.8\nverdicts = ["inconclusive"]\n')
    assert forgery.result["power"] == 1.0 and report.exit_code == 1 and "power=" in report.policy_failures[0]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield from (leaf for key in value for leaf in leaves(value[key], (*path, key)))
    elif isinstance(value, list) and len(value) < 50:
        yield from (leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i)))
    yield path


def mutate(forgery: Forgery, rng: random.Random) -> None:
    """One to four edits: any field anywhere, or a move that a forger would make."""
    moves: list[Callable[[], Any]] = [
        forgery.claim_consistent,
        lambda: forgery.body["verifier"].update(version="0.0.9"),
        lambda: forgery.body["verifier"].pop("rules", None),
        lambda: forgery.result.update(findings=[]),
        lambda: forgery.body.update(findings=[]),
        lambda: forgery.result.update(verdict="consistent", power=1.0, power_lower=1.0),
        lambda: forgery.write_control(400, 40.0, runs=20),
        lambda: forgery.body["audit"].update(scores_digest=None),
        lambda: forgery.body["audit"].update(control_digest=None),
        lambda: forgery.result["primary"].update(epsilon_lower_at_verdict=0.0, epsilon_lower=0.0),
        lambda: forgery.body.update(audit=None),
        *(
            (lambda name=name: (forgery.folder / name).unlink(missing_ok=True))
            for name in ("scores.parquet", "ledger.jsonl", "audit_plan.json", "examination.json")
        ),
    ]
    for _ in range(rng.randrange(1, 5)):
        if rng.random() < 0.5:
            rng.choice(moves)()
            continue
        path = rng.choice([p for p in leaves(forgery.body) if p])
        holder: Any = forgery.body
        for key in path[:-1]:
            holder = holder[key]
        old = holder[path[-1]]
        options = [None, 0, 1, True, [], {}, "consistent", old]
        if isinstance(old, (int, float)) and not isinstance(old, bool):
            options += [old * 2, old / 2, -old, old + 1]
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = rng.choice(options)


def never_consistent(release: Path, folder: Path, edits: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(edits):
        forgery = Forgery(release, folder / f"edit{seed}-{number}")
        try:
            mutate(forgery, rng)
            forgery.seal(verdict=rng.random() < 0.3)
            if rng.random() < 0.7:
                forgery.body["verdict"].update(name="consistent", reasons=["no violation was found"])
                forgery.seal(verdict=False)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, InvalidEvidence):
            continue
        try:
            report = forgery.verify()
        except InvalidEvidence:
            continue
        assert report.verdict != "consistent" and report.exit_code != 0, forgery.folder


def test_no_edit_of_a_convicted_run_is_consistent(convicted: Path, tmp_path: Path) -> None:
    never_consistent(convicted, tmp_path, 40, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_edits_of_a_convicted_run_are_never_consistent(convicted: Path, tmp_path: Path, seed: int) -> None:
    never_consistent(convicted, tmp_path, 150, seed=seed)


def coins_none(f: Forgery) -> None:
    """Coins that open their commitment are called none, and every bound is left out."""
    f.result["design"]["coins"] = "none"
    f.result.update(findings=[], verdict="inconclusive", ceiling=None, ceiling_at_verdict=None)
    f.result["primary"] = dict.fromkeys(f.result["primary"])


def no_result(f: Forgery) -> None:
    f.body["audit"]["result"] = None


def no_digest(f: Forgery) -> None:
    f.body["audit"]["scores_digest"] = None
    f.result.update(findings=[], verdict="inconclusive")


def control_in_words(f: Forgery) -> None:
    text = "On a control with a planted fault the attack was right in 92 of 92 guesses."
    f.result["findings"].append({"name": "positive_control", "status": "note", "claim": "audit", "text": text})


@pytest.mark.parametrize("change", [coins_none, no_result, no_digest, control_in_words])
def test_a_conviction_is_not_lost_by_what_is_left_out(
    convicted: Path, new: Callable[[Path], Forgery], change: Callable[[Forgery], None]
) -> None:
    forgery = new(convicted)
    change(forgery)
    forgery.seal()
    forgery.body["verdict"].update(name="inconclusive")
    assert forgery.seal(verdict=False).verify().exit_code == 3


def test_many_runs_without_scores_support_nothing(honest: Path, new: Callable[[Path], Forgery]) -> None:
    from dpaudit.auditing import design

    forgery = new(honest)
    audit, claim = forgery.body["audit"], forgery.body["claim"]
    plan = design(
        400,
        claim["epsilon"],
        claim["delta"],
        relation=claim["relation"],
        unit=claim["unit"],
        kind="many_runs",
        attack="loss",
    )
    audit["plan"] = plan.to_dict()
    forgery.write_plan()
    forgery.write_ledger()
    forgery.write_control(2400, 40.0)
    forgery.audit_again()
    assert forgery.seal().verify().exit_code == 0  # with its scores and a control of enough runs it is deserved
    (forgery.folder / "scores.parquet").unlink()
    report = forgery.verify('minimum_power = 0.8\nverdicts = ["consistent"]\n')
    assert report.verdict == "inconclusive" and report.exit_code == 1 and report.power_lower is None
    assert forgery.verify().exit_code == 2
