"""In-run canaries and the energy record beside shards say what they say in one process that holds the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dpaudit import MemoryJournal
from dpaudit.attacks.canaries.in_run import InRunCanaries, InRunDesign
from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.distributed.replicated import distributed_options
from dpaudit.trainers.distributed.shards import first_coordinate, is_first_replica, local
from dpaudit.trainers.distributed.watched import CanariesOfShards, RecorderOfShards
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.witness import ReleaseRecorder
from tests.trainers.distributed.processes import together
from tests.trainers.distributed.test_sharded_training import SlicedNoise, plan, run, sharded, small_model

SIZES = {name: p.numel() for name, p in small_model().named_parameters()}
DIMENSION = sum(SIZES.values())
N = 16
DRAWS = [[0, 1, 2, 5, N, N + 3, N + 7], [3], [N + 3, N + 1], [4, 6, 8, 9, N]]


def canaries_of() -> InRunCanaries:
    """A canary on every second coordinate: in all parameters and shards."""
    coordinates = np.arange(0, DIMENSION, 2)
    coins = np.random.default_rng(0).random(len(coordinates)) < 0.5
    return InRunCanaries(
        InRunDesign(coordinates, coins, DIMENSION), list(SIZES.values()), sampling_probability=0.25, contribution=0.5
    )


def releases() -> list[list[torch.Tensor]]:
    """The same in every process: three releases of whole tensors."""
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(p.shape, generator=generator) for p in small_model().parameters()] for _ in range(3)]


def part(whole: torch.Tensor, parameter: Any) -> torch.Tensor:
    start = first_coordinate(parameter)
    return whole.reshape(-1)[start : start + local(parameter).numel()].clone().view(local(parameter).shape)


def by_hand(rank: int, shape: tuple[int, ...], probe: int) -> Any:
    names = ("replicas", "shards")[-len(shape) :]
    parameters: list[Any] = list(sharded(init_device_mesh("cpu", shape, mesh_dim_names=names)).parameters())
    own = canaries_of() if rank == 0 else None
    canaries = CanariesOfShards(parameters, own)
    recorder = ReleaseRecorder(SIZES, probe=probe)
    watching = RecorderOfShards(parameters, recorder if rank == 0 else None)
    sums = [torch.zeros(local(p).shape) for p in parameters]
    canaries.add_to(sums, [0, 5, canaries.members - 1] if rank == 0 else [])
    for whole in releases():
        shards = [part(tensor, p) for tensor, p in zip(whole, parameters, strict=True)]
        canaries.observe(shards, deviation=0.65, normaliser=4.0)
        watching.observe(shards, 0.65 / 4)
    added = [torch.zeros(p.numel()) for p in parameters]
    for p, own_sum, total in zip(parameters, sums, added, strict=True):
        if is_first_replica(p):
            start = first_coordinate(p)
            total[start : start + own_sum.numel()] = own_sum.reshape(-1)
        else:
            assert not own_sum.any()
        dist.all_reduce(total)
    return torch.cat(added), None if own is None else own.scores(), recorder.state()


@pytest.mark.parametrize(
    "shape, probe",
    [
        ((2,), 2**22),
        pytest.param((3,), 20, marks=pytest.mark.slow),
        pytest.param((2, 2), 20, marks=pytest.mark.slow),
    ],
)
def test_shards_add_and_read_what_one_process_does(tmp_path, shape, probe):
    canaries, recorder = canaries_of(), ReleaseRecorder(SIZES, probe=probe)
    sums = [torch.zeros(p.shape) for p in small_model().parameters()]
    canaries.add_to(sums, [0, 5, canaries.members - 1])
    for whole in releases():
        canaries.observe(whole, deviation=0.65, normaliser=4.0)
        recorder.observe(whole, 0.65 / 4)
    found = together(int(np.prod(shape)), tmp_path, by_hand, shape, probe)
    for added, *_ in found:
        assert torch.equal(added, torch.cat([total.reshape(-1) for total in sums]))
    assert np.array_equal(found[0][1], canaries.scores())
    assert all(len(state["step_squares"]) == 0 for *_, state in found[1:])
    expected, seen = recorder.state(), found[0][2]
    for key in ("probe_squares", "lagged", "within", "sizes", "probe"):
        assert seen[key] == expected[key]  # the same numbers in the same order
    for key in ("step_squares", "block_squares"):
        np.testing.assert_allclose(seen[key], expected[key], rtol=1e-14)


def observed(canaries: InRunCanaries, recorder: ReleaseRecorder) -> dict[str, Any]:
    return {"scores": canaries.scores(), "steps": canaries.steps, **recorder.state()}


def trained(rank: int, changes: dict[str, Any]) -> Any:
    canaries, recorder, world = canaries_of(), ReleaseRecorder(SIZES), dist.get_world_size()
    model = sharded()
    options: Any = distributed_options(
        model, plan(**changes), N, journal=MemoryJournal(), canaries=canaries, recorder=recorder
    )
    mine = [[i for i in draw if (rank == 0 if i >= N else i % world == rank)] for draw in DRAWS]
    options["sampler"] = ScriptedSampler(mine, n_records=N + (canaries.members if rank == 0 else 0))
    noise = SlicedNoise(small_model(), counts=False, part=rank, parts=world)
    run(model, plan(**changes), "adamw", noise=noise, **options)
    return [p.full_tensor().detach() for p in model.parameters()], observed(canaries, recorder)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"clipping": "per_layer"}])
def test_a_sharded_run_is_watched_like_one_of_one_process(tmp_path, changes):
    """With noise of one seed, of which each process takes its rows."""
    canaries, recorder, model = canaries_of(), ReleaseRecorder(SIZES), small_model()
    run(
        model, plan(**changes), "adamw", journal=MemoryJournal(), canaries=canaries, recorder=recorder,
        sampler=ScriptedSampler(DRAWS, n_records=N + canaries.members), noise=SlicedNoise(model, counts=False),
    )  # fmt: skip
    expected = observed(canaries, recorder)
    assert expected["steps"] == 4
    first, second = together(2, tmp_path, trained, changes)
    for one, other, p in zip(first[0], second[0], model.parameters(), strict=True):
        assert torch.equal(one, other) and torch.allclose(one, p, rtol=1e-5, atol=1e-6)
    assert first[1]["steps"] == 4 and second[1]["steps"] == 0
    for key in ("scores", "step_squares", "block_squares", "probe_squares", "lagged", "within"):
        np.testing.assert_allclose(first[1][key], expected[key], rtol=1e-5, atol=1e-5)


class Blind:
    """Canaries that do not say where they are."""

    members = 1

    def add_to(self, sums: Any, drawn: Any, *, contribution: Any = None) -> None:
        raise AssertionError

    def observe(self, noisy_sums: Any, *, deviation: float, normaliser: float = 1.0, contribution: Any = None) -> None:
        raise AssertionError


def refusals(rank: int) -> list[str]:
    model, found = sharded(), []
    options: Any = distributed_options(model, plan(), N, journal=MemoryJournal())
    for watching in ({"canaries": canaries_of()}, {"recorder": ReleaseRecorder(SIZES)}):
        with pytest.raises(PrivacyRefusal) as error:
            run(model, plan(), "sgd", **options, **watching)
        found.append(str(error.value))
    with pytest.raises(PrivacyRefusal) as error:
        distributed_options(model, plan(), N, journal=MemoryJournal(), canaries=Blind() if rank == 0 else None)
    return [*found, str(error.value)]


@pytest.mark.slow
def test_observers_that_would_take_a_shard_for_the_whole_are_refused(tmp_path):
    for canaries, recorder, blind in together(2, tmp_path, refusals):
        assert "give them to distributed_options" in canaries and canaries == recorder
        assert "do not say which coordinates are theirs" in blind
