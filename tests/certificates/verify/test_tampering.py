"""A thousand random changes to a certificate or its evidence: each is detected."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence
from dpaudit.certificates.verify.confined import verify_certificate
from tests.certificates import certificate_run as run

NAMES = "certificate.json audit_plan.json ledger.jsonl scores.parquet examination.json model/model.safetensors"
FILES = tuple(NAMES.split())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    run.release(folder, m=120)
    assert verify_certificate(folder).ok
    return folder


def detected(folder: Path) -> bool:
    try:
        return verify_certificate(folder).exit_code == 3
    except InvalidEvidence:
        return True


def change_one_byte(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    place = rng.randrange(len(changed))
    match rng.randrange(3):
        case 0:
            changed[place] ^= 1 << rng.randrange(8)
        case 1:
            del changed[place]
        case _:
            changed.insert(place, rng.randrange(256))
    return bytes(changed)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path


def change_one_field(statement: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    changed = copy.deepcopy(statement)
    path = rng.choice(list(leaves(changed)))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    match old:
        case bool():
            new: Any = not old
        case int():
            new = old + rng.choice([-1, 1])
        case float():
            new = old * rng.choice([0.5, 0.999, 1.001, 2.0])
        case str():
            new = old + "x" if not old or rng.random() < 0.5 else old[:-1]
        case _:
            new = 1
    if rng.random() < 0.1:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return ".".join(map(str, path)), changed


def attempt(original: Path, folder: Path, rng: random.Random) -> str:
    """Make one random change and return what was changed."""
    if rng.random() < 0.5:
        name = rng.choice(FILES)
        (folder / name).write_bytes(change_one_byte((original / name).read_bytes(), rng))
        return name
    path = folder / "certificate.json"
    name, changed = change_one_field(run.load(original / "certificate.json"), rng)
    run.rewrite(path, changed, reseal=False)
    return name


def tamper(original: Path, folder: Path, changes: int, seed: int) -> None:
    rng = random.Random(seed)
    shutil.copytree(original, folder)
    before = {name: (original / name).read_bytes() for name in FILES}
    for _ in range(changes):
        where = attempt(original, folder, rng)
        if {name: (folder / name).read_bytes() for name in FILES} != before:
            assert detected(folder), where
        for name, data in before.items():
            (folder / name).write_bytes(data)
    assert not detected(folder)


def test_random_changes_are_detected(original: Path, tmp_path: Path) -> None:
    tamper(original, tmp_path / "release", 60, seed=1)


@pytest.mark.slow
def test_a_thousand_random_changes_are_detected(original: Path, tmp_path: Path) -> None:
    tamper(original, tmp_path / "release", 1000, seed=2)


# Texts that a forger may rewrite in an unsigned certificate, with the digest made to fit: no number depends on them.
# Only a signature by a trusted key, or a copy published earlier, can show the change.
WITHOUT_EFFECT = (
    "predicate.digest",
    "predicate.verifier",
    "predicate.scope",
    "predicate.mechanism",
    "predicate.provenance",
    "predicate.limits",
    "predicate.deviations",
    "predicate.reproduction",
    "predicate.findings",
    "predicate.accounting.guarantees.0.version",
)
# Leaving out a stage's key whose default is the same value changes nothing.
DEFAULTS = ("predicate.ledger.stages.0.mechanism", "predicate.ledger.stages.0.releases_per_step")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_resealed_change_is_detected_or_touches_no_number(original: Path, tmp_path: Path, seed: int) -> None:
    rng, folder = random.Random(seed), tmp_path / "release"
    shutil.copytree(original, folder)
    statement = run.load(original / "certificate.json")
    for _ in range(40):
        where, changed = change_one_field(statement, rng)
        try:
            run.rewrite(folder / "certificate.json", changed)
        except (KeyError, TypeError):
            continue
        same = where in DEFAULTS and where.split(".")[-1] not in changed["predicate"]["ledger"]["stages"][0]
        assert same or where.startswith(WITHOUT_EFFECT) or detected(folder), where


def test_consistent_forgery_needs_a_key(original: Path, tmp_path: Path) -> None:
    """The owner of a run can forge everything consistently: verify says that origin is not proven."""
    folder = shutil.copytree(original, tmp_path / "release")
    (folder / "model" / "model.safetensors").write_bytes(b"another model")
    statement = run.load(folder / "certificate.json")
    statement["subject"][0]["digest"]["sha256"] = run.sha256_file(folder / "model" / "model.safetensors")
    run.rewrite(folder / "certificate.json", statement)
    report = verify_certificate(folder)
    assert report.ok
    assert report.origin == "internally consistent; origin not proven"
    assert json.dumps(report.to_dict())
