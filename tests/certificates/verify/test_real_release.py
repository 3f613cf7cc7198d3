"""A small real run that deserves level 3, and what an owner would change in its release; every change is a difference.

The other tests of forgeries change releases that were written by hand; here trainer, observers and examiner wrote it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpaudit.auditing.in_run.arrays import numbers_of, numbers_text
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from tests.certificates.forgery import Forgery
from tests.runs.run_helpers import run_cli, small_config, write_toml

pytestmark = pytest.mark.slow  # training, twenty controls and an examination in full: a minute and a half
POLICY = 'minimum_level = 3\nverdicts = ["consistent"]\n'


@dataclasses.dataclass(frozen=True, slots=True)
class Releases:
    """Of one training run: certified with an examination, and without."""

    examined: Path
    plain: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    folder = tmp_path_factory.mktemp("real")
    value = small_config(
        claim__epsilon=12.0, privacy__steps=40, privacy__noise_multiplier=1.0, audit__in_run={"canaries": 20_000}
    )
    trained = run_cli("train", write_toml(folder / "c.toml", value), "--out", folder / "run")
    assert trained.code == 0, trained.error
    shutil.copytree(folder / "run", folder / "plain")
    plain = run_cli("certify", folder / "plain", "--json")
    assert (plain.code, plain.json["verdict"]) == (2, "inconclusive"), plain.error
    done = run_cli("certify", folder / "run", "--examine", "--examine-budget", "400 steps", "--json")
    assert (done.code, done.json["level"]) == (0, 3), done.error
    return Releases(folder / "run" / "release", folder / "plain" / "release")


def in_file(forgery: Forgery, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change in_run.json, with the digest that binds it made to fit."""
    path = forgery.folder / "in_run.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")
    forgery.body["in_run"]["evidence_digest"] = sha256_bytes(path.read_bytes())


