"""A private training loop of one's own: plan, journal, draw, clip, count, noise, update."""

import sys
from pathlib import Path

import torch
from torch import nn

from dpaudit import Relation
from dpaudit.accounting import account, calibrate
from dpaudit.certificates import DiskJournal, read_journal
from dpaudit.trainers import (
    DPOptimizer,
    GhostClipping,
    NoiseSource,
    OptimizerSettings,
    PrivacyPlan,
    noisy_mean,
    sampler_for,
    trainable,
)


def main(ledger: Path, steps: int = 30) -> float:
    features, labels = torch.randn(600, 8), torch.randint(0, 3, (600,))
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))

    plan = calibrate(
        PrivacyPlan(
            delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE, sampling="poisson", unit="row", public_size=600,
            expected_batch_size=60, steps=steps, clipping_norm=1.0, target_epsilon=3.0,
        )
    )  # fmt: skip
    parameters = list(trainable(model).values())
    optimizer = DPOptimizer(parameters, OptimizerSettings(learning_rate=1e-2))
    sampler, noise = sampler_for(plan, len(labels)), NoiseSource()

    with (
        DiskJournal(
            ledger, relation=str(plan.relation), unit=plan.unit, max_records_per_unit=1, audit_plan_sha256=None
        ) as journal,  # the ledger's only writer; sealed and given up at the end
        GhostClipping(model, max_grad_norm=plan.clipping_norm) as clipper,
    ):
        journal.begin(plan.stage(0))
        for _ in range(plan.steps):
            indices = torch.as_tensor(sampler.draw())
            for p in parameters:
                p.grad = None
            if len(indices):  # an empty draw is a step all the same: its noise is released
                losses = nn.functional.cross_entropy(model(features[indices]), labels[indices], reduction="none")
                clipper.backward(losses)  # adds the clipped SUM into p.grad; the norms it returns are private
            sums = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
            journal.count()  # on disk BEFORE the release
            release = noisy_mean(sums, noise=noise, noise_std=plan.noise_std, normaliser=plan.normaliser)
            optimizer.receive(release, plan.noise_std / plan.normaliser)
            optimizer.step()

    (guarantee,) = account(read_journal(ledger).ledger, delta=plan.delta)
    print(f"epsilon <= {guarantee.epsilon_upper:.4f} after {plan.steps} steps with sigma {plan.noise_multiplier:.4f}")
    return guarantee.epsilon_upper


if __name__ == "__main__":
    main(Path(sys.argv[1]))
