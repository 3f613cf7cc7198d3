"""DPTrainer in two processes: whole copies, shards of the user's own, and shards that accelerate makes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.storage.journal import read_ledger
from dpaudit.trainers.distributed.shards import whole as value
from dpaudit.trainers.huggingface.processes import refuse_engines
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from tests.trainers.distributed.processes import shard, together
from tests.trainers.huggingface.test_observed import canaries_of, trainer_of
from tests.trainers.huggingface.test_trainer import DRAWS, N, arguments, model, trainer

HOW = ("copies", "shards", "accelerate")


def whole(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def alone(path: Path) -> dict[str, torch.Tensor]:
    net = model()
    trainer(path, net, sampler=ScriptedSampler(DRAWS), noise=NoNoise()).train()
    return whole(net)


def as_a_gpu_would_be(one: Any) -> None:
    """Switch FSDP2 on as the launcher does: accelerate refuses it on a CPU, where the same code runs."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    state = one.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["GPT2Block"],
        cpu_ram_efficient_loading=False, cpu_offload=False, state_dict_type="FULL_STATE_DICT",
    )  # fmt: skip
    one.is_fsdp_enabled = True
    refuse_engines(one)


def launched(rank: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29400",
    )  # fmt: skip


def make(rank: int, path: Path, how: str, draws: list[list[int]], **changes: Any) -> Any:
    net = shard(model(), "blocks") if how == "shards" else model()
    own = ScriptedSampler([[i for i in draw if i % 2 == rank] for draw in draws])
    one = trainer(path, net, arguments(path, **changes), sampler=own, noise=NoNoise())
    if how == "accelerate":
        as_a_gpu_would_be(one)
    return one


def trained(rank: int, path: Path, how: str) -> dict[str, Any]:
    launched(rank)
    one = make(rank, path, how, DRAWS)
    one.train()
    one.save_model(str(path / "out"))
    return {"counted": one.ledger.steps, "losses": len(one.private_logs)}


@pytest.mark.parametrize(
    "how", ["copies", *(pytest.param(how, marks=pytest.mark.slow) for how in HOW if how != "copies")]
)
def test_two_processes_save_the_model_of_one(tmp_path, how):
    expected = alone(tmp_path / "alone")
    found = together(2, tmp_path / "work", trained, tmp_path / how, how)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / how / "out")
    for name, p in saved.named_parameters():
        assert torch.allclose(p, expected[name], rtol=1e-5, atol=1e-6), name
    assert [one["counted"] for one in found] == [5, 5]
    assert read_ledger(tmp_path / how / "privacy" / "ledger.jsonl").steps == 5
    record = json.loads((tmp_path / how / "out" / "privacy.json").read_text())
    assert record["ledger"]["stages"][0]["steps"] == 5 and record["status"] == "test"
    weights = (tmp_path / how / "out" / "model.safetensors").read_bytes()
    assert record["weights"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}


def watched(rank: int, path: Path, how: str) -> Any:
    launched(rank)
    sharding = {"shards": "blocks", "groups": "accelerate"}.get(how)
    net = model() if sharding is None else shard(model(), sharding)
    mine = [[i for i in draw if (rank == 0 if i >= N else i % 2 == rank)] for draw in WITH_CANARIES]
    canaries = canaries_of(model())
    sampler = ScriptedSampler(mine, n_records=N + canaries.members)
    one = trainer_of(path, model=net, in_run=canaries, sampler=sampler, noise=NoNoise())
    if how == "accelerate":
        as_a_gpu_would_be(one)
    one.train()
    weights = {n: value(p).clone() for n, p in one.model.named_parameters()}
    record = None if one.recorder is None else one.recorder.state()
    return weights, one._in_run.steps, one._in_run.scores(), record


