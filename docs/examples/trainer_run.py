"""From Hugging Face's Trainer to a certificate: canaries, plan, private training, scores, certificate."""

import lzma
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from dpaudit.attacks import canary_losses, flip_coins, inserted, new_token_canaries, residual_scores, write_secret
from dpaudit.auditing import design
from dpaudit.certificates import Canaries, Claim, certify_run, write_plan
from dpaudit.trainers import DPTrainer, PrivacyArguments, noise_statement, pad_tokens

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EPSILON, DELTA, RELATION, UNIT = 3.0, 1e-5, "add_or_remove_one", "paragraph"
LENGTH, CLIPPING_NORM = 32, 0.5


def main(run: Path, records: int = 2000, canaries: int = 1000, steps: int = 110):
    release, private = run / "release", run / "private"
    release.mkdir(parents=True)
    model_path = EXAMPLES / "model"
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)

    # 1. Before training: canaries, fair coins, a commitment to both, and the frozen plan of the audit.
    reserved = [f"<canary_{i:04d}>" for i in range(canaries)]
    made = new_token_canaries(
        tokenizer, canaries, reserved_tokens=reserved, rng=np.random.default_rng(), length=12, max_length=LENGTH
    )
    coins = flip_coins(canaries)
    secret = write_secret(private / "canaries.secret.parquet", made, coins, os.urandom(32), copies=1)
    plan = design(
        canaries,
        EPSILON,
        DELTA,
        relation=RELATION,
        unit=UNIT,
        attack="loss-residual",
        coin_commitment=secret.commitment,
    )
    plan_digest = write_plan(release / "audit_plan.json", plan)
    print("publish this digest before you train:", plan_digest)

    # 2. The records: real ones, then the canaries whose coin is 1.
    texts = lzma.open(EXAMPLES / "data" / "austen_private.txt.xz", "rt", encoding="utf-8").read().splitlines()[:records]
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer(text, add_special_tokens=False)["input_ids"], end][:LENGTH] for text in texts]
    data = [{"input_ids": row, "labels": row} for row in rows]
    data += inserted(made, coins, copies=1, supervise="scored")

    def collate(batch):
        padded = pad_tokens([row["input_ids"] for row in batch], pad=tokenizer.pad_token_id)
        labels = torch.full_like(padded["input_ids"], -100)
        for i, row in enumerate(batch):
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        return {**padded, "labels": labels}

    # 3. Train. public_size is declared: the records, and half of the canaries.
    trainer = DPTrainer(
        model,
        TrainingArguments(
            str(run / "trainer"), max_steps=steps, learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=10,
            per_device_train_batch_size=64, save_strategy="no", report_to=[], use_cpu=True,
        ),
        privacy=PrivacyArguments(
            delta=DELTA, relation=RELATION, sampling="poisson", unit=UNIT, public_size=records + canaries // 2,
            expected_batch_size=records / 10, clipping_norm=CLIPPING_NORM, target_epsilon=EPSILON,
        ),
        audit_plan_sha256=plan_digest,  # binds the ledger's first line to the plan
        train_dataset=data,
        data_collator=collate,
    )  # fmt: skip
    output = trainer.train()
    print("epsilon <=", output.metrics["epsilon"], "after", output.metrics["steps_counted"], "steps")
    trainer.save_model(str(release / "model"))
    tokenizer.save_pretrained(release / "model")
    (release / "ledger.jsonl").write_bytes((run / "trainer" / "privacy" / "ledger.jsonl").read_bytes())

    # 4. Score every canary, inserted or not; higher = looks inserted.
    scores = residual_scores(canary_losses(model, made), canary_losses(base, made))
    pd.DataFrame({"id": secret.ids, "score": scores}).to_parquet(release / "scores.parquet", index=False)

    # 5. Certify. No source and no ledger: dpaudit's own journal counted the steps.
    return certify_run(
        release,
        claim=Claim(epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT, max_records_per_unit=1),
        mechanism={
            "algorithm": "DP-AdamW (dpaudit DPTrainer)",
            "clipping_norm": CLIPPING_NORM,
            "normaliser": trainer.plan.normaliser,
            **noise_statement(),
        },
        trust_model="central: the trainer sees the records",
        release_scope="last iterate",
        canaries=Canaries(ids=secret.ids, coins=tuple(int(c) for c in coins), copies=secret.copies, nonce=secret.nonce),
        run_status=trainer.status,
        reproduction="python trainer_run.py RUN",
    )


if __name__ == "__main__":
    certificate = main(Path(sys.argv[1]))
    print("verdict:", certificate.predicate.verdict.name)
