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
from dpaudit.auditing import design
from dpaudit.certificates import (
    Canaries,
    Claim,
    canary_id,
    certify_run,
    commitment,
    manifest,
    write_manifest,
    write_plan,
)

EPSILON, DELTA, RELATION, UNIT = 3.0, 1e-5, Relation.ADD_OR_REMOVE_ONE, "row"
RECORDS, CANARIES, FEATURES, CLASSES, BATCH, EPOCHS = 2000, 400, 16, 4, 100, 6


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
    plan = design(CANARIES, EPSILON, DELTA, relation=RELATION, unit=UNIT, attack="loss", coin_commitment=opened)
    print("publish this digest before you train:", write_plan(release / "audit_plan.json", plan))

    # 2. Train as always; inserted canaries are ordinary records.
    inserted = coins == 1
    data = TensorDataset(
        torch.tensor(np.vstack([x, canary_x[inserted]]), dtype=torch.float32),
        torch.tensor(np.concatenate([y, canary_y[inserted]])),
    )
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=1.3,
        max_grad_norm=1.0,
    )
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
        deviations=["Noise and sampling came from torch's generator and not from the operating system's entropy."],
        reproduction="python opacus_run.py RUN",
    )


if __name__ == "__main__":
    certificate = main(Path(sys.argv[1]))
    print("verdict:", certificate.predicate.verdict.name)
