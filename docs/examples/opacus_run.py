"""Certify a model trained with Opacus: canaries, plan, ordinary Opacus training, scores, certificate."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from opacus import PrivacyEngine
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit import Relation
from dpaudit.accounting import account, from_opacus
from dpaudit.attacks import InRunCanaries, draw_in_run_canaries
from dpaudit.auditing import design
from dpaudit.certificates import (
    Canaries,
    Claim,
    canary_id,
    certify_run,
    commit_in_run,
    commitment,
    manifest,
    write_manifest,
    write_plan,
)
from dpaudit.trainers import PoissonSampler, ReleaseRecorder

EPSILON, DELTA, RELATION, UNIT = 3.0, 1e-5, Relation.ADD_OR_REMOVE_ONE, "row"
RECORDS, CANARIES, IN_RUN, FEATURES, CLASSES, BATCH, EPOCHS = 2000, 400, 200, 16, 4, 100, 6
SIGMA, CLIP = 1.3, 1.0


def main(run: Path) -> dict:
    release, private = run / "release", run / "private"
    (release / "model").mkdir(parents=True)
    private.mkdir(mode=0o700)

    # 1. Before training: draw canaries and fair coins, commit to them, and freeze the plan.
    rng = np.random.default_rng()
    x, y = rng.normal(size=(RECORDS, FEATURES)), rng.integers(0, CLASSES, RECORDS)
    canary_x, canary_y = rng.normal(size=(CANARIES, FEATURES)), rng.integers(0, CLASSES, CANARIES)
    nonce = os.urandom(32)
    coins = np.frombuffer(os.urandom(CANARIES), dtype=np.uint8) & 1
    ids = [canary_id(nonce, f"{row.tolist()} {label}") for row, label in zip(canary_x, canary_y)]
    canaries = Canaries(ids=tuple(ids), coins=tuple(int(c) for c in coins), copies=1, nonce=nonce)
    write_manifest(private / "manifest.json", canaries)
    opened = commitment(nonce, manifest(ids, canaries.coins, 1))
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    drawn = draw_in_run_canaries(sum(sizes.values()), m=IN_RUN)  # a trained number of its own each, seen by every step
    in_run = commit_in_run(
        drawn.coordinates, drawn.coins, dimension=drawn.dimension,
        claimed_epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT,
    )  # fmt: skip
    plan = design(
        CANARIES, EPSILON, DELTA, relation=RELATION, unit=UNIT, attack="loss", coin_commitment=opened,
        in_run=in_run.plan.to_dict(), alpha_split=in_run.alpha_split,
    )  # fmt: skip
    print("publish this digest before you train:", write_plan(release / "audit_plan.json", plan))

    # 2. Train as always; inserted canaries are ordinary records.
    inserted = coins == 1
    data = TensorDataset(
        torch.tensor(np.vstack([x, canary_x[inserted]]), dtype=torch.float32),
        torch.tensor(np.concatenate([y, canary_y[inserted]])),
    )
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
    )
    rate = 1 / len(loader)  # what Opacus accounts for
    seen = InRunCanaries(drawn, list(sizes.values()), sampling_probability=rate, contribution=CLIP)
    recorder, members = ReleaseRecorder(sizes), PoissonSampler(seen.members, rate)
    add_noise = optimizer.add_noise

    def watched():
        seen.add_to([p.summed_grad for p in optimizer.params], members.draw())  # the drawn ones, before the noise
        add_noise()
        sums = [p.grad for p in optimizer.params]
        seen.observe(sums, deviation=SIGMA * CLIP)
        recorder.observe(sums, SIGMA * CLIP)

    optimizer.add_noise = watched
    for _ in range(EPOCHS):
        for features, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), labels).backward()
            optimizer.step()
    inner = model._module
    save_file(inner.state_dict(), release / "model" / "model.safetensors")

    # 3. Score every canary, inserted or not; higher = looks inserted.
    with torch.no_grad():
        logits = inner(torch.tensor(canary_x, dtype=torch.float32))
        losses = nn.functional.cross_entropy(logits, torch.tensor(canary_y), reduction="none")
    pd.DataFrame({"id": ids, "score": -losses.numpy()}).to_parquet(release / "scores.parquet", index=False)

    # 4. Certify from Opacus' own history.
    ledger = from_opacus(engine.accountant.state_dict(), relation=RELATION, unit=UNIT)
    print("Opacus says", engine.get_epsilon(DELTA), "and dpaudit", account(ledger, delta=DELTA)[0].epsilon_upper)
    return certify_run(
        release,
        source="an Opacus accountant history",
        ledger=ledger,
        claim=Claim(epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT, max_records_per_unit=1),
        mechanism={
            "algorithm": "DP-Adam (Opacus)",
            "clipping_norm": 1.0,
            "normaliser": "expected batch size as Opacus computes it",
            "noise_source": "torch generator, not cryptographic (secure_mode=False)",
            "noise_generator": "torch's fp32 normals on a CPU (Mersenne twister)",
            "noise_support_sigma": 5.76,
        },
        trust_model="central: the trainer sees the records",
        release_scope="last iterate",
        canaries=canaries,
        in_run=in_run.seen(seen.scores(), recorder.state()),
        deviations=["Noise and sampling came from torch's generator and not from the operating system's entropy."],
        reproduction="python opacus_run.py RUN",
    )


if __name__ == "__main__":
    certificate = main(Path(sys.argv[1]))
    print("verdict:", certificate.predicate.verdict.name)
