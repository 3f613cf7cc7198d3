"""Planted faults on the default run: whole runs with a fault, and replays of one run's sums.

The cases of :mod:`bench_in_run_default`, which runs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_in_run as small  # noqa: E402
import numpy as np  # noqa: E402 - the checkout comes first on the path
import torch  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "in_run_default.jsonl"
CONFIG = ROOT / "examples" / "certify.toml"
SEEDS = 10
RECORDED, SUMS = 1, "sums.f32"
"""The run whose sums are kept, and the name of their file."""
DEFAULT = dataclasses.replace(
    small.PLAN, public_size=2500, expected_batch_size=200, noise_multiplier=1.4716993779068763
)
"""Plan of the example; its σ is the calibrated one, as its ledger states it."""
Row = dict[str, Any]


def seconds() -> float:
    """CPU seconds of this process and of the children that it waited for."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def configured(seed: int, **in_run: Any) -> Any:
    """The example's configuration with another public seed (which 2,000 of the paragraphs it takes)."""
    from dpaudit.runs.config import parse_config, read_config

    value = read_config(CONFIG).model_dump(mode="json")
    value["run"]["seed"] = seed
    value["audit"]["in_run"] = {**value["audit"]["in_run"], **in_run}
    return parse_config(value, str(CONFIG))


class Recording:
    """In-run canaries that keep the records' clipped sums of every step before they add to them."""

    def __init__(self, canaries: Any, path: Path, steps: int) -> None:
        self._inner, self._path, self._steps = canaries, path, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def add_to(self, sums: Any, drawn: Any, **options: Any) -> None:
        shape = (self._steps, sum(s.numel() for s in sums))
        whole = np.memmap(self._path, np.float32, "r+" if self._path.exists() else "w+", shape=shape)
        whole[self._inner.steps] = np.concatenate([s.detach().float().reshape(-1).numpy() for s in sums])
        whole.flush()
        self._inner.add_to(sums, drawn, **options)


@contextlib.contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Let the training phase keep the records' sums in a file."""
    from dpaudit.runs import fit

    plain = fit.watch_of

    def watch_of(plan: Any, secret: Any, plans: Any, sizes: Any) -> Any:
        watch = plain(plan, secret, plans, sizes)
        path.with_suffix(".json").write_text(json.dumps(sizes))
        return dataclasses.replace(watch, canaries=Recording(watch.canaries, path, sum(p.steps for p in plans)))

    fit.watch_of = watch_of  # type: ignore[assignment]
    try:
        yield
    finally:
        fit.watch_of = plain


def heard(folder: Any, *, charged: int | None = None) -> Row:
    """What both observers say of the release of a run; ``charged`` counts fewer steps than ran."""
    from dpaudit.accounting import account
    from dpaudit.attacks import read_secret
    from dpaudit.auditing import AuditPlan, Scores, audit
    from dpaudit.auditing.in_run.audit import in_run_audit
    from dpaudit.auditing.in_run.evidence import InRunEvidence
    from dpaudit.auditing.roc import rank_sum_p_value
    from dpaudit.certificates.curve import declared_curve, declared_deltas
    from dpaudit.runs.in_run.planning import in_run_of, read_fixed
    from dpaudit.storage.journal import read_journal
    from dpaudit.storage.run_folder import read_json
    from dpaudit.storage.scores import scores_of

    plan = AuditPlan.from_dict(read_json(folder.audit_plan))
    inside = in_run_of(plan)
    assert inside is not None
    secret, tokens = read_fixed(folder, inside), read_secret(folder.canaries)
    assert secret is not None
    ledger = read_journal(folder.ledger).ledger.merged()
    if charged is not None:
        ledger = dataclasses.replace(ledger, stages=(dataclasses.replace(ledger.stages[0], steps=charged),))
    upper = account(ledger, delta=plan.delta, accountants=["prv"])[0].epsilon_upper
    evidence = InRunEvidence.from_dict(read_json(folder.in_run), secret.coins)
    found = in_run_audit(
        inside, evidence, stages=ledger.stages, deltas=declared_deltas(ledger, inside.epsilons), accounted_upper=upper
    )
    scores = scores_of(folder.scores, tokens.ids, attack=plan.attack)
    coins = np.asarray(tokens.coins)
    curve = declared_curve(ledger, plan.delta, plan.copies)
    seen = audit(Scores(tokens.ids, scores, coins), plan, coins="verified", accounted_upper=upper, curve=curve)
    return {
        **small.told(found),
        "model": {
            "epsilon_lower": seen.epsilon_lower,
            "correct": [seen.correct, seen.guesses],
            "rank_sum_p": rank_sum_p_value(scores, coins),
            "against": [f.name for f in seen.findings if f.status in small.AGAINST],
        },
    }