WITH_CANARIES = [[0, 1, N + 3, N + 7], [2], [N + 3, 5], [], [N]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copies", "shards", "groups", "accelerate"])
def test_the_first_process_draws_and_scores_in_run_canaries(tmp_path, how):
    """With shards their owners add and read for it."""
    sampler = ScriptedSampler(WITH_CANARIES, n_records=N + canaries_of(model()).members)
    alone = trainer_of(tmp_path / "alone", sampler=sampler, noise=NoNoise())
    alone.train()
    first, second = together(2, tmp_path / "work", watched, tmp_path / how, how)
    for name, p in whole(alone.model).items():
        assert torch.allclose(first[0][name], p, rtol=1e-5, atol=1e-6) and torch.equal(first[0][name], second[0][name])
    assert (first[1], second[1]) == (5, 0)
    assert np.allclose(first[2], alone._in_run.scores(), rtol=1e-4) and second[3] is None
    expected = alone.recorder.state()
    for key in ("step_squares", "block_squares", "probe_squares", "lagged", "within"):
        np.testing.assert_allclose(first[3][key], expected[key], rtol=1e-4, atol=1e-6)
    kept = torch.load(tmp_path / how / "_private" / "in_run-4.pt", weights_only=True)
    assert kept["canaries"]["steps"] == 4 and len(kept["recorder"]["step_squares"]) == 4


class Crash(ScriptedSampler):
    """Draws that end in a crash of the process."""

    def draw(self) -> Any:
        drawn = next(self._draws, None)
        if drawn is None:
            raise RuntimeError("crash")
        return torch.tensor(drawn, dtype=torch.int64).numpy()


def half(rank: int, path: Path, how: str) -> None:
    launched(rank)
    one = make(rank, path, how, DRAWS[:2], save_strategy="steps", save_steps=2)
    one._given_sampler = Crash([[i for i in draw if i % 2 == rank] for draw in DRAWS[:2]])
    with pytest.raises(RuntimeError, match="crash"):
        one.train()


def rest(rank: int, path: Path, how: str) -> int:
    launched(rank)
    one = make(rank, path, how, DRAWS[2:], save_strategy="steps", save_steps=2)
    one.train(resume_from_checkpoint=True)
    one.save_model(str(path / "out"))
    return one.ledger.steps


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_resume_goes_on_with_weights_moments_and_ledger(tmp_path, how):
    expected = alone(tmp_path / "alone")
    together(2, tmp_path / "half", half, tmp_path / how, how)
    assert together(2, tmp_path / "rest", rest, tmp_path / how, how) == [5, 5]
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / how / "out")
    for name, p in saved.named_parameters():
        assert torch.allclose(p, expected[name], rtol=1e-5, atol=1e-6), name


def refused(rank: int, path: Path) -> list[str]:
    launched(rank)
    found = []
    for changes in ({"sampling": "truncated_poisson", "max_batch": 12}, {}):
        import dataclasses

        from tests.trainers.huggingface.test_trainer import PLAN

        try:
            trainer(path, model(), plan=dataclasses.replace(PLAN, **changes)).train()
        except PrivacyRefusal as error:
            found.append(str(error))
    return found


def test_refusals_reach_all_processes(tmp_path):
    (tmp_path / "run" / "privacy").mkdir(parents=True)
    trainer(tmp_path / "run").train()
    for found in together(2, tmp_path / "work", refused, tmp_path / "run"):
        assert "would need the processes to agree on a draw" in found[0]
        assert "already holds a ledger" in found[1]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"fsdp_version": 1}, "fsdp_version: 2"),
        ({"activation_checkpointing": True}, "gradient_checkpointing=True"),
    ],
)
def test_engines_are_refused_with_the_remedy(changes, words):
    class Of:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    plugin = Of(**{"fsdp_version": 2, "activation_checkpointing": False, "cpu_offload": None, **changes})
    one = Of(accelerator=Of(state=Of(fsdp_plugin=plugin)), args=Of())
    with pytest.raises(PrivacyRefusal, match=words):
        refuse_engines(one)
