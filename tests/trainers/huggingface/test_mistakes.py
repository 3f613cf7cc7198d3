"""Mistakes that newcomers made in Python, and the one sentence that answers each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening, GPT2Config, GPT2LMHeadModel, TrainingArguments

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import DpauditError
from dpaudit.trainers import (
    DPTrainer,
    GhostClipping,
    PrivacyArguments,
    PrivacyPlan,
    causal_lm_losses,
    pad_tokens,
    train,
)

pytestmark = pytest.mark.slow

RECORDS = [{"input_ids": [3 + i % 50, 5, 7, 9], "labels": [3 + i % 50, 5, 7, 9]} for i in range(40)]
PRIVACY: dict[str, Any] = {
    **{"delta": 1e-3, "relation": "add_or_remove_one", "sampling": "poisson", "unit": "r", "public_size": 40},
    **{"expected_batch_size": 8, "clipping_norm": 0.1, "noise_multiplier": 1.0},
}
ARGUMENTS: dict[str, Any] = {"max_steps": 2, "use_cpu": True, "report_to": [], "save_strategy": "no"}


def net() -> GPT2LMHeadModel:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 64, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0))


def frozen() -> GPT2LMHeadModel:
    return net().requires_grad_(False)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return pad_tokens([row["input_ids"] for row in rows])


def without_labels(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in collate(rows).items() if key != "labels"}


def in_windows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: value.repeat(2, 1) for key, value in collate(rows).items()}


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(RECORDS)


def fit(out: Path, *, arguments: Any = (), privacy: Any = (), resume: bool = False, **given: Any) -> Any:
    args = TrainingArguments(output_dir=str(out), **(ARGUMENTS | dict(arguments)))
    options = {"model": net(), "train_dataset": RECORDS, "data_collator": collate} | given
    trainer = DPTrainer(args=args, privacy=PrivacyArguments(**(PRIVACY | dict(privacy))), **options)
    return trainer.train(resume_from_checkpoint=True) if resume else trainer.train()


TRAINER: dict[str, tuple[dict[str, Any], str]] = {
    "batch above data": (
        {"privacy": {"expected_batch_size": 500}},
        "expected_batch_size=500 must be <= public_size=40",
    ),
    "sigma and target": (
        {"privacy": {"target_epsilon": 3.0, "noise_multiplier": 0.3}},
        "above target_epsilon=3; raise noise_multiplier (or leave it out to calibrate)",
    ),
    "gradient accumulation": (
        {"arguments": {"gradient_accumulation_steps": 4}},
        "cannot be used in private training: one Poisson draw is one step here; set 1",
    ),
    "fp16 weights": ({"model": lambda: net().half()}, "is float16, which needs a gradient scaler"),
    "no labels": ({"data_collator": without_labels}, "has no 'labels' for a per-example loss; let the collator add"),
    "a stream": ({"train_dataset": Stream()}, "materialise the stream first"),
    "packing": (
        {"data_collator": DataCollatorWithFlattening(), "arguments": {"per_device_train_batch_size": 2}},
        "where each record must have exactly one row and one loss",
    ),
    "windows": ({"data_collator": in_windows}, "the collator repeats rows or cuts a record into overflow windows"),
    "torch.compile": ({"model": lambda: torch.compile(net())}, "is compiled by torch.compile, which hides layers"),
    "DataParallel": ({"model": lambda: torch.nn.DataParallel(net())}, "is wrapped by DataParallel, which adds"),
    "adafactor": ({"arguments": {"optim": "adafactor"}}, "choose adamw_torch or sgd"),
    "best model": (
        {
            "arguments": {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "eval_dataset": RECORDS,
        },
        "choosing by private records is not free; set False",
    ),
    "clipping misspelt": ({"privacy": {"clipping": "flatt"}}, "choose one of adaptive, automatic, flat, per_layer"),
    "everything frozen": ({"model": frozen}, "0 trainable parameters and needs at least one"),
}


@pytest.mark.parametrize("name", TRAINER)
def test_a_wrong_trainer_is_one_sentence(tmp_path: Path, name: str) -> None:
    given, sentence = TRAINER[name]
    if callable(given.get("model")):
        given = given | {"model": given["model"]()}
    with pytest.raises(DpauditError) as caught:
        fit(tmp_path, **given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_low_precision_runs(tmp_path: Path) -> None:
    assert fit(tmp_path, arguments={"bf16": True}).metrics["steps_counted"] == 2


def test_no_arguments_are_one_sentence() -> None:
    with pytest.raises(DpauditError, match="args=None must be TrainingArguments"):
        DPTrainer(net(), None, privacy=PrivacyArguments(**PRIVACY))


def test_an_output_folder_is_used_once(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(DpauditError, match=r"already holds a ledger; call train\(resume_from_checkpoint=True\)"):
        fit(tmp_path)


def test_a_finished_run_and_a_changed_one_do_not_go_on(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    fit(tmp_path, arguments=saving)
    with pytest.raises(DpauditError, match=r"clipping_norm differs from the checkpoint's plan \(0\.1\)"):
        fit(tmp_path, arguments=saving, privacy={"clipping_norm": 0.5}, resume=True)
    with pytest.raises(DpauditError, match="already holds 2 of 2 planned steps"):
        fit(tmp_path, arguments=saving, resume=True)


def clipped(model: torch.nn.Module, *shape: int, loss: Callable[[Any], Any]) -> None:
    with GhostClipping(model, max_grad_norm=1.0) as clipper:
        clipper.backward(loss(model(torch.randn(*shape))))


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


def squares(out: torch.Tensor) -> torch.Tensor:
    return out.flatten(1).square().sum(1)


def past_the_clipper() -> None:
    model = torch.nn.Linear(4, 4)
    with GhostClipping(model, max_grad_norm=1.0):
        model(torch.randn(5, 4)).sum().backward()


def without_noise() -> None:
    plan = PrivacyPlan(**(PRIVACY | {"noise_multiplier": None}), steps=2, target_epsilon=3.0)
    rows = [row["input_ids"] for row in RECORDS]
    train(net(), rows, plan, collate=pad_tokens, loss_fn=lambda m, b: causal_lm_losses(m, **b), journal=MemoryJournal())


STEPS: dict[str, tuple[Callable[[], None], str]] = {
    "batch norm": (
        lambda: clipped(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)), 5, 4, loss=squares),
        "BatchNorm1d, which normalises over the batch",
    ),
    "LSTM": (lambda: clipped(Recurrent(), 3, 5, 4, loss=squares), "has no per-example rule; freeze it"),
    "mean loss": (
        lambda: clipped(torch.nn.Linear(4, 4), 5, 4, loss=lambda out: out.square().mean()),
        "must be (B,), one loss per example; do not average over the batch",
    ),
    "loss.backward": (past_the_clipper, "was differentiated outside GhostClipping.backward"),
    "not calibrated": (without_noise, "must be a number before training; calibrate the plan first"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_wrong_step_is_one_sentence(name: str) -> None:
    step, sentence = STEPS[name]
    with pytest.raises(DpauditError) as caught:
        step()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
