"""Units of privacy and preference pairs in Hugging Face's Trainer: the loop's releases, refusals and record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import (
    DPPreferenceTrainer,
    DPTrainer,
    PrivacyArguments,
    ZerothOrderArguments,
    ZOTrainer,
    pad_tokens,
    train,
)
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.optimizers import OptimizerSettings
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.tasks.losses import causal_lm_losses
from tests.trainers.huggingface.test_trainer import RECORDS, arguments, collate, model
from tests.trainers.tasks.test_preferences import Letters

OWNED = [{**record, "author": f"a{min(i // 3, 6)}"} for i, record in enumerate(RECORDS)]  # six with 3, one with 6


def claim(**changes: Any) -> PrivacyArguments:
    values: dict[str, Any] = {
        "delta": 1e-3, "relation": "add_or_remove_one", "sampling": "poisson", "unit": "author", "public_size": 24,
        "expected_batch_size": 6, "clipping_norm": 0.1, "noise_multiplier": 1.0, "unit_column": "author",
    }  # fmt: skip
    return PrivacyArguments(**{**values, **changes})


WHOLE = {"sampling_unit": "unit", "records_per_unit": 6, "public_size": 7, "expected_batch_size": 2}


def trainer(folder: Path, privacy: PrivacyArguments, **more: Any) -> DPTrainer:
    made = model()
    return DPTrainer(
        made, arguments(folder, max_steps=3, **more.pop("arguments", {})), privacy=privacy,
        train_dataset=more.pop("records", OWNED), data_collator=collate, **more,
    )  # fmt: skip


def flat(trained: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_units_are_what_the_loop_releases(tmp_path: Path, workers: int) -> None:
    draws = [[0, 6], [], [2], *[[3]] * 9]  # workers fetch ahead
    ours = trainer(
        tmp_path, claim(**WHOLE), sampler=ScriptedSampler(draws), arguments={"dataloader_num_workers": workers},
        noise=NoNoise(),
    )  # fmt: skip
    ours.train()
    twin = model().train()
    train(
        twin, RECORDS, ours.plan, collate=collate, loss_fn=lambda m, batch: causal_lm_losses(m, **batch),
        journal=MemoryJournal(), units=[r["author"] for r in OWNED], sampler=ScriptedSampler(draws), preflight=False,
        noise=NoNoise(), physical_batch_size=4,
        optimizer=OptimizerSettings(learning_rate=1e-2, weight_decay=0.0),
    )  # fmt: skip
    assert ours.private_step is not None and ours.private_step.norms.shape == (1,)
    torch.testing.assert_close(flat(ours.model), flat(twin), rtol=1e-5, atol=1e-6)
    assert ours.ledger.max_records_per_unit == 1 and ours.ledger.stages[0].sampling_probability == 2 / 7


def test_a_unit_above_its_bound_is_refused_or_its_records_are_chosen(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="one author has 6 records, above max_records_per_unit=3"):
        trainer(tmp_path, claim(max_records_per_unit=3))
    made = [trainer(tmp_path, claim(max_records_per_unit=3, max_records_rule="choose")) for _ in range(2)]
    kept = [[r["author"] for r in one.train_dataset] for one in made]
    assert kept[0] == kept[1] and len(kept[0]) == 21 and max(map(kept[0].count, kept[0])) == 3
    assert made[0].train_dataset == made[1].train_dataset  # a resume finds the same records
    assert len(trainer(tmp_path, claim(max_records_per_unit=6)).train_dataset) == 24


def test_units_can_be_given_beside_the_records(tmp_path: Path) -> None:
    names = [r["author"] for r in OWNED]
    with pytest.raises(InvalidValue, match="one author has 6 records"):
        trainer(tmp_path, claim(unit_column=None), records=RECORDS, units=names)
    with pytest.raises(InvalidValue, match="units and unit_column='author' both tell"):
        trainer(tmp_path, claim(), units=names)
    with pytest.raises(InvalidValue, match="unit_column='writer' is missing from a record"):
        trainer(tmp_path, claim(unit_column="writer"))


def test_a_table_of_datasets_keeps_its_column_from_the_model(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(OWNED)
    made = trainer(tmp_path, claim(max_records_per_unit=3, max_records_rule="choose"), records=table)
    assert len(made.train_dataset) == 21
    made.train()
    with pytest.raises(InvalidValue, match="unit_column='writer' is no column of the data set, which has"):
        trainer(tmp_path, claim(unit_column="writer"), records=table)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_records_per_unit": 6}, {"column": "author", "drawn": "record", "max_records": 6, "rule": "refuse"}),
        (WHOLE, {"column": "author", "drawn": "unit", "records_of_a_step": 6, "reduction": "mean"}),
        ({"unit_column": None}, {"column": None, "drawn": "record", "max_records": 1, "rule": "assumed"}),
    ],
)
def test_the_record_beside_the_model_says_how_units_were_told(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = trainer(tmp_path, claim(**changes))
    made.train()
    made.save_model(str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["units"] == expected


def test_forward_only_training_draws_units_and_holds_the_bound(tmp_path: Path) -> None:
    zeroth = ZerothOrderArguments(run_key="test")
    args = arguments(tmp_path, max_steps=2, learning_rate=1e-3)
    common: dict[str, Any] = {
        "zeroth_order": zeroth, "train_dataset": OWNED,
        "data_collator": lambda rows: pad_tokens([r["input_ids"] for r in rows], length=8),
    }  # fmt: skip
    with pytest.raises(InvalidValue, match="one author has 6 records, above max_records_per_unit=3"):
        ZOTrainer(model(), args, privacy=claim(max_records_per_unit=3), **common)
    made = ZOTrainer(model(), args, privacy=claim(**WHOLE), sampler=ScriptedSampler([[0, 6], [2]]), **common)
    made.train()
    assert made.ledger.stages[0].sampling_probability == 2 / 7
    made.save_model(str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["units"]["drawn"] == "unit"


PAIRS = [
    {"prompt": "abc"[: 1 + i % 3], "chosen": "de" + "f" * (i % 3), "rejected": "gh", "rater": f"r{i // 2}"}
    for i in range(24)
]


def preferring(folder: Path, privacy: PrivacyArguments, **more: Any) -> DPPreferenceTrainer:
    tokenizer: Any = Letters()
    tokenizer.pad_token_id = 1
    kwargs = {"train_dataset": PAIRS, **more}
    return DPPreferenceTrainer(
        model(), arguments(folder, max_steps=3), privacy=privacy, processing_class=tokenizer, max_length=16, **kwargs
    )


def test_preferences_train_privately_from_columns_of_texts(tmp_path: Path) -> None:
    made = preferring(tmp_path, claim(unit="pair", unit_column=None), sampler=ScriptedSampler([[0, 1, 5], [], [2]]))
    made.save_model = lambda *args, **kwargs: None  # type: ignore[method-assign]  # letters cannot be saved
    made.train()
    assert made.private_step is not None and made.private_step.norms.shape == (1,)
    assert made.ledger.steps == 3
    accuracy = made.reward_accuracy(PAIRS[:6], reference=model())
    assert 0 <= accuracy <= 1


def test_raters_are_units_of_pairs(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="one rater has 2 records, above max_records_per_unit=1"):
        preferring(tmp_path, claim(unit="rater", unit_column="rater"))
    whole = claim(unit="rater", unit_column="rater", **{**WHOLE, "public_size": 12})
    made = preferring(tmp_path, whole, sampler=ScriptedSampler([[0, 3], [], [11]]))
    made.save_model = lambda *args, **kwargs: None  # type: ignore[method-assign]
    made.train()
    assert made.private_step is not None and made.private_step.norms.shape == (1,)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"loss_type": "aot"}, PrivacyRefusal, "loss_type='aot' sorts the margins"),
        ({"eval_dataset": PAIRS}, PrivacyRefusal, "eval_dataset would be scored as texts"),
        ({"data_collator": collate}, InvalidValue, "data_collator follows from the pairs"),
        ({"train_dataset": [{"prompt": "a", "chosen": "b"}]}, InvalidValue, "pair 0 has 'None' in 'rejected'"),
    ],
)
def test_what_is_no_preference_run_is_refused(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        preferring(tmp_path, claim(unit="pair", unit_column=None), **options)


def test_a_plan_carries_its_units() -> None:
    plan = claim(**WHOLE, unit_reduction="sum").plan(max_steps=3)
    assert plan.draws_units and plan.unit_reduction == "sum" and dataclasses.replace(plan, steps=9).draws_units
