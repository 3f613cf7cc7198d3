"""ZOTrainer: Hugging Face's conventions around the zeroth-order loop."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, HfArgumentParser, TrainerCallback, TrainingArguments

from dpaudit import DpauditError, InvalidValue, PrivacyRefusal
from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries
from dpaudit.storage.journal import read_ledger
from dpaudit.trainers.distributed.shards import gather_nothing, local, whole
from dpaudit.trainers.huggingface.arguments import PrivacyArguments
from dpaudit.trainers.huggingface.zo_trainer import ZerothOrderArguments, ZOTrainer
from dpaudit.trainers.zeroth_order.log import Release, read_zo_log
from dpaudit.trainers.zeroth_order.weights import replay
from tests.trainers.distributed.processes import shard, together
from tests.trainers.huggingface.test_processes import as_a_gpu_would_be
from tests.trainers.zeroth_order.zo_helpers import tiny_gpt, token_records

PRIVACY = PrivacyArguments(
    delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=24,
    expected_batch_size=6, clipping_norm=5.0, noise_multiplier=1.0,
)  # fmt: skip
ZEROTH = ZerothOrderArguments(run_key="r", directions=2, stages=2, scale=1e-3, proximal=0.1)
ROWS = [{"input_ids": row} for row in token_records(24)]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def arguments(path: Path, **changes: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(path), "max_steps": 6, "learning_rate": 0.01, "per_device_train_batch_size": 8,
        "report_to": [], "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**{**values, **changes})


def trainer(path: Path, *, model: Any = None, **options: Any) -> ZOTrainer:
    changes = options.pop("arguments", {})
    return ZOTrainer(
        tiny_gpt() if model is None else model, arguments(path, **changes),
        privacy=options.pop("privacy", PRIVACY), zeroth_order=options.pop("zeroth_order", ZEROTH),
        data_collator=collate, train_dataset=ROWS, **options,
    )  # fmt: skip


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_run_writes_its_ledger_log_and_model(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.train()
    one.save_model()
    ledger = read_ledger(tmp_path / "privacy" / "ledger.jsonl")
    assert ledger.steps == 6
    assert one.ledger.steps == 6 and one.status == "completed"
    record = json.loads((tmp_path / "privacy.json").read_text())
    assert record["ledger"] == one.ledger.to_dict() and record["deviations"] == []
    assert all(s["releases_per_step"] == 2 and s["clip"] == "joint" for s in record["ledger"]["stages"])
    assert (tmp_path / "model.safetensors").exists()
    assert same(one.model, replay(read_zo_log(tmp_path / "privacy" / "zo_log.jsonl"), tiny_gpt()))


def test_private_losses_stay_out_of_the_logs(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.train()
    assert len(one.private_logs) == 6
    assert all(not any("loss" in key for key in row) for row in one.state.log_history)
    told = trainer(tmp_path / "told", privacy=dataclasses.replace(PRIVACY, allow_nonprivate_logs=True))
    told.train()
    assert any("loss" in row for row in told.state.log_history)


class Stop(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= 3
        return control


def test_a_resume_replays_the_log_and_continues_the_ledger(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[Stop()]).train()
    again = trainer(tmp_path)
    assert again.train(resume_from_checkpoint=True).global_step == 6
    assert again.ledger.steps == 6
    log = read_zo_log(tmp_path / "privacy" / "zo_log.jsonl")
    assert log.steps == 6
    assert same(again.model, replay(log, tiny_gpt()))
    with pytest.raises(PrivacyRefusal, match="complete"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_every_release_is_on_record_and_a_resume_shows_all_of_them_again(tmp_path: Path) -> None:
    def canaries() -> ScalarInRunCanaries:
        return ScalarInRunCanaries(
            np.arange(12) % 2 == 0, 7, sampling_probability=0.25, noise_multiplier=1.0, releases_per_step=2,
            clip="joint",
        )  # fmt: skip

    trainer(tmp_path, callbacks=[Stop()], in_run=canaries()).train()
    again = trainer(tmp_path, in_run=(seen := canaries()))
    again.train(resume_from_checkpoint=True)
    values = [e.values for e in read_zo_log(tmp_path / "privacy" / "zo_log.jsonl").entries if isinstance(e, Release)]
    # by hand: normalised means times L over σC; L = 6 is the expected batch
    by_hand = [(np.asarray(v) * 6.0 / 5.0) ** 2 for v in values]
    assert again.recorder is not None
    np.testing.assert_allclose(again.recorder.state()["step_squares"], np.sum(by_hand, axis=1), rtol=1e-12)
    afresh = canaries()
    for step, released in enumerate(values):
        afresh.observe(step, released, clipping_norm=5.0, normaliser=6.0)
    assert seen.steps == 6 and np.array_equal(seen.scores(), afresh.scores())
    with pytest.raises(InvalidValue, match="already seen 6 releases"):
        trainer(tmp_path / "other", in_run=seen).train()


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(PrivacyRefusal, match="already holds a ledger"):
        trainer(tmp_path).train()


@pytest.mark.parametrize("change", [{"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}])
def test_arguments_that_break_the_claim_are_refused_as_in_dp_trainer(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefusal, match=next(iter(change))):
        trainer(tmp_path, arguments=change)


def test_a_target_epsilon_is_calibrated_for_all_stages_together(tmp_path: Path) -> None:
    from dpaudit.accounting import epsilon_upper

    wanted = dataclasses.replace(PRIVACY, noise_multiplier=None, target_epsilon=3.0)
    one = trainer(tmp_path, privacy=wanted)
    assert epsilon_upper(one.plan.ledger(), delta=1e-3) <= 3.0
    assert len({stage.plan.noise_multiplier for stage in one.plan.stages}) == 1


def test_arguments_parse_from_a_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser([ZerothOrderArguments, PrivacyArguments])  # type: ignore[arg-type]
    zeroth, privacy = parser.parse_args_into_dataclasses(
        "--run_key k --directions 16 --keep 0.01 --delta 1e-5 --relation zero_out --sampling poisson --unit user"
        " --public_size 100 --expected_batch_size 10 --clipping_norm 1".split()
    )
    assert zeroth.directions == 16 and zeroth.mask().keep == 0.01 and privacy.unit == "user"


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_compiled_and_wrapped_models_are_refused_before_columns_are_dropped(wrap: Any, tmp_path: Path) -> None:
    with pytest.raises(DpauditError, match=r"compiled by torch\.compile|wrapped by DataParallel"):
        trainer(tmp_path, model=wrap(tiny_gpt()))
    late = trainer(tmp_path)
    late.model = wrap(late.model)
    with pytest.raises(DpauditError, match=r"compiled by torch\.compile|wrapped by DataParallel"):
        late.train()
    assert not (tmp_path / "privacy" / "ledger.jsonl").exists()


def made(path: Path, how: str, **changes: Any) -> ZOTrainer:
    """A trainer of whole copies, of shards of the user's own, or of those that accelerate makes."""
    one = trainer(path, model=shard(tiny_gpt(), "blocks") if how == "shards" else None, **changes)
    if how == "accelerate":
        as_a_gpu_would_be(one)
    return one


