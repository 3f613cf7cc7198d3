import functools
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import NoiseSource, OptimizerSettings, train
from dpaudit.trainers.distributed.replicated import ShardSampler, distributed_options
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from tests import ROOT
from tests.trainers.distributed.processes import together
from tests.trainers.test_loop import collate, linear_plan, linear_problem, loss_fn

DRAWS = [[0, 1, 2, 5], [3], [], [4, 6, 7]]  # empty for one process in the second step, for both in the third
ADAPTIVE = dict(clipping="adaptive", quantile_sigma=4.0)


def noise():
    return NoiseSource(generator=torch.Generator().manual_seed(11))


def one_process(**changes):
    model, records = linear_problem()
    train(
        model,
        records,
        linear_plan(**changes),
        collate=collate,
        loss_fn=loss_fn,
        journal=MemoryJournal(),
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0),
        sampler=ScriptedSampler(DRAWS),
        noise=noise(),
    )
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def one_of_two(rank, folder, changes):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, records = linear_problem(seed=rank)  # rank 1 starts elsewhere and must be brought in line
    if rank == 1:
        _, records = linear_problem(seed=0)
    plan = linear_plan(**changes)
    options = distributed_options(model, plan, len(records), journal=MemoryJournal())
    assert options["reduction"].adds_noise is options["reduction"].leads is (rank == 0)
    options["sampler"] = ScriptedSampler([[i for i in draw if i % 2 == rank] for draw in DRAWS])
    result = train(
        model,
        records,
        plan,
        collate=collate,
        loss_fn=loss_fn,
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0),
        noise=noise(),
        **options,
    )
    assert result.stage == plan.stage(4)  # the global q and L in every process's ledger
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), f"{folder}/weights{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("changes", [{}, ADAPTIVE], ids=["flat", "adaptive"])
def test_two_processes_make_the_update_of_one(tmp_path, changes):
    expected = one_process(**changes)  # first, so that the forked workers inherit what torch imports lazily
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_of_two, args=(rank, tmp_path, changes)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = [torch.load(tmp_path / f"weights{rank}") for rank in range(2)]
    assert torch.equal(*found)
    assert torch.allclose(found[0], expected, atol=1e-6)


OWNERS = ["ann", "bob", "ann", "cyd", "bob", "dan", "ann", "cyd"] + ["eve"] * 32


def units_of_two(rank):
    model, records = linear_problem()
    plan = linear_plan(
        sampling="none", public_size=5, expected_batch_size=5, sampling_unit="unit", records_per_unit=3, steps=1,
        noise_multiplier=0.0,
    )  # fmt: skip
    train_ = functools.partial(
        train, model, records, plan, collate=collate, loss_fn=loss_fn, units=OWNERS,
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0), physical_batch_size=2, noise=NoNoise(),
    )  # fmt: skip
    with pytest.raises(InvalidValue, match=r"the sampler draws from 40 and the plan from 5; .* units=units"):
        train_(**distributed_options(model, plan, len(records), journal=MemoryJournal()))
    options = distributed_options(model, plan, len(records), journal=MemoryJournal(), units=OWNERS)
    seen = []
    train_(callback=lambda report: seen.append(report.private.indices), **options)
    return seen[0], torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
def test_all_records_of_a_unit_are_in_one_process_and_clipped_as_one(tmp_path):
    (first, weights), (second, others) = together(2, tmp_path, units_of_two)
    assert torch.equal(weights, others)
    owners = [{OWNERS[i] for i in rows} for rows in (first, second)]
    assert not owners[0] & owners[1] and owners[0] | owners[1] == set(OWNERS)
    assert sorted(i for i in (*first, *second) if OWNERS[i] != "eve") == list(range(8))
    model, records = linear_problem()
    total = torch.zeros(4)
    for owner in sorted(set(OWNERS)):
        rows = [i for i in (*first, *second) if OWNERS[i] == owner]
        losses = loss_fn(model, collate([records[i] for i in rows]))
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), list(model.parameters()))])
        total += flat * min(1.0, 0.5 / float(flat.norm()))
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(start - weights, total / 5, atol=1e-6)