def in_examination(forgery: Forgery, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the examination in the certificate and in its file."""
    change(forgery.body["examination"])
    (forgery.folder / "examination.json").write_bytes(canonical_json(forgery.body["examination"]) + b"\n")


def other_first(text: str) -> str:
    return ("A" if text[0] != "A" else "B") + text[1:]


def called_consistent(f: Forgery) -> None:
    f.body["level"] = 3
    f.body["verdict"].update(name="consistent", reasons=["nothing was found"])


def without_noise_test(f: Forgery) -> None:
    def change(value: dict[str, Any]) -> None:
        value["tests"] = [test for test in value["tests"] if test["name"] != "noise_scale"]
        value["excluded"]["noise"] = None

    in_examination(f, change)


def flipped_coins(f: Forgery) -> None:
    f.body["in_run"]["coins"] = other_first(f.body["in_run"]["coins"])


def edited_score(f: Forgery) -> None:
    in_file(f, lambda value: value.update(scores="AAAA" + value["scores"][4:]))


def edited_energy(f: Forgery) -> None:
    """A step and a block with a tenth more energy, as noise that was missing would need."""

    def change(value: dict[str, Any]) -> None:
        energy = value["energy"]
        steps, blocks = (numbers_of(energy[n], width=8, name=n).copy() for n in ("step_squares", "block_squares"))
        more = 0.1 * steps[0]
        steps[0] += more
        blocks[0] += more
        energy.update(step_squares=numbers_text(steps, width=8), block_squares=numbers_text(blocks, width=8))

    in_file(f, change)


def failed_control(f: Forgery) -> None:
    in_file(f, lambda value: [c.update(inside=0) for run in value["control"] for c in run["counts"]])
    f.body["in_run"]["result"]["power_lower"] = 0.99


def no_observer(f: Forgery) -> None:
    del f.body["in_run"]
    (f.folder / "in_run.json").unlink()


def lowered_bound(f: Forgery) -> None:
    f.body["in_run"]["result"]["primary"].update(epsilon_lower=0.2, epsilon_lower_at_verdict=0.1)


def rewritten_line(f: Forgery) -> None:
    f.body["lines"][2].update(standing="shown", reasons=[], text="not attacked, nothing leaks")


def no_findings(f: Forgery) -> None:
    f.body["in_run"]["result"]["findings"] = []


def another_examination(f: Forgery) -> None:
    in_examination(f, lambda value: value.update(config_sha256="0" * 64))


def more_noise(f: Forgery) -> None:
    f.body["ledger"]["stages"][0]["noise_multiplier"] *= 1.2
    f.account(("rdp",))
    f.write_ledger()


def typed_power(f: Forgery) -> None:
    f.result.update(power=0.99, power_lower=0.95, power_source="positive_control: no noise")


def harder_fault(f: Forgery) -> None:
    f.body["audit"]["plan"]["in_run"]["control"]["noise_factor"] = 0.95


def earlier_rules(f: Forgery) -> None:
    f.body["verifier"] = {"name": "dpaudit", "version": "0.0.9", "rules": "2"}
    del f.body["level"], f.body["lines"]


AS_IT_IS = [without_noise_test, failed_control, rewritten_line, another_examination]
"""Left with the verdict that the run had."""
MADE_TO_FIT = [
    flipped_coins, edited_score, edited_energy, no_observer, lowered_bound, no_findings, more_noise,
    typed_power, harder_fault,
]  # fmt: skip
"""With verdict, lines and level derived anew from the change."""


def differing(forgery: Forgery) -> set[str]:
    """Steps that differ, the pages apart, which no change leaves alone."""
    report = forgery.verify(POLICY)
    assert report.exit_code == 3, report.to_text()
    return {name for name in forgery.different(POLICY) if not name.startswith("page")}


def test_the_run_itself_is_accepted(real: Releases, tmp_path: Path) -> None:
    report = Forgery(real.examined, tmp_path / "release").verify(POLICY)
    assert (report.exit_code, report.verdict, report.level_reached) == (0, "consistent", 3), report.to_text()


def test_a_run_without_examination_cannot_be_called_consistent(real: Releases, tmp_path: Path) -> None:
    forgery = Forgery(real.plain, tmp_path / "release")
    called_consistent(forgery)
    assert differing(forgery.seal(verdict=False))


@pytest.mark.parametrize("change", AS_IT_IS, ids=lambda change: change.__name__)
def test_a_change_beside_the_old_verdict_is_a_difference(
    change: Callable[[Forgery], None], real: Releases, tmp_path: Path
) -> None:
    forgery = Forgery(real.examined, tmp_path / "release")
    change(forgery)
    assert differing(forgery.seal(verdict=False))


@pytest.mark.parametrize("change", MADE_TO_FIT, ids=lambda change: change.__name__)
def test_a_change_with_all_else_made_to_fit_is_a_difference(
    change: Callable[[Forgery], None], real: Releases, tmp_path: Path
) -> None:
    forgery = Forgery(real.examined, tmp_path / "release")
    change(forgery)
    assert differing(forgery.seal())


def test_an_examination_without_its_noise_test_carries_nobody_to_level_three(real: Releases, tmp_path: Path) -> None:
    """Its owner alone knows what it tested: verdict and lines made to fit no longer call the implementation shown."""
    forgery = Forgery(real.examined, tmp_path / "release")
    without_noise_test(forgery)
    report = forgery.seal().verify(POLICY)
    assert report.exit_code == 3 and report.level_reached < 2
    assert {line.name: line.standing for line in report.lines}["implementation"] == "not shown"


def test_a_release_that_calls_itself_older_is_a_difference_and_gains_nothing(real: Releases, tmp_path: Path) -> None:
    forgery = Forgery(real.examined, tmp_path / "release")
    earlier_rules(forgery)
    report = forgery.seal(verdict=False).verify(POLICY)
    assert report.exit_code == 3 and report.level_reached <= 3  # its pages are not those of its rules