def launched(rank: int, path: Path, steps: list[int], *, how: str = "copies", other: bool = False) -> Any:
    """One of two processes of the same run; ``other``: the second has its records in another order."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true", MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29400",
    )  # fmt: skip
    one = made(path, how)
    if other and rank:
        one.train_dataset = list(reversed(ROWS))
    try:
        for at, stop in enumerate(steps):
            one.add_callback(StopAt(stop))
            one.train(resume_from_checkpoint=at > 0)
            one = made(path, how) if at + 1 < len(steps) else one
    except DpauditError as error:
        return str(error)
    one.save_model(str(path / "out"))
    gather_nothing(one.model)
    held = sum(local(p).numel() for p in one.model.parameters())
    return {"weights": [whole(p) for p in one.model.parameters()], "steps": one.ledger.steps, "held": held}


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self._step
        return control


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copies", "shards", "accelerate"])
def test_two_processes_write_one_ledger_and_a_log_that_replays_on_one(how: str, tmp_path: Path) -> None:
    first, second = together(2, tmp_path / "work", partial(launched, how=how), tmp_path / "run", [2, 6])
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    size = sum(p.numel() for p in tiny_gpt().parameters())
    assert first["held"] + second["held"] == (2 * size if how == "copies" else size)
    log = read_zo_log(tmp_path / "run" / "privacy" / "zo_log.jsonl")
    assert log.steps == 6 and read_ledger(tmp_path / "run" / "privacy" / "ledger.jsonl").steps == 6
    replayed = replay(log, tiny_gpt())
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], replayed.parameters(), strict=True))
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "run" / "out")
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], saved.parameters(), strict=True))
    record = json.loads((tmp_path / "run" / "out" / "privacy.json").read_text())
    assert sum(stage["steps"] for stage in record["ledger"]["stages"]) == 6


@pytest.mark.slow
def test_processes_with_records_in_another_order_are_refused(tmp_path: Path) -> None:
    """A record at two places of two processes would be drawn twice and count double."""
    for told in together(2, tmp_path / "work", partial(launched, other=True), tmp_path / "run", [6]):
        assert "different records, another order of them" in told