def recorded_run(seed: int, work: Path) -> Row:
    """The training phase of a correct run whose records' sums are kept in ``work``, for replays."""
    from dpaudit.runs.run import begin, train_phase

    out, begun = work / f"run{seed}", seconds()
    with recorded(work / SUMS):
        job = train_phase(begin(configured(seed), CONFIG.parent, out))
    facts = job.record.facts
    return {
        "run": "recorded",
        "seed": seed,
        "cpu_seconds": round(seconds() - begun, 1),
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        **heard(job.folder),
    }


def recordings(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield f"recorded/{RECORDED}", lambda: recorded_run(RECORDED, work)


def planted(fault: str, tensors: int, sizes: list[int]) -> Any:
    """The noise source of a fault; None where its noise is right."""
    held: dict[int, Any] = {}

    def silent(where: Callable[[int, int], bool]) -> Any:
        return small.Planted(lambda call, step, shape, x: x * 0 if where(call, step) else x, tensors)

    def reused(call: int, step: int, shape: Any, drawn: Any) -> Any:
        if step % 2:
            return held[call].clone()
        held[call] = drawn.clone()
        return drawn

    if fault.startswith("noise_x"):
        return small.WeakerNoise(float(fault.removeprefix("noise_x")))
    block = int(np.argsort(sizes)[tensors // 2])  # a tensor of middling size
    made = {
        "no_noise": small.NoNoise,
        "one_in_ten_silent": lambda: silent(lambda call, step: step % 10 == 3),
        "silent_block": lambda: silent(lambda call, step: call == block),
        "shared_halves": lambda: small.SharedHalves(sizes),
        "reused": lambda: small.Planted(reused, tensors),
    }
    return made[fault]() if fault in made else None


class Replaying:
    """In-run canaries that put a recorded step's sums in place of the records' before they add to them."""

    def __init__(self, canaries: Any, sums: Any) -> None:
        self._inner, self._sums = canaries, sums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def add_to(self, sums: Any, drawn: Any, **options: Any) -> None:
        at, step = 0, self._sums[self._inner.steps]
        for total in sums:
            total += torch.from_numpy(step[at : at + total.numel()].copy()).view(total.shape)
            at += total.numel()
        self._inner.add_to(sums, drawn, **options)


def replay(fault: str, seed: int, work: Path, plan: Any = DEFAULT) -> Row:
    """The recorded sums once more through the trainer's loop, with new coins, draws and noise."""
    from dpaudit.attacks import InRunCanaries, draw_in_run_canaries

    sizes = json.loads((work / SUMS).with_suffix(".json").read_text())
    steps, d = plan.steps, sum(sizes.values())
    sums = np.memmap(work / SUMS, np.float32, "r", shape=(steps, d))
    model = torch.nn.Module()
    for number, size in enumerate(sizes.values()):
        model.register_parameter(f"p{number}", torch.nn.Parameter(torch.zeros(size)))
    design = draw_in_run_canaries(d)
    q = plan.sampling_probability
    canaries = InRunCanaries(design, list(sizes.values()), sampling_probability=q, contribution=plan.clipping_norm)
    recorder, begun = small.ReleaseRecorder(sizes), seconds()
    journal = small.Shortened() if fault == "ledger_short" else small.memory()
    small.train(
        model,
        [],
        plan,
        collate=lambda rows: {},
        loss_fn=lambda model, batch: torch.zeros(0),
        journal=journal,
        optimizer=small.OptimizerSettings(algorithm="sgd", learning_rate=1e-3),
        noise=planted(fault, len(sizes), list(sizes.values())),
        sampler=small.PoissonSampler(len(design.members), 1.2 * q) if fault == "q_x1.2" else None,
        clipper=small.NoRecords(),
        canaries=Replaying(canaries, sums),
        recorder=recorder,
        preflight=False,
    )
    found = small.audited(design, canaries.scores(), recorder, journal.ledger())
    return {
        "run": "replayed",
        "fault": fault,
        "seed": seed,
        "cpu_seconds": round(seconds() - begun, 1),
        **small.told(found),
    }


EDGES = (("energy", 0.0011), ("canaries", 0.0598))
"""Smallest visible shortfalls of noise that the report of the default run prints."""
AT_EDGES = {
    f"noise_x{1 - share * stated:.6f}": f"{name} x{share}" for name, stated in EDGES for share in (0.5, 0.8, 1.0, 1.2)
}
REPLAYED = (*(fault for fault in small.FAULTS if fault != "stale_bound"), *AT_EDGES)


def replayed(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    if not (work / SUMS).exists():
        return
    for seed in range(SEEDS):
        for fault in REPLAYED:
            yield f"replayed/{fault}/{seed}", lambda fault=fault, seed=seed: replay(fault, seed, work)


def cut_down(seed: int) -> Any:
    """The example with 250 declared records in place of 2,000, and minibatches of 60 in place of 200.

    q, σ, the steps, the model, 1,000 token canaries and 100,000 in-run canaries are those of the example: what one
    canary adds to a release, and the noise beside it, are the same.
    """
    from dpaudit.runs.config import parse_config

    value = configured(seed).model_dump(mode="json")
    value["data"]["limit"] = value["privacy"]["public_size"] = 250
    value["privacy"]["expected_batch_size"] = 60
    return parse_config(value, "cut down")


def faulty_run(fault: str, seed: int, work: Path, config: Any = None) -> Row:
    """The training phase with a planted fault, and what both observers say of its release."""
    from dpaudit import trainers
    from dpaudit.runs.run import begin, train_phase

    config = configured(seed) if config is None else config
    config = config.model_copy(update={"run": config.run.model_copy(update={"checkpoints": 1})})
    plain = trainers.train

    def train(model: Any, records: Any, plan: Any, **options: Any) -> Any:
        if not records:  # the simulated control, which has its own fault
            return plain(model, records, plan, **options)
        parameters = [p.numel() for p in model.parameters() if p.requires_grad]
        sampler = None
        if fault == "q_x1.2":
            members = options["canaries"].members
            sampler = small.PoissonSampler(len(records) + members, 1.2 * plan.sampling_probability)
        noise = planted(fault, len(parameters), parameters)
        if fault == "stale_bound":
            adaptive = {"clipping": "adaptive", "target_quantile": 0.5, "quantile_rate": 0.2, "quantile_sigma": 20.0}
            plan = dataclasses.replace(plan, clipping_norm=0.1, **adaptive)
            # The quantile query costs 0.002 of ε here, so that σ is a little above the calibrated one.
            plan = dataclasses.replace(plan, noise_multiplier=1.01 * plan.noise_multiplier)
            still = plan.noise_multiplier * plan.clipping_norm
            noise = small.Planted(lambda call, step, shape, x: x, len(parameters), fixed=still)
        return plain(model, records, plan, **{**options, "noise": noise, "sampler": sampler})

    out, begun = work / f"{fault}_{seed}", seconds()
    shutil.rmtree(out, ignore_errors=True)
    trainers.train = train  # type: ignore[assignment]
    try:
        job = train_phase(begin(config, CONFIG.parent, out))
    finally:
        trainers.train = plain  # type: ignore[assignment]
    facts = job.record.facts
    row = {
        "run": "faulty",
        "fault": fault,
        "seed": seed,
        "cpu_seconds": round(seconds() - begun, 1),
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        "status": facts["training_status"],
        **heard(job.folder, charged=99 if fault == "ledger_short" else None),
    }
    shutil.rmtree(out, ignore_errors=True)
    return row


WHOLE = (
    "noise_x0.95",
    "noise_x0.8",
    "no_noise",
    "q_x1.2",
    "one_in_ten_silent",
    "reused",
    "shared_halves",
    "silent_block",
    "noise_x0.5",
    "stale_bound",
)
"""Faults of whole runs. A ledger that lacks steps is not among them: its run is a correct one; see `shortened`."""


def faulty(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every fault with one seed, then every fault with the next."""
    for seed in range(SEEDS):
        for fault in WHOLE:
            yield f"faulty/{fault}/{seed}", lambda fault=fault, seed=seed: faulty_run(fault, seed, work)


def cut(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Whole runs of the cut-down example: correct ones, and every fault."""
    for seed in range(SEEDS):
        for fault in dict.fromkeys(("none", "no_noise", *WHOLE, "ledger_short")):

            def case(fault: str = fault, seed: int = seed) -> Row:
                return {**faulty_run(fault, seed, work, cut_down(seed)), "run": "cut"}

            yield f"cut/{fault}/{seed}", case


def cut_recorded(seed: int, work: Path) -> Row:
    """A correct run of the cut-down example whose records' sums stay in ``work``, and the edge that it states."""
    with recorded(work / SUMS):
        return {**faulty_run("none", seed, work, cut_down(seed)), "run": "cut_recorded"}


def at_edge(share: float, edge: float, seed: int, work: Path) -> Row:
    """The recorded sums of the cut-down run with a shortfall of noise at a share of the canaries' edge."""
    plan = dataclasses.replace(DEFAULT, public_size=750, expected_batch_size=60)
    row = replay(f"noise_x{1 - share * edge:.6f}", seed, work, plan)
    return {**row, "run": "edges", "share": share, "edge": edge}


def edges(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """One recorded run of the cut-down example, then replays of it below, at and above its canaries' edge."""
    yield f"cut_recorded/{RECORDED}", lambda: cut_recorded(RECORDED, work)
    rows = map(json.loads, RESULTS.read_text().splitlines())
    edge = next((row["visible_by_canaries"] for row in rows if row["run"] == "cut_recorded"), None)
    if edge is None or not (work / SUMS).exists():
        return
    for seed in range(SEEDS):
        for share in (0.5, 0.8, 1.0, 1.2):
            yield f"edges/x{share}/{seed}", lambda share=share, seed=seed: at_edge(share, edge, seed, work)


def with_beacons(seed: int, work: Path) -> Row:
    """The training phase of the cut-down example, 40 of its canaries as beacons: which scores show a live attack."""
    from dpaudit.attacks import read_secret
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.beacons import beacon_finding
    from dpaudit.auditing.roc import rank_sum_p_value
    from dpaudit.runs.beacons import opened_beacons
    from dpaudit.runs.run import begin, train_phase
    from dpaudit.storage.run_folder import read_json
    from dpaudit.storage.scores import scores_of

    config = cut_down(seed)
    wanted = config.canaries.model_copy(update={"count": 960, "beacons": 40, "beacon_copies": 16})
    out, begun = work / f"beacons{seed}", seconds()
    shutil.rmtree(out, ignore_errors=True)
    job = train_phase(begin(config.model_copy(update={"canaries": wanted}), CONFIG.parent, out))
    plan = AuditPlan.from_dict(read_json(job.folder.audit_plan))
    opened, secret = opened_beacons(job.folder, plan), read_secret(job.folder.canaries)
    assert opened is not None and plan.beacons is not None
    found = beacon_finding(plan.beacons, opened.scores)
    facts = job.record.facts
    row = {
        "run": "beacons",
        "seed": seed,
        "cpu_seconds": round(seconds() - begun, 1),
        "heldout": [facts["heldout_before"], facts["heldout_after"]],
        "inserted": opened.inserted,
        "found": found.name,
        "beacons_p": found.p_value,
        "canaries_p": rank_sum_p_value(scores_of(job.folder.scores, secret.ids, attack=plan.attack), secret.coins),
        "group_epsilon": plan.beacons.group_epsilon,
    }
    shutil.rmtree(out, ignore_errors=True)
    return row


def beacons(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(SEEDS):
        yield f"beacons/{seed}", lambda seed=seed: with_beacons(seed, work)


def shortened(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Correct runs whose ledger counts 99 of the 110 steps: nothing but the count differs, so the replay is exact."""
    from dpaudit.storage.run_folder import RunFolder

    def case(seed: int) -> Row:
        return {
            "run": "default",
            "fault": "ledger_short",
            "seed": seed,
            **heard(RunFolder(work / f"run{seed}"), charged=99),
        }

    for seed in range(SEEDS):
        if RunFolder(work / f"run{seed}").in_run.exists():
            yield f"shortened/{seed}", lambda seed=seed: case(seed)
