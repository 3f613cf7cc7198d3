"""Random edits of a convicted run, as a forger would make them: none verifies as consistent."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence
from tests.certificates.forgery import Forgery


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