TORCHRUN = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {root!r})
from dpaudit import MemoryJournal
from dpaudit.trainers import OptimizerSettings, train
from dpaudit.trainers.distributed.replicated import distributed_options
from tests.trainers.test_loop import collate, linear_plan, loss_fn
dist.init_process_group("gloo")
model = torch.nn.Linear(40, 50)
records = [(torch.zeros(40), torch.zeros(50))] * 40
plan = linear_plan(noise_multiplier=2.0, steps=40, expected_batch_size=10)
before = [torch.zeros(0)]
moves = []
def callback(report):
    moves.append(torch.cat([t.flatten() for t in report.released]))
journal = MemoryJournal()
train(model, records, plan, collate=collate, loss_fn=lambda m, b: m(b["x"]).sum(1) * 0, callback=callback,
      optimizer=OptimizerSettings(algorithm="sgd"), preflight=False,  # the loss is 0, so that noise alone is left
      **distributed_options(model, plan, 40, journal=journal))
moves = torch.stack(moves)
other = [torch.empty_like(moves) for _ in range(2)]
dist.all_gather(other, moves)
assert torch.equal(*other)
assert abs(float(moves.std()) / (2.0 * 0.5 / 10) - 1) < 0.02, float(moves.std())
if dist.get_rank() == 0:
    assert journal.ledger_stages() == (plan.stage(40),)
    print("noise once, at the right scale")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_torchrun_adds_noise_once_at_the_right_scale(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(TORCHRUN.format(root=str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
    )
    assert "noise once" in done.stdout, done.stderr[-2000:]


def test_shards_partition_the_records_and_keep_the_global_q():
    drawn = [np.concatenate([ShardSampler(101, 0.2, rank=r, world=3).draw() for r in range(3)]) for _ in range(600)]
    assert all(len(set(d)) == len(d) and (len(d) == 0 or max(d) < 101) for d in drawn)
    sizes = np.array([len(d) for d in drawn])
    assert sizes.mean() == pytest.approx(20.2, abs=5 * np.sqrt(16.16 / 600))
    assert sizes.var() == pytest.approx(16.16, rel=0.3)
    assert sorted(i for r in range(3) for i in ShardSampler(101, 1.0, rank=r, world=3).draw()) == list(range(101))


def test_canaries_are_drawn_by_one_process_with_the_global_q():
    samplers = [ShardSampler(11, 0.3, rank=r, world=2, canaries=400 if r == 0 else 0) for r in range(2)]
    assert [s.n_records for s in samplers] == [411, 11]
    first, second = ([s.draw() for _ in range(200)] for s in samplers)
    assert all((np.diff(d) > 0).all() for d in first)
    assert {int(i) for d in first for i in d if i < 11} == {0, 2, 4, 6, 8, 10}
    assert {int(i) for d in second for i in d} == {1, 3, 5, 7, 9}
    canaries = np.concatenate([d[d >= 11] for d in first])
    assert canaries.max() == 410 and len(canaries) == pytest.approx(0.3 * 400 * 200, abs=5 * np.sqrt(0.21 * 400 * 200))


def test_refusals():
    model, records = linear_problem()
    with pytest.raises(PrivacyRefusal, match="torchrun"):
        distributed_options(model, linear_plan(), 40, journal=MemoryJournal())
    with pytest.raises(PrivacyRefusal, match="DataParallel"):
        train(
            nn.DataParallel(model),
            records,
            linear_plan(),
            collate=collate,
            loss_fn=loss_fn,
            journal=MemoryJournal(),
        )

    class FSDPModule:
        """What torch's fully_shard mixes into a module's class."""

    class Sharded(FSDPModule, nn.Linear):
        pass

    with pytest.raises(PrivacyRefusal, match=r"pass .*distributed_options"):
        train(Sharded(3, 1), records, linear_plan(), collate=collate, loss_fn=loss_fn, journal=MemoryJournal())
