"""The default run of the shipped example, seen from inside: verdicts, planted faults, and what observers cost.

    python benchmarks/bench_in_run_default.py --work DIR                  # go on where the results file stops
    python benchmarks/bench_in_run_default.py --work DIR --only runs      # one part
    python benchmarks/bench_in_run_default.py --table                     # print what there is

Rows go to benchmarks/results/in_run_default.jsonl, one a case; DIR holds run folders while they run. Parts:

- ``runs``: `dpaudit certify examples/certify.toml`, a seed a case, with the examination that `make certify` asks for.
- ``without``: the training phase of the same configuration without in-run canaries: its perplexity.
- ``faulty``: the training phase with a planted fault, whole: what both observers say of it.
- ``recorded``: the training phase of a correct run (seed ``RECORDED``) whose clipped sums stay in DIR.
- ``replayed``: the clipped sums of the records of one run (seed ``RECORDED``, kept in DIR) go again through the
  trainer's own loop, with new coins, new draws of the canaries and new noise, correct or with a fault. The mechanism is
  the run's; only the records' gradients no longer answer to the noise that this replay drew.
- ``cut``: the same on the example cut down to 250 declared records and minibatches of 60, with its q, σ, steps, model
  and canaries: about a third of the computing.
- ``edges``: replays of a cut-down run with a shortfall of the noise below, at and above its canaries' edge.
- ``beacons``: the cut-down example with beacons, correct: which scores show that the attack is alive.
- ``shortened``: the correct runs again with a ledger that counts 99 of their 110 steps.
- ``cost``: the same steps with and without observers in turns, in CPU seconds.
- ``models``: what canaries show at the steps of other configurations: adapters (LoRA) on the bundled model, trained in
  whole, and the encoder of examples/encoder.toml (MiniLM) on canary coordinates alone.
- ``claims``: adapters and MiniLM at claims of 1, 2, 4 and 8, on canary coordinates alone.
- ``adaptive``: guesses that follow the coins revealed before them, on the recorded scores of the runs in DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_in_run as small  # noqa: E402
import numpy as np  # noqa: E402 - the checkout comes first on the path
import torch  # noqa: E402
from in_run_claims import claims  # noqa: E402
from in_run_faults import (  # noqa: E402
    AT_EDGES,
    CONFIG,
    RECORDED,
    RESULTS,
    SEEDS,
    SUMS,
    Row,
    beacons,
    configured,
    cut,
    edges,
    faulty,
    heard,
    recorded,
    recordings,
    replayed,
    seconds,
    shortened,
)

EXAMINE = "400 steps"
"""Budget of the examination in the Makefile."""


def certified(seed: int, work: Path) -> Row:
    """One run to its certificate, and what the certificate says."""
    from dpaudit.runs.run import begin, certify_phase, examine_phase, train_phase

    out = work / f"run{seed}"
    at = [seconds()]
    with recorded(work / SUMS) if seed == RECORDED else contextlib.nullcontext():
        job = train_phase(begin(configured(seed), CONFIG.parent, out))
    at.append(seconds())
    job = examine_phase(job, budget=EXAMINE)
    at.append(seconds())
    published = certify_phase(job)
    at.append(seconds())
    body, found = published.certificate.predicate, published.in_run
    assert found is not None and found.audit is not None and found.energy is not None and found.profile is not None
    facts = job.record.facts
    return {
        "run": "default",
        "seed": seed,
        "verdict": str(body.verdict.name),
        "level": body.level,
        "reasons": list(body.verdict.reasons),
        "epsilon_lower": found.epsilon_lower,
        "guesses": found.audit.guesses,
        "correct": found.audit.correct,
        "conditional": None if found.conditional is None else found.conditional.epsilon_lower,
        "profile_p": found.profile.p_value,
        "energy_p": found.energy.p_value,
        "convicted_controls": None if found.control is None else [found.control.convicted, found.control.repeats],
        "power_lower": found.power_lower,
        "visible_by_energy": found.visible_by_energy,
        "visible_by_canaries": found.visible_by_canaries,
        "model_epsilon_lower": published.result.epsilon_lower,
        "model_correct": [published.result.correct, published.result.guesses],
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        "cpu_seconds": {
            name: round(b - a, 1) for name, a, b in zip(("train", "examine", "certify"), at, at[1:], strict=False)
        },
    }


def runs(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(SEEDS):
        yield f"default/{seed}", lambda seed=seed: certified(seed, work)


def trained_without(seed: int, work: Path) -> Row:
    """The training phase without in-run canaries."""
    from dpaudit.runs.run import begin, train_phase

    out = work / f"without{seed}"
    shutil.rmtree(out, ignore_errors=True)
    begun = seconds()
    job = train_phase(begin(configured(seed, enabled=False), CONFIG.parent, out))
    facts = job.record.facts
    shutil.rmtree(out, ignore_errors=True)
    return {
        "run": "without",
        "seed": seed,
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        "cpu_seconds": {"train": round(seconds() - begun, 1)},
    }


def without(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(SEEDS):
        yield f"without/{seed}", lambda seed=seed: trained_without(seed, work)


class Given:
    """A sampler that draws what it is given."""

    is_test = True

    def __init__(self, indices: Any, n_records: int) -> None:
        self._indices, self.n_records = indices, n_records

    def draw(self) -> Any:
        return self._indices


def cost_of_observers(pairs: int, work: Path) -> Row:
    """CPU seconds of steps with and without observers, on the same drawn records in turns."""
    from dpaudit.runs.encoding import collator, loss_function, private_records
    from dpaudit.runs.in_run.watch import watch_of
    from dpaudit.runs.prepare import prepare
    from dpaudit.runs.sources import load_model, select_trainable
    from dpaudit.storage.run_folder import RunFolder
    from dpaudit.trainers import trainable

    out = work / "cost"
    shutil.rmtree(out, ignore_errors=True)
    prepared = prepare(configured(0), CONFIG.parent, RunFolder.create(out))
    model = select_trainable(load_model(prepared.config, prepared.base, classes=None), prepared.config)
    sizes = {name: p.numel() for name, p in trainable(model).items()}
    watch = watch_of(prepared.in_run, prepared.in_run_secret, prepared.plans, sizes)
    assert watch.canaries is not None
    records, plan = private_records(prepared), dataclasses.replace(prepared.plans[0], steps=1)
    members, q, rng = watch.canaries.members, plan.sampling_probability, np.random.default_rng(0)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs):
        drawn = np.flatnonzero(rng.random(len(records)) < q)
        beside = len(records) + np.flatnonzero(rng.random(members) < q)
        for observed in (False, True) if pair % 2 else (True, False):
            indices = np.concatenate([drawn, beside]) if observed else drawn
            begun = time.process_time()
            small.train(
                model,
                records,
                plan,
                collate=collator(prepared),
                loss_fn=loss_function(prepared),
                journal=small.memory(),
                optimizer=small.OptimizerSettings(algorithm="adamw", learning_rate=1e-3),
                physical_batch_size=prepared.config.optimizer.physical_batch_size,
                sampler=Given(indices, len(records) + (members if observed else 0)),
                canaries=watch.canaries if observed else None,
                recorder=watch.recorder if observed else None,
                preflight=False,
            )
            if pair:  # the first pair warms up
                spent[observed].append(time.process_time() - begun)
    shutil.rmtree(out, ignore_errors=True)
    with_, without_ = np.asarray(spent[True]), np.asarray(spent[False])
    return {
        "run": "cost",
        "pairs": len(with_),
        "seconds_with": float(np.median(with_)),
        "seconds_without": float(np.median(without_)),
        "ratio": float(with_.sum() / without_.sum()),
        "ratio_of_medians": float(np.median(with_) / np.median(without_)),
        "difference": [float(np.median(with_ - without_)), float((with_ - without_).std() / len(with_) ** 0.5)],
    }


def cost(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield "cost/0", lambda: cost_of_observers(11, work)


def trained_adapters(seed: int, work: Path) -> Row:
    """The default run with rank-8 adapters in place of all weights."""
    from dpaudit.runs.run import begin, train_phase

    config = configured(seed)
    config = config.model_copy(update={"model": config.model.model_copy(update={"trainable": "lora"})})
    out, begun = work / f"lora{seed}", seconds()
    job = train_phase(begin(config, CONFIG.parent, out))
    facts = job.record.facts
    return {
        "run": "lora",
        "seed": seed,
        "cpu_seconds": round(seconds() - begun, 1),
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        **heard(job.folder),
    }


MINILM = 22_713_986
"""Numbers of the encoder with its two-class head, all trained."""


def on_coordinates(seed: int) -> Row:
    """Canaries at the steps of examples/encoder.toml, without records."""
    from dpaudit.auditing.in_run.visible import control_for
    from dpaudit.runs.config import read_config
    from dpaudit.runs.in_run.control import simulate, simulate_control
    from dpaudit.runs.prepare import make_plans, public_size

    config = read_config(ROOT / "examples" / "encoder.toml")
    plan, m = make_plans(config, public_size(config))[0], 100_000
    deltas, alpha = small.deltas_of(plan.ledger()), small.split_alpha(config.audit.alpha)[1]
    claim = config.claim
    frozen = small.InRunPlan(
        kind=small.COORDINATES,
        m=m,
        dimension=MINILM,
        claimed_epsilon=claim.epsilon,
        delta=claim.delta,
        relation=claim.relation,
        unit=claim.unit,
        guesses=small.guesses_in_run(m, claim.epsilon, claim.delta, alpha),
        alpha=config.audit.alpha,
        alpha_split=alpha,
        commitment="0" * 64,
        control=control_for(m, [plan.stage()], deltas, small.EPSILONS, alpha.profile),
    )
    begun = seconds()
    scores, coins = simulate(plan, m)
    took = seconds() - begun
    control = simulate_control(frozen, plan, deltas)
    evidence = small.InRunEvidence(coordinates=np.arange(m), scores=scores, coins=coins, energy=None, control=control)
    found = small.in_run_audit(frozen, evidence, stages=[plan.stage()], deltas=deltas)
    assert found.audit is not None and found.conditional is not None
    return {
        "run": "coordinates",
        "configuration": "encoder",
        "seed": seed,
        "claim": claim.epsilon,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_lower": found.epsilon_lower,
        "expected_gaussian": found.audit.expected_epsilon_lower,
        "conditional": found.conditional.epsilon_lower,
        "visible_by_canaries": found.visible_by_canaries,
        "fault": None if found.control is None else found.control.fault,
        "convicted_controls": None if found.control is None else [found.control.convicted, found.control.repeats],
        "alive": found.alive,
        "cpu_seconds": round(took, 2),
    }


def models(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(3):
        yield f"models/encoder/{seed}", lambda seed=seed: on_coordinates(seed)
    yield "models/lora/0", lambda: trained_adapters(0, work)


def guessed_adaptively(folder: Path) -> Row:
    """The plan's number of guesses, made in blocks of a hundred that learn from the coins of the blocks before.

    After arXiv:2503.07199: the bound holds for guesses that depend on the coins revealed so far. What can be learnt
    here is a movement that all canaries share; each block takes the canaries that are surest after it.
    """
    from dpaudit.runs.in_run.secret import read_secret
    from dpaudit.storage.run_folder import RunFolder, read_json

    run = RunFolder(folder)
    secret = read_secret(run.in_run_secret)
    evidence = small.InRunEvidence.from_dict(read_json(run.in_run), secret.coins)
    scores, coins, m = evidence.scores, evidence.coins, len(secret.coins)
    made, right = small.count_correct(
        small.guess([str(i) for i in range(m)], scores, (small.planned(m, m).guesses,) * 2), coins
    )
    shift, known, hits = 0.0, np.zeros(m, dtype=bool), 0
    for _ in range(made // 100):
        sure = np.where(known, -1.0, np.abs(scores - shift))
        block = np.argpartition(-sure, 100)[:100]
        hits += int(((scores[block] > shift) == coins[block]).sum())
        known[block] = True
        for _ in range(20):  # the likeliest shift of calibrated log-likelihood ratios, by Newton's method
            p = 1 / (1 + np.exp(shift - scores[known]))
            shift += float(np.clip((p - coins[known]).sum() / ((p * (1 - p)).sum() + 1e-6), -0.5, 0.5))
    bounds = [
        small.snj_epsilon_lower(m, n, v, small.PLAN.delta, small.ALPHA)
        for n, v in ((made, right), (100 * (made // 100), hits))
    ]
    return {
        "run": "adaptive",
        "as_planned": bounds[0],
        "adaptive": bounds[1],
        "correct": [right, hits],
        "guesses": made,
    }


def adaptive(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(SEEDS):
        if (work / f"run{seed}" / "release" / "certificate.json").exists():
            yield f"adaptive/{seed}", lambda seed=seed: guessed_adaptively(work / f"run{seed}")


def table() -> None:
    """Verdicts of the runs, and convictions by fault."""
    rows = read()
    done = [row for row in rows.values() if row["run"] == "default" and "verdict" in row]
    if done:
        bounds = sorted(row["epsilon_lower"] for row in done)
        print(
            f"{len(done)} runs: {sum(row['verdict'] == 'consistent' for row in done)} consistent, in-run bound median"
            f" {float(np.median(bounds)):.3f} ({bounds[0]:.3f} to {bounds[-1]:.3f}), perplexity"
            f" {float(np.mean([row['heldout'][1] for row in done])):.2f}"
        )
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows.values():
        if "fault" in row and "against" in row:
            kinds.setdefault((row["run"], row["fault"]), []).append(row)
    for (run, fault), of in kinds.items():
        print(
            f"{run:9} {AT_EDGES.get(fault, fault):20} convicted {sum(bool(row['against']) for row in of)} of {len(of)}"
            f"  by energy {sum('release_energy' in row['against'] for row in of)}, profile"
            f" {sum('in_run_profile' in row['against'] for row in of)}, bound"
            f" {sum('in_run_primary_bound' in row['against'] for row in of)}; the model"
            f" {[row['model']['against'] or round(row['model']['epsilon_lower'], 3) for row in of if 'model' in row]}"
        )


PARTS = {
    "runs": runs,
    "without": without,
    "recorded": recordings,
    "replayed": replayed,
    "faulty": faulty,
    "cut": cut,
    "edges": edges,
    "beacons": beacons,
    "shortened": shortened,
    "cost": cost,
    "models": models,
    "claims": claims,
    "adaptive": adaptive,
}


def read() -> dict[str, Row]:
    """Rows by key."""
    if not RESULTS.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, RESULTS.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "in_run")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--keys", nargs="*", help="these cases alone")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for part in options.only:
        for key, case in PARTS[part](options.work):
            if key in read() or (options.keys and key not in options.keys):
                continue
            begun = time.monotonic()
            row = {"key": key, **case(), "wall_seconds": None}
            row["wall_seconds"] = round(time.monotonic() - begun, 1)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
