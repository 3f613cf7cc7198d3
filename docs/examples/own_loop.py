"""A private training loop of one's own, to its certificate: canaries, draw, clip, count, noise, update, scores."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from dpaudit.accounting import account, calibrate
from dpaudit.attacks import InRunCanaries, draw_in_run_canaries, flip_coins
from dpaudit.auditing import design
from dpaudit.certificates import (
    Canaries,
    Claim,
    DiskJournal,
    canary_id,
    certify_run,
    commit_in_run,
    commitment,
    manifest,
    read_journal,
    write_manifest,
    write_plan,
)
from dpaudit.trainers import (
    DPOptimizer,
    GhostClipping,
    NoiseSource,
    OptimizerSettings,
    PrivacyPlan,
    ReleaseRecorder,
    noise_statement,
    noisy_mean,
    sampler_for,
    trainable,
)

EPSILON, DELTA, RELATION, UNIT = 3.0, 1e-5, "add_or_remove_one", "row"
RECORDS, CANARIES, IN_RUN, FEATURES, CLASSES = 600, 200, 100, 8, 3


def main(run: Path, steps: int = 30):
    release, private = run / "release", run / "private"
    (release / "model").mkdir(parents=True)
    private.mkdir(mode=0o700)
    features, labels = torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,))  # your records
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    # 1. Before training: canaries, fair coins, a commitment to both, and the frozen plan of the audit.
    canary_x, canary_y = torch.randn(CANARIES, FEATURES), torch.randint(0, CLASSES, (CANARIES,))
    nonce, coins = os.urandom(32), flip_coins(CANARIES)
    ids = [canary_id(nonce, f"{x.tolist()} {int(y)}") for x, y in zip(canary_x, canary_y)]
    canaries = Canaries(ids=tuple(ids), coins=tuple(int(c) for c in coins), copies=1, nonce=nonce)
    write_manifest(private / "manifest.json", canaries)
    opened = commitment(nonce, manifest(ids, canaries.coins, 1))
    sizes = {name: p.numel() for name, p in trainable(model).items()}
    drawn = draw_in_run_canaries(sum(sizes.values()), m=IN_RUN)  # a trained number of its own each, seen by every step
    in_run = commit_in_run(
        drawn.coordinates, drawn.coins, dimension=drawn.dimension,
        claimed_epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT,
    )  # fmt: skip
    audit = design(
        CANARIES, EPSILON, DELTA, relation=RELATION, unit=UNIT, attack="loss", coin_commitment=opened,
        in_run=in_run.plan.to_dict(), alpha_split=in_run.alpha_split,
    )  # fmt: skip
    plan_digest = write_plan(release / "audit_plan.json", audit)
    print("publish this digest before you train:", plan_digest)

    # 2. The plan of the training; public_size is declared: the records, and half of the canaries.
    plan = calibrate(
        PrivacyPlan(
            delta=DELTA, relation=RELATION, sampling="poisson", unit=UNIT, public_size=RECORDS + CANARIES // 2,
            expected_batch_size=70, steps=steps, clipping_norm=1.0, target_epsilon=EPSILON,
        )
    )  # fmt: skip
    inserted = torch.as_tensor(np.flatnonzero(coins))
    x, y = torch.cat([features, canary_x[inserted]]), torch.cat([labels, canary_y[inserted]])
    parameters = list(trainable(model).values())
    optimizer = DPOptimizer(parameters, OptimizerSettings(learning_rate=1e-2))
    seen = InRunCanaries(
        drawn, list(sizes.values()),
        sampling_probability=plan.sampling_probability, contribution=plan.clipping_norm,
    )  # fmt: skip
    recorder = ReleaseRecorder(sizes)
    sampler, noise = sampler_for(plan, len(y) + seen.members), NoiseSource()

    # 3. The loop.
    with (
        DiskJournal(
            release / "ledger.jsonl", relation=RELATION, unit=UNIT, max_records_per_unit=1,
            audit_plan_sha256=plan_digest,
        ) as journal,  # the ledger's only writer; sealed and given up at the end
        GhostClipping(model, max_grad_norm=plan.clipping_norm) as clipper,
    ):  # fmt: skip
        journal.begin(plan.stage(0))
        for _ in range(plan.steps):
            draw = sampler.draw()
            indices = torch.as_tensor(draw[draw < len(y)])
            for p in parameters:
                p.grad = None
            if len(indices):  # an empty draw is a step all the same: its noise is released
                losses = nn.functional.cross_entropy(model(x[indices]), y[indices], reduction="none")
                clipper.backward(losses)  # adds the clipped SUM into p.grad; the norms it returns are private
            sums = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
            seen.add_to(sums, draw[draw >= len(y)] - len(y))  # the drawn in-run canaries, before the noise
            journal.count()  # on disk BEFORE the release
            release_of_step = noisy_mean(sums, noise=noise, noise_std=plan.noise_std, normaliser=plan.normaliser)
            seen.observe(release_of_step, deviation=plan.noise_std, normaliser=plan.normaliser)
            recorder.observe(release_of_step, plan.noise_std / plan.normaliser)
            optimizer.receive(release_of_step, plan.noise_std / plan.normaliser)
            optimizer.step()
    (bound,) = account(read_journal(release / "ledger.jsonl").ledger, delta=DELTA)
    print(f"epsilon <= {bound.epsilon_upper:.4f} after {plan.steps} steps with sigma {plan.noise_multiplier:.4f}")

    # 4. Score every canary, inserted or not; higher = looks inserted. Then certify.
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(canary_x), canary_y, reduction="none")
    pd.DataFrame({"id": ids, "score": -losses.numpy()}).to_parquet(release / "scores.parquet", index=False)
    save_file(model.state_dict(), release / "model" / "model.safetensors")
    return certify_run(
        release,
        claim=Claim(epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT, max_records_per_unit=1),
        mechanism={
            "algorithm": "DP-Adam (own loop)",
            "clipping_norm": plan.clipping_norm,
            "normaliser": plan.normaliser,
            **noise_statement(),
        },
        trust_model="central: the trainer sees the records",
        release_scope="last iterate",
        canaries=canaries,
        in_run=in_run.seen(seen.scores(), recorder.state()),
        reproduction="python own_loop.py RUN",
    )


if __name__ == "__main__":
    certificate = main(Path(sys.argv[1]))
    print("verdict:", certificate.predicate.verdict.name)
