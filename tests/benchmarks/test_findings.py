"""The rows of the table of findings run, resume, and say what they spent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from findings import __main__ as command
from findings import dialogues, store, table, texts
from findings.jobs import Job, Options, named
from findings.rows import jobs_of, minilm, quadratic


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    ran: list[int] = []

    def jobs() -> list[Job]:
        return [Job(1, "a", seed, lambda s=seed: ran.append(s) or {"x": float(s)}) for seed in (0, 1)]  # type: ignore[func-returns-value]

    path = tmp_path / "runs.jsonl"
    command.run(jobs()[:1], Options(), path)
    path.write_text(path.read_text() + '{"row": 1, "setting": "a", "se')  # a kill in the middle of a line
    command.run(jobs(), Options(), path)
    command.run(jobs(), Options(), path)
    assert ran == [0, 1]
    assert [store.key(r) for r in store.finished(path)] == [(1, "a", 0), (1, "a", 1)]


def test_a_trial_records_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    found = command.run([Job(1, "a", 0, lambda: {"x": 1.0})], Options(steps=2), path)
    assert found[0]["x"] == 1.0 and not path.exists()


def test_settings_have_names_without_what_is_absent() -> None:
    assert named(method="dpzero", epsilon=4.0, norm=None) == "method=dpzero epsilon=4"


def test_the_quadratic_keeps_the_trainers_update() -> None:
    """One noiseless step with nothing clipped is θ − η · mean over directions of ⟨∇F_batch, v⟩ v."""
    at = quadratic.problem("blind", 3)
    line = quadratic.Line(2)
    moved = quadratic.descend(at, line, 0.0, rates=torch.tensor([0.1]), norms=torch.tensor([1e9]), seed=5, steps=1)[0]
    rng = torch.Generator().manual_seed(5)
    size = int(torch.binomial(torch.tensor(4000.0), torch.tensor(quadratic.BATCH / 4000), generator=rng))
    rows = torch.randint(4000, (1, size), generator=rng)[0]
    v = torch.randn(1, 2, quadratic.DIMENSION, generator=rng)[0]
    gradient = (at.curvature * (at.start - at.centres[rows])).sum(0) / quadratic.BATCH
    expected = at.start - 0.1 * ((v @ gradient)[:, None] * v).mean(0)
    assert torch.allclose(moved, expected, rtol=1e-4, atol=1e-5)


def test_the_quadratic_clips_as_the_trainer_does() -> None:
    from dpaudit.privacy.stage import Clip
    from dpaudit.trainers.zeroth_order.step import clip_differences

    slopes = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0)) * 3
    for rule in Clip:
        expected = clip_differences(slopes[0].double(), 2.0, rule)
        assert torch.allclose(quadratic.clip(slopes, torch.tensor([[2.0]]), rule.value)[0].double(), expected)


def test_a_mask_by_stage_nests_and_keeps_its_share() -> None:
    line, rng = quadratic.LINES["three stages, incremental mask, 5% to 20%"], torch.Generator().manual_seed(0)
    weights = torch.randn(2, quadratic.DIMENSION, generator=rng)
    first = quadratic.mask_of(line, weights, 0, rng, None)
    second = quadratic.mask_of(line, torch.randn_like(weights), 1, rng, first)
    assert first.sum(1).tolist() == [5, 5] and second.sum(1).tolist() == [10, 10]
    assert bool((second >= first).all())


def test_no_turn_is_in_two_exchanges() -> None:
    turns = ["hi there", "oh hello", "how are you", "fine", "good to hear", "and you then", "left over"]
    assert dialogues.of_conversation(turns) == [("hi there", "oh hello"), ("good to hear", "and you then")]
    assert dialogues.of_conversation(["one two " * 11, "too long a turn"]) == []


def test_fresh_verses_were_not_tested_before() -> None:
    earlier = {verse for seed in (0, 1, 2) for verse, _ in texts.verses(seed).test}
    declared = {verse for part in (texts.verses(0).public, texts.verses(0).validation) for verse, _ in part}
    found, other = texts.verses_afresh(0), texts.verses_afresh(1)
    sets = [{verse for verse, _ in part} for part in (found.private, found.public, found.validation, found.test)]
    assert not sets[3] & (earlier | declared) and set(found.public) == set(other.public)
    assert all(not left & right for at, left in enumerate(sets) for right in sets[at + 1 :])
    assert [len(part) for part in (found.private, found.public, found.validation, found.test)] == [
        5000,
        1200,
        400,
        1200,
    ]
    assert all(sum(label for _, label in part) * 2 == len(part) for part in (found.private, found.test))


def test_two_stages_on_an_encoder_meet_one_claim() -> None:
    from dpaudit.accounting import epsilon_upper

    both = minilm.plans_for("lora", 5000, 3.0, Options())
    stages = both.ledger().stages
    assert [s.steps for s in stages] == [20, 4] and stages[0].noise_multiplier == minilm.FIRST_SIGMA
    assert 2.98 < epsilon_upper(both.ledger(), both.delta, "prv") <= 3.0


def test_every_recorded_run_states_what_it_spent() -> None:
    for run in store.finished(store.RESULTS):
        wanted = next((w for w in run["setting"].split() if w.startswith("epsilon=")), "epsilon=none").split("=")[1]
        if wanted != "none" and run["row"] != 9:
            assert float(wanted) * 0.98 < run["epsilon_upper"] <= float(wanted) * (1 + 1e-6), run["setting"]
        assert run["machine"] and run["cpu_seconds"] >= 0


def test_a_cell_without_a_figure_says_so() -> None:
    runs = [{"setting": "a=x b=1", "m": 1.0}, {"setting": "a=x b=1", "m": 2.0}, {"setting": "a='y z' b=2"}]
    found = table.pivot(runs, rows=lambda k: k["a"], columns=lambda k: k["b"], metric="m", digits=1)
    assert found[2:4] == ["| x | 1.5 ± 0.7 (2) | – |", "| y z | – | not run |"]


def test_the_page_is_what_the_runs_give(tmp_path: Path) -> None:
    table.write(store.RESULTS, tmp_path / "findings.md")
    assert (tmp_path / "findings.md").read_text() == table.PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "backbone"),
    [(1, "small"), (2, "small"), (3, "small"), (3, "stand-in"), (4, "small"), (4, "stand-in"), (5, "small"),
     (7, "stand-in"), (8, "stand-in"), (9, "small")],
)  # fmt: skip
def test_every_setting_of_a_row_takes_two_steps(row: int, backbone: str) -> None:
    pytest.importorskip("peft")
    options, settings = Options(steps=2, backbone=backbone), set()
    for job in jobs_of(row, options):
        if job.setting in settings:
            continue
        settings.add(job.setting)
        found: dict[str, Any] = job.run()
        json.dumps(found)
        assert {"accuracy", "perplexity", "bleu", "f1", "excess", "peak_mib"} & set(found)
        if found.get("epsilon_upper"):
            assert found["epsilon_upper"] <= 8 * (1 + 1e-6)
    assert settings
