"""The published codes' faults, planted in our trainer: every check below passes as it is and fails with the fault in.

D1 to D8 and Z1 are the names of the reference; D2 and D3 are also refused by plan and sampler (see the loop's tests).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpaudit.privacy.stage import Clip
from dpaudit.trainers.noise import NoiseSource
from dpaudit.trainers.sampling import PoissonSampler, ScriptedSampler
from dpaudit.trainers.zeroth_order import pruning as _pruning
from dpaudit.trainers.zeroth_order import stages as _zo_stages
from dpaudit.trainers.zeroth_order import step as _zeroth_order
from dpaudit.trainers.zeroth_order import steps as _zo_steps
from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.log import Release
from dpaudit.trainers.zeroth_order.perturb import perturbation
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage, mezo, zoso
from dpaudit.trainers.zeroth_order.weights import ZOWeights
from tests.trainers.zeroth_order.zo_helpers import Slope, gpt_losses, plan, run, tiny_gpt, token_records

Plant = Callable[[pytest.MonkeyPatch], None]


def released(result: Any) -> Tensor:
    return torch.tensor([e.values for e in result.log.entries if isinstance(e, Release)], dtype=torch.float64)


# D1: what one record moves, against what the ledger's σ, P and clip say it may move


def sensitivity_is_the_ledgers() -> bool:
    directions = 9
    whole = plan(steps=1, releases_per_step=directions, clip="per_direction", clipping_norm=30.0, noise_multiplier=2.0)
    rows = [torch.full((6,), 1e6, dtype=torch.float64)] * 8
    found = []
    for draw in (range(8), range(7)):
        stage = ZOStage(plan=whole, learning_rate=0.0, scale=0.1)
        result, journal = run(Slope(), rows, ZOPlan((stage,)), sampler=ScriptedSampler([list(draw)]))
        found.append(released(result)[0] * 8)
    counted = journal.ledger_stages()[0]
    allowed = 30.0 * counted.noise_multiplier / counted.effective_noise_multiplier
    return bool((found[0] - found[1]).norm() <= allowed * (1 + 1e-9))


def plant_d1(patch: pytest.MonkeyPatch) -> None:
    """P left out of the ledger."""
    from dpaudit.trainers.plan import PrivacyPlan

    honest = PrivacyPlan.stage
    patch.setattr(
        PrivacyPlan,
        "stage",
        lambda self, steps=None: dataclasses.replace(honest(self, steps), releases_per_step=1, clip=None),
    )


def plant_batch_clip(patch: pytest.MonkeyPatch) -> None:
    """D4: the batch's sum is clipped instead of each record's slopes, and its mean loss stands for all of them."""
    patch.setattr(_zo_steps, "clip_differences", lambda d, c, clip: d)


# D2: the batches


def batches_vary_as_poisson() -> bool:
    sizes: list[int] = []
    whole = plan(public_size=200, expected_batch_size=20, steps=200)
    rows = [torch.zeros(6, dtype=torch.float64)] * 200
    run(
        Slope(), rows, mezo(whole, learning_rate=0.0, scale=0.1), physical_batch_size=64,
        callback=lambda report: sizes.append(len(report.private.indices)),
    )  # fmt: skip
    return abs(float(np.var(sizes)) - 18.0) < 8.5


def plant_d2(patch: pytest.MonkeyPatch) -> None:
    """Fixed batches of a shuffled order."""

    def draw(self: PoissonSampler) -> Any:
        order: list[int] = getattr(self, "_order", [])
        if len(order) < 20:
            order = np.random.default_rng().permutation(self.n_records).tolist()
        self._order = order[20:]  # type: ignore[attr-defined]
        return np.sort(np.asarray(order[:20]))

    patch.setattr(PoissonSampler, "draw", draw)


# D4, Z1: the noise


def noise_is_per_direction_at_sigma_c_and_secret() -> bool:
    whole = plan(steps=150, releases_per_step=2, clip="joint", clipping_norm=30.0, noise_multiplier=2.0)
    stages = ZOPlan((ZOStage(plan=whole, learning_rate=0.0, scale=0.1),))
    rows = [torch.zeros(6, dtype=torch.float64)] * 40
    drawn = []
    for _ in range(2):
        torch.manual_seed(100)
        drawn.append(released(run(Slope(), rows, stages, noise=None)[0]) * 8)
    one, two = drawn
    std = one.std(dim=0)
    independent = abs(torch.corrcoef(one.T)[0, 1]) < 0.35
    return bool(((std - 60.0).abs() < 14.0).all() and independent and not torch.equal(one, two))


def plant_d4(patch: pytest.MonkeyPatch) -> None:
    """One scalar of standard deviation σ, not σC, for all coordinates."""
    honest = NoiseSource.sample

    def sample(self: NoiseSource, shape: Any, std: float, device: Any = "cpu") -> Tensor:
        return honest(self, (1,), std / 30.0, device).expand(tuple(shape)).clone()

    patch.setattr(NoiseSource, "sample", sample)


def plant_z1(patch: pytest.MonkeyPatch) -> None:
    """Noise from the global generator, which the public seed has set."""
    patch.setattr(NoiseSource, "sample", lambda self, shape, std, device="cpu": torch.randn(tuple(shape)) * std)


# D5: the anchor


def the_anchor_pulls() -> bool:
    model = Slope(dtype=torch.float32)
    stage = ZOStage(plan=plan(steps=3), learning_rate=0.5, scale=0.1, proximal=0.4)

    def push(report: Any) -> None:
        if report.step == 1:
            with torch.no_grad():
                model.theta.fill_(1.0)

    run(model, [torch.zeros(6)] * 40, ZOPlan((stage,)), callback=push)
    return bool(torch.allclose(model.theta.detach(), torch.full((6,), 0.8**2)))


def plant_d5(patch: pytest.MonkeyPatch) -> None:
    """An anchor that aliases the weights."""
    honest = ZOWeights.begin

    def begin(self: ZOWeights, *arguments: Any, **options: Any) -> None:
        honest(self, *arguments, **options)
        if self.anchor is not None:
            self.anchor = {name: p.detach() for name, p in self.parameters.items()}

    patch.setattr(ZOWeights, "begin", begin)


# D6: the scales


def scales_reach_their_end() -> bool:
    stages = zoso(plan(steps=7), learning_rate=0.1, scale=1e-5, last_scale=1e-6).stages
    return stages[-1].scale == pytest.approx(1e-6, rel=1e-12)


def plant_d6(patch: pytest.MonkeyPatch) -> None:
    """The root of the difference, by which every stage divides."""

    def wrong(first: float, last: float, count: int) -> list[float]:
        factor = abs(last - first) ** (1 / count)
        return [first / factor**s for s in range(count)]

    patch.setattr(_zo_stages, "geometric", wrong)


# D7, D8: the mask


def perturbed_and_updated_along_the_same_mask() -> bool:
    model, v = tiny_gpt().eval(), Directions(run="mask")
    parameters = trainable_parameters(model)
    rule = MaskRule(keep=0.05, score="magnitude", ranked=True)
    mask = _pruning.pruning_mask(model, parameters, rule, v)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with perturbation(model, parameters, v, masks=mask).at(step=0, direction=0, scale=1.0):
        along = {name: p.detach() - before[name] for name, p in parameters.items()}
    _zeroth_order.apply_update(parameters, v, [1.0], step=0, learning_rate=1.0, masks=mask)
    return all(torch.allclose(before[n] - p.detach(), along[n], atol=1e-6) for n, p in parameters.items())


def plant_d7(patch: pytest.MonkeyPatch) -> None:
    """The update edits a copy made by advanced indexing."""
    honest = _zeroth_order.moving

    def copies(*arguments: Any) -> Iterator[Any]:
        for part in honest(*arguments):
            yield part._replace(flat=part.flat.clone())

    patch.setattr(_zeroth_order, "moving", copies)


def plant_d8(patch: pytest.MonkeyPatch) -> None:
    """Ranks weigh the perturbation and not the update."""
    honest = _zeroth_order.moving

    def unweighted(*arguments: Any) -> Iterator[Any]:
        for part in honest(*arguments):
            yield part._replace(mask=dataclasses.replace(part.mask, weight=None))

    patch.setattr(_zeroth_order, "moving", unweighted)


# D12: non-finite losses


def one_overflowing_record_leaves_the_weights_finite() -> bool:
    model = tiny_gpt()

    def losses(m: Any, batch: Tensor) -> Tensor:
        found = gpt_losses(m, batch).clone()
        found[0] = float("nan")
        return found

    stages = zoso(plan(steps=3), learning_rate=0.1, scale=1e-3)
    run(model, token_records(40), stages, loss_fn=losses, preflight=False)  # which would refuse this loss
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def plant_d12(patch: pytest.MonkeyPatch) -> None:
    """min(1, C/|Δ|) written as C / max(C, |Δ|) keeps a NaN."""

    def clip(differences: Tensor, norm: float, clip: Clip) -> Tensor:
        return differences * (norm / differences.abs().clamp(min=norm))

    patch.setattr(_zo_steps, "clip_differences", clip)


FAULTS: list[tuple[str, Callable[[], bool], Plant]] = [
    ("D1", sensitivity_is_the_ledgers, plant_d1),
    ("D2", batches_vary_as_poisson, plant_d2),
    ("D4 clip", sensitivity_is_the_ledgers, plant_batch_clip),
    ("D4 noise", noise_is_per_direction_at_sigma_c_and_secret, plant_d4),
    ("D5", the_anchor_pulls, plant_d5),
    ("D6", scales_reach_their_end, plant_d6),
    ("D7", perturbed_and_updated_along_the_same_mask, plant_d7),
    ("D8", perturbed_and_updated_along_the_same_mask, plant_d8),
    ("D12", one_overflowing_record_leaves_the_weights_finite, plant_d12),
    ("Z1", noise_is_per_direction_at_sigma_c_and_secret, plant_z1),
]


@pytest.mark.parametrize(("check", "plant"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_caught(check: Callable[[], bool], plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(), "the check must pass on the trainer as it is"
    plant(monkeypatch)
    assert not check(), "the planted fault went unnoticed"
