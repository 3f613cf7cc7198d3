"""Examine a training loop of one's own and a zeroth-order step, and put what was found into a certificate."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dpaudit import Stage
from dpaudit.accounting import from_triples
from dpaudit.attacks import ExamPlan, LoopAdapter, LossFactors, StepAdapter, examine
from dpaudit.certificates import Claim, certify_run

RECORDS, Q, SIGMA, CLIP, STEPS, DELTA = 200, 0.05, 1.0, 1.0, 200, 1e-5
EXPECTED = RECORDS * Q
FEATURES = torch.randn(RECORDS, 8, generator=torch.Generator().manual_seed(0))
LABELS = (FEATURES[:, 0] > 0).long()
FACTORS = LossFactors(RECORDS)  # record numbers from 200 on: record 0 with its loss times 1e3, 1e6, infinity, nan


def losses(model: nn.Module, indices) -> torch.Tensor:
    """One loss per record, (B,)."""
    rows = FACTORS.records(indices)
    each = nn.functional.cross_entropy(model(FEATURES[rows]), LABELS[rows], reduction="none")
    return FACTORS.scale(each, indices)


def draw() -> list[int]:
    """The loop's own sampler."""
    return np.flatnonzero(np.random.default_rng().random(RECORDS) < Q).tolist()


# -- a loop as one finds them -------------------------------------------------------------------------------------
class Loop:
    """Per-example gradients one by one; momentum; noise from a generator of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)
        self.restart()

    def restart(self) -> None:
        """What a new process draws afresh."""
        self.secret = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**62)))

    def step(self, indices, noise: float = SIGMA * CLIP) -> None:
        """One step, its noise included."""
        weights = list(self.model.parameters())
        total = [torch.zeros_like(p) for p in weights]
        for i in indices:
            own = torch.autograd.grad(losses(self.model, [i])[0], weights)
            norm = torch.sqrt(sum(g.square().sum() for g in own))
            if torch.isfinite(norm):
                total = [t + g * min(1.0, CLIP / float(norm.clamp_min(1e-12))) for t, g in zip(total, own)]
        for p, t in zip(weights, total):
            p.grad = (t + noise * torch.randn(p.shape, generator=self.secret)) / EXPECTED
        self.optimizer.step()


PLAN = ExamPlan(
    stage=Stage(sampling_probability=Q, noise_multiplier=SIGMA, steps=STEPS, sampling="poisson", clipping_norm=CLIP),
    normaliser=EXPECTED,
    size=RECORDS,
    delta=DELTA,
)


def step_adapter():
    """What ``dpaudit examine examine_loop:step_adapter`` calls."""
    loop = Loop()
    adapter = LoopAdapter(
        loop.model, loop.step, draw, size=RECORDS, clean_step=lambda indices: loop.step(indices, noise=0.0),
        restart=loop.restart, optimizer=loop.optimizer, adversaries=FACTORS.adversaries,
    )  # fmt: skip
    return adapter, PLAN


# -- a zeroth-order step ------------------------------------------------------------------------------------------
class ZerothOrder(StepAdapter):
    """Two forward passes along a public direction; one clipped difference a record; one noisy number released."""

    size, adversaries = RECORDS, FACTORS.adversaries

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.number, self.secret = nn.Linear(8, 2), 0, np.random.default_rng()

    def snapshot(self):
        """Weights and step number: the direction follows the number, so that a replay goes the same way."""
        return {name: w.clone() for name, w in self.model.state_dict().items()}, self.number

    def restore(self, state, /) -> None:
        """As a resumed process does: noise is drawn afresh."""
        self.model.load_state_dict(state[0])
        self.number, self.secret = state[1], np.random.default_rng()

    def draw(self):
        """A minibatch."""
        return draw()

    def release(self, indices, /, noise: float = SIGMA * CLIP):
        """One step; what leaves it."""
        public = torch.Generator().manual_seed(self.number)
        direction = [torch.randn(p.shape, generator=public) for p in self.model.parameters()]
        self.number += 1
        with torch.no_grad():
            up, down = (self._at(direction, side, indices) for side in (1e-3, -1e-3))
            slopes = ((up - down) / 2e-3).nan_to_num(0.0, 0.0, 0.0).clamp(-CLIP, CLIP)
            released = (float(slopes.sum()) + noise * self.secret.normal()) / EXPECTED
            for p, v in zip(self.model.parameters(), direction):
                p -= 0.1 * released * v
        return np.array([released])

    def clean(self, indices, /):
        """The same without noise."""
        return self.release(indices, noise=0.0)

    def _at(self, direction, side: float, indices) -> torch.Tensor:
        for p, v in zip(self.model.parameters(), direction):
            p += side * v
        found = losses(self.model, indices) if len(indices) else torch.zeros(0)
        for p, v in zip(self.model.parameters(), direction):
            p -= side * v
        return found.double()


ZO_PLAN = ExamPlan(
    stage=Stage(
        sampling_probability=Q, noise_multiplier=SIGMA, steps=STEPS, sampling="poisson", clipping_norm=CLIP,
        releases_per_step=1, clip="per_direction",
    ),
    normaliser=EXPECTED, size=RECORDS, delta=DELTA,
)  # fmt: skip


def main(run: Path, budget: str = "30s"):
    release = run / "release"
    (release / "model").mkdir(parents=True)
    found = examine(*step_adapter(), budget=budget)
    print("loop:", found.names or "nothing found", "excluded:", found.excluded)
    other = examine(ZerothOrder(), ZO_PLAN, budget=budget)
    print("zeroth order:", other.names or "nothing found", "excluded:", other.excluded)

    loop = Loop()
    for _ in range(STEPS):
        loop.step(draw())
    torch.save(loop.model.state_dict(), release / "model" / "weights.pt")
    ledger = from_triples([(SIGMA, Q, STEPS)], relation="add_or_remove_one", unit="record", sampling="poisson")
    return certify_run(
        release,
        source="the loop's own count of its steps",
        ledger=ledger,
        claim=Claim(epsilon=6.0, delta=DELTA, relation="add_or_remove_one", unit="record", max_records_per_unit=1),
        mechanism={
            "algorithm": "DP-SGD, a loop of our own",
            "clipping_norm": CLIP,
            "normaliser": EXPECTED,
            "noise_source": "a torch generator seeded by the operating system",
        },
        trust_model="central",
        release_scope="last iterate",
        findings=found,  # the whole result: findings without witnesses, what ran, and what was left out
    )


if __name__ == "__main__":
    print("verdict:", main(Path(sys.argv[1])).predicate.verdict.name)
