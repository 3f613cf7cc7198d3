"""The in-run audit measured: planted faults, the smallest visible shortfalls, false alarms, coverage.

    python benchmarks/bench_in_run.py                    # go on where the results file stops
    python benchmarks/bench_in_run.py --only faults      # one part
    python benchmarks/bench_in_run.py --table            # print what there is

Results go to benchmarks/results/in_run.json, written anew after every case. Three kinds of runs, told apart by "run":

- ``small``: the trainer's own loop on a network of 60,300 numbers with 200 records, q = 0.08, σ = 1.4717, 110 steps as
  in examples/certify.toml, 6,030 in-run canaries; about a second.
- ``coordinates``: the trainer's own loop on 100,000 canary coordinates without records: what canaries of the default
  run see, but for the records' gradients.
- ``simulated``: NumPy alone, for coverage and for thousands of repetitions.

The default run itself is ``make certify``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout comes first on the path
import torch  # noqa: E402

from dpaudit import MemoryJournal  # noqa: E402
from dpaudit.attacks import InRunCanaries, draw_in_run_canaries  # noqa: E402
from dpaudit.auditing import snj_epsilon_lower  # noqa: E402
from dpaudit.auditing.guess import count_correct, guess  # noqa: E402
from dpaudit.auditing.in_run.audit import InRunResult, in_run_audit  # noqa: E402
from dpaudit.auditing.in_run.evidence import InRunEvidence, energy_from_state  # noqa: E402
from dpaudit.auditing.in_run.plan import (  # noqa: E402
    COORDINATES,
    ControlDesign,
    InRunPlan,
    guesses_in_run,
    split_alpha,
)
from dpaudit.auditing.in_run.visible import smallest_visible_canary_shortfall  # noqa: E402
from dpaudit.auditing.independent import EPSILONS, independent_epsilon_lower, profile_test  # noqa: E402
from dpaudit.certificates.curve import declared_deltas  # noqa: E402
from dpaudit.runs.in_run.control import WeakerNoise, simulate  # noqa: E402
from dpaudit.trainers import NoiseSource, OptimizerSettings, PoissonSampler, PrivacyPlan, ReleaseRecorder, train  # noqa: E402
from dpaudit.trainers.noise import NoNoise  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "in_run.json"
SEEDS = 10
Row = dict[str, Any]
PLAN = PrivacyPlan(
    delta=1e-5,
    relation="add_or_remove_one",  # type: ignore[arg-type]  # parsed by the plan
    sampling="poisson",  # type: ignore[arg-type]
    unit="record",
    max_records_per_unit=1,
    public_size=200,
    expected_batch_size=16,
    steps=110,
    clipping_norm=0.5,
    noise_multiplier=1.4717,
)
CLAIM, ALPHA = 3.0, 0.05


def memory() -> MemoryJournal:
    """A journal in memory."""
    return MemoryJournal(relation="add_or_remove_one", unit="record")


class Shortened:
    """A journal that forgets every tenth step."""

    def __init__(self) -> None:
        self.inner, self._asked = memory(), 0

    def count(self) -> None:
        self._asked += 1
        if self._asked % 10:
            self.inner.count()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclasses.dataclass
class Planted:
    """Noise with a fault; ``fault(call, step, shape, drawn) -> values`` changes what was drawn."""

    fault: Callable[[int, int, Any, torch.Tensor], torch.Tensor]
    tensors: int
    is_test: bool = True
    calls: int = 0
    fixed: float | None = None

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> torch.Tensor:
        if tuple(shape) == ():  # adaptive clipping's query
            return NoiseSource().sample(shape, std, device)
        step, call = divmod(self.calls, self.tensors)
        self.calls += 1
        drawn = NoiseSource().sample(shape, std if self.fixed is None else self.fixed, device)
        return self.fault(call, step, shape, drawn)


class SharedHalves:
    """The second half of all coordinates gets the noise of the first."""

    is_test = True

    def __init__(self, sizes: list[int]) -> None:
        self._sizes, self._half, self._call = sizes, sum(sizes) // 2, 0

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> torch.Tensor:
        if self._call == 0:
            half = NoiseSource().sample((self._half,), std, device)
            rest = NoiseSource().sample((sum(self._sizes) - 2 * self._half,), std, device)
            self._all = torch.cat([half, half, rest])
            self._at = 0
        size = math.prod(shape)
        values = self._all[self._at : self._at + size].reshape(shape)
        self._at += size
        self._call = (self._call + 1) % len(self._sizes)
        return values.clone()


class NoRecords:
    """A clipper that is never asked."""

    def backward(self, losses: torch.Tensor) -> torch.Tensor:
        raise AssertionError("there are no records")


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.ReLU(), torch.nn.Linear(200, 100))


def small(seed: int, fault: str = "none") -> tuple[InRunResult, float]:
    """One run of the small configuration with a planted fault; with the seconds that it took."""
    model, plan = network(seed), PLAN
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    tensors, held = len(sizes), {}
    records = list(torch.randn(200, 200, generator=torch.Generator().manual_seed(seed)))
    if fault == "stale_bound":
        plan = dataclasses.replace(
            PLAN, clipping="adaptive", target_quantile=0.5, quantile_rate=0.2, quantile_sigma=20.0, clipping_norm=0.1
        )
    noise: Any = None
    sampler: Any = None
    journal: Any = memory()

    def reused(call: int, step: int, shape: Any, drawn: torch.Tensor) -> torch.Tensor:
        if step % 2:
            return held[call].clone()
        held[call] = drawn.clone()
        return drawn

    def zero(where: Callable[[int, int], bool]) -> Planted:
        return Planted(lambda call, step, shape, x: torch.zeros_like(x) if where(call, step) else x, tensors)

    design = draw_in_run_canaries(sum(sizes.values()))
    members = len(design.members)
    if fault.startswith("noise_x"):
        noise = WeakerNoise(float(fault.removeprefix("noise_x")))
    elif fault == "no_noise":
        noise = NoNoise()
    elif fault == "q_x1.2":
        sampler = PoissonSampler(200 + members, 1.2 * plan.sampling_probability)
    elif fault == "ledger_short":
        journal = Shortened()
    elif fault == "one_in_ten_silent":
        noise = zero(lambda call, step: step % 10 == 3)
    elif fault == "stale_bound":
        noise = Planted(lambda call, step, shape, x: x, tensors, fixed=plan.noise_multiplier * plan.clipping_norm)
    elif fault == "shared_halves":
        noise = SharedHalves(list(sizes.values()))
    elif fault == "silent_block":
        noise = zero(lambda call, step: call == 2)
    elif fault == "reused":
        noise = Planted(reused, tensors)
    canaries = InRunCanaries(
        design,
        list(sizes.values()),
        sampling_probability=plan.sampling_probability,
        contribution=plan.clipping_norm,
    )
    recorder = ReleaseRecorder(sizes)
    begun = time.process_time()
    train(
        model,
        records,
        plan,
        collate=lambda rows: torch.stack(rows),
        loss_fn=lambda net, x: net(x).square().mean(1),
        journal=journal,
        optimizer=OptimizerSettings(algorithm="adamw", learning_rate=1e-3),
        physical_batch_size=64,
        noise=noise,
        sampler=sampler,
        canaries=canaries,
        recorder=recorder,
        preflight=False,
    )
    seconds = time.process_time() - begun
    ledger = journal.ledger()
    return audited(design, canaries.scores(), recorder, ledger), seconds


@functools.cache
def planned(m: int, dimension: int, claim: float = CLAIM, control: ControlDesign | None = None) -> InRunPlan:
    """The plan of m canaries; the number of guesses is chosen once."""
    levels = split_alpha(ALPHA)[1]
    return InRunPlan(
        kind=COORDINATES,
        m=m,
        dimension=dimension,
        claimed_epsilon=claim,
        delta=PLAN.delta,
        relation=PLAN.relation,
        unit="record",
        guesses=guesses_in_run(m, claim, PLAN.delta, levels),
        alpha=ALPHA,
        alpha_split=levels,
        commitment="0" * 64,
        control=control,
    )


@functools.cache
def deltas_of(ledger: Any) -> tuple[float, ...]:
    """Certified profile of a ledger, computed once."""
    return declared_deltas(ledger, EPSILONS)


def audited(design: Any, scores: Any, recorder: Any, ledger: Any) -> InRunResult:
    """The in-run audit of a run's arrays."""
    evidence = InRunEvidence(
        coordinates=design.coordinates,
        scores=scores,
        coins=design.coins,
        energy=energy_from_state(recorder.state()),
    )
    whole = ledger.merged()
    return in_run_audit(
        planned(len(design), design.dimension), evidence, stages=whole.stages, deltas=deltas_of(whole), coins="verified"
    )


AGAINST = ("violated", "accounting_mismatch", "invalid_audit")


def told(result: InRunResult) -> Row:
    """What a result says, for the results file."""
    against = [f.name for f in result.findings if f.status in AGAINST]
    assert result.energy is not None and result.profile is not None
    return {
        "against": against,
        "where": result.energy.where if "release_energy" in against else None,
        "energy_p": result.energy.p_value,
        "profile_p": result.profile.p_value,
        "epsilon_lower": result.epsilon_lower,
        "conditional": None if result.conditional is None else result.conditional.epsilon_lower,
        "alive": result.alive,
        "visible_by_energy": result.visible_by_energy,
        "visible_by_canaries": result.visible_by_canaries,
    }


FAULTS = (
    "none", "noise_x0.95", "noise_x0.8", "noise_x0.5", "no_noise", "q_x1.2", "ledger_short", "one_in_ten_silent",
    "stale_bound", "shared_halves", "silent_block", "reused",
)  # fmt: skip


def faults() -> Iterator[tuple[str, Callable[[], Row]]]:
    for seed in range(SEEDS):
        for fault in FAULTS:

            def case(seed: int = seed, fault: str = fault) -> Row:
                result, seconds = small(seed, fault)
                return {"run": "small", "fault": fault, "seed": seed, "cpu_seconds": round(seconds, 2), **told(result)}

            yield f"small/{fault}/{seed}", case


def edges() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Runs just above and below the smallest shortfalls that the report states."""
    deltas = declared_deltas(PLAN.ledger(), EPSILONS)
    level = split_alpha(ALPHA)[1].profile
    by_canaries = smallest_visible_canary_shortfall(100_000, [PLAN.stage()], deltas, EPSILONS, level)
    by_energy = 0.0028  # what a correct small run states; it depends on the energy that records add

    def energy(seed: int, share: float) -> Row:
        result, _ = small(seed, f"noise_x{1 - share * by_energy}")
        return {"run": "small", "shortfall": share * by_energy, "seed": seed, **told(result)}

    def canaries(seed: int, share: float, q: float) -> Row:
        sampler = (lambda n: PoissonSampler(n, q * PLAN.sampling_probability)) if q != 1 else None
        scores, coins = simulate(PLAN, 100_000, noise=WeakerNoise(1 - share * by_canaries), sampler=sampler)
        values = scores.astype(np.float32)
        test = profile_test(values, coins, deltas)
        return {
            "run": "coordinates",
            "shortfall": share * by_canaries,
            "stated": by_canaries,
            "q_factor": q,
            "seed": seed,
            "profile_p": test.p_value,
            "convicted": test.p_value <= level,
            **_bounds(values, coins, 100_000),
        }

    for seed in range(SEEDS):
        for share in (0.4, 1.2):
            yield f"energy/{share}/{seed}", lambda seed=seed, share=share: energy(seed, share)
            yield f"canaries/{share}/{seed}", lambda seed=seed, share=share: canaries(seed, share, 1.0)
        yield f"canaries/q1.2/{seed}", lambda seed=seed: canaries(seed, 0.0, 1.2)
        yield f"canaries/half/{seed}", lambda seed=seed: canaries(seed, 0.5 / by_canaries, 1.0)
        yield f"canaries/correct/{seed}", lambda seed=seed: canaries(seed, 0.0, 1.0)


def _bounds(scores: Any, coins: Any, m: int) -> Row:
    plan = planned(m, m)
    made, right = count_correct(guess([str(i) for i in range(m)], scores, (plan.guesses, plan.guesses)), coins)
    return {
        "guesses": made,
        "correct": right,
        "epsilon_lower": snj_epsilon_lower(m, made, right, PLAN.delta, ALPHA),
        "conditional": independent_epsilon_lower(scores, coins, PLAN.delta, ALPHA),
    }


def correlated() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Correct small runs whose records all answer to earlier releases along the canaries' coordinates."""
    plan = dataclasses.replace(PLAN, public_size=64, expected_batch_size=16, steps=40, noise_multiplier=1.5)
    deltas = declared_deltas(plan.ledger(), EPSILONS)

    class Pull(torch.nn.Module):
        """Every record pulls the weights towards zero, or away from it, along where they stand."""

        def __init__(self, d: int, sign: float) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(d, 1, bias=False)
            torch.nn.init.zeros_(self.linear.weight)
            self.sign = sign

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            direction = self.linear.weight.detach().sign()
            return self.sign * self.linear(x * direction).squeeze(1)

    def case(seed: int) -> Row:
        d, rate = 2_000, (0.01, 0.1, 1.0)[seed % 3]
        model = Pull(d, 1.0 if seed % 2 else -1.0)
        design = draw_in_run_canaries(d, m=1_000)
        canaries = InRunCanaries(
            design, [d], sampling_probability=plan.sampling_probability, contribution=plan.clipping_norm
        )
        recorder = ReleaseRecorder({"w": d})
        journal = memory()
        train(
            model,
            [torch.ones(d)] * 64,
            plan,
            collate=lambda rows: torch.stack(rows),
            loss_fn=lambda net, x: net(x),
            journal=journal,
            optimizer=OptimizerSettings(algorithm="sgd", learning_rate=rate),
            canaries=canaries,
            recorder=recorder,
            preflight=False,
        )
        result = in_run_audit(
            planned(1_000, d),
            InRunEvidence(
                coordinates=design.coordinates,
                scores=canaries.scores(),
                coins=design.coins,
                energy=energy_from_state(recorder.state()),
            ),
            stages=[plan.stage()],
            deltas=deltas,
        )
        return {"run": "small", "rate": rate, "seed": seed, **told(result)}

    for seed in range(500):
        yield f"correlated/{seed}", lambda seed=seed: case(seed)


def coverage() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Bounds above the truth in 2,000 simulated correct runs: a Gaussian mechanism, and subsampled steps."""
    from dpaudit.accounting import epsilon_upper
    from dpaudit.auditing.gaussian import gdp_epsilon

    runs = {
        "gaussian": (1.0, 1.0, 1, gdp_epsilon(1.0, 1e-5)),
        "subsampled": (0.08, 1.4717, 110, None),
    }

    def case(name: str, block: int) -> Row:
        q, sigma, steps, truth = runs[name]
        if truth is None:
            truth = epsilon_upper(PLAN.ledger(), delta=PLAN.delta)
        rng, m, k = np.random.default_rng([block, len(name)]), 1_000, 100
        above = {"unconditional": 0, "conditional": 0, "profile_alarms": 0}
        ledger = dataclasses.replace(
            PLAN.ledger(),
            stages=(
                dataclasses.replace(
                    PLAN.stage(),
                    sampling_probability=q,
                    noise_multiplier=sigma,
                    steps=steps,
                    **({"sampling": type(PLAN.stage().sampling)("none")} if q == 1 else {}),
                ),
            ),
        )
        deltas = declared_deltas(ledger, EPSILONS)
        for _ in range(100):
            coins = rng.random(m) < 0.5
            scores = np.zeros(m)
            for _ in range(steps):
                x = sigma * rng.standard_normal(m) + ((rng.random(m) < q) & coins)
                scores += np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
            made, right = count_correct(guess([str(i) for i in range(m)], scores, (k, k)), coins)
            above["unconditional"] += snj_epsilon_lower(m, made, right, 1e-5, ALPHA) > truth
            above["conditional"] += independent_epsilon_lower(scores, coins, 1e-5, ALPHA) > truth
            above["profile_alarms"] += profile_test(scores, coins, deltas).p_value <= ALPHA
        return {"run": "simulated", "mechanism": name, "runs": 100, "truth": truth, **above}

    for block in range(20):
        for name in runs:
            yield f"coverage/{name}/{block}", lambda name=name, block=block: case(name, block)


def claims() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Bound, expected bound and power at several claims, on 100,000 coordinates of the default run's steps."""
    from dpaudit.accounting import calibrate
    from dpaudit.auditing.in_run.visible import control_for
    from dpaudit.runs.in_run.control import simulate_control

    def case(claim: float, seed: int) -> Row:
        plan = calibrate(dataclasses.replace(PLAN, noise_multiplier=None, target_epsilon=claim))
        deltas, m, level = deltas_of(plan.ledger()), 100_000, split_alpha(ALPHA)[1].profile
        frozen = planned(m, m, claim, control_for(m, [plan.stage()], deltas, EPSILONS, level))
        begun = time.process_time()
        scores, coins = simulate(plan, m)
        seconds = time.process_time() - begun
        control = simulate_control(frozen, plan, deltas) if seed == 0 else ()
        energy = None
        evidence = InRunEvidence(coordinates=np.arange(m), scores=scores, coins=coins, energy=energy, control=control)
        result = in_run_audit(frozen, evidence, stages=[plan.stage()], deltas=deltas)
        assert result.audit is not None and result.conditional is not None
        return {
            "run": "coordinates",
            "claim": claim,
            "seed": seed,
            "noise_multiplier": plan.noise_multiplier,
            "guesses": 2 * frozen.guesses,
            "epsilon_lower": result.epsilon_lower,
            "expected_gaussian": result.audit.expected_epsilon_lower,
            "conditional": result.conditional.epsilon_lower,
            "visible_by_canaries": result.visible_by_canaries,
            "fault": None if result.control is None else result.control.fault,
            "power_lower": result.power_lower,
            "alive": result.alive,
            "against": [f.name for f in result.findings if f.status == "violated"],
            "cpu_seconds": round(seconds, 2),
        }

    for seed in range(3):
        for claim in (1.0, 2.0, 3.0, 4.0, 8.0):
            yield f"claims/{claim:g}/{seed}", lambda claim=claim, seed=seed: case(claim, seed)


def scalars() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Canaries of a zeroth-order run, at the steps of examples/certify_zo.toml: all share its 280 scalars."""
    from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries
    from dpaudit.auditing.design import choose_guesses
    from dpaudit.auditing.roc import rank_sum_p_value

    q, sigma, directions, steps, claim, runs = 0.04, 0.907, 2, 140, 4.0, 20

    def case(m: int) -> Row:
        rng, seen = np.random.default_rng(m), []
        k = choose_guesses(m, claim, PLAN.delta, split_alpha(ALPHA)[1].primary)[0]
        for _ in range(runs):
            coins = rng.random(m) < 0.5
            canaries = ScalarInRunCanaries(
                coins,
                int(rng.integers(2**63)),
                sampling_probability=q,
                noise_multiplier=sigma,
                releases_per_step=directions,
                clip="joint",
            )
            for step in range(steps):
                drawn = np.flatnonzero(rng.random(canaries.members) < q).tolist()
                noise = sigma * rng.standard_normal(directions)
                sums = canaries.differences(step, drawn, 1.0).sum(1).numpy() + noise
                canaries.observe(step, sums, clipping_norm=1.0, normaliser=1.0)
            scores = canaries.scores()
            made, right = count_correct(guess([str(i) for i in range(m)], scores, (k, k)), coins)
            seen.append((snj_epsilon_lower(m, made, right, PLAN.delta, ALPHA), rank_sum_p_value(scores, coins)))
        bounds, p_values = np.sort(np.array(seen), axis=0).T
        return {
            "run": "simulated",
            "m": m,
            "runs": runs,
            "epsilon_lower": float(np.median(bounds)),
            "largest": float(bounds[-1]),
            "rank_sum_p": float(np.median(p_values)),
            "smallest_p": float(p_values[0]),
        }

    for m in (41, 82, 164, 400, 1000, 3000):
        yield f"scalars/{m}", lambda m=m: case(m)


PARTS = {
    "faults": faults,
    "edges": edges,
    "claims": claims,
    "coverage": coverage,
    "correlated": correlated,
    "scalars": scalars,
}


def read() -> dict[str, Row]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(rows: dict[str, Row]) -> None:
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    RESULTS.write_text("{" + text + "}\n")


def table(rows: dict[str, Row]) -> None:
    """Counts by fault and part."""
    by_fault: dict[str, list[Row]] = {}
    for key, row in rows.items():
        if key.startswith(("coverage/", "scalars/")):
            continue
        by_fault.setdefault("/".join(key.split("/")[:-1]), []).append(row)
    for name, of in by_fault.items():
        convicted = sum(bool(row.get("against", row.get("convicted"))) for row in of)
        names = sorted({n for row in of for n in row.get("against", ())})
        where = sorted({row["where"] for row in of if row.get("where")})
        lower = sorted(row["epsilon_lower"] for row in of)[len(of) // 2]
        print(f"{name:28} {convicted:4} of {len(of):4}  eps_lower median {lower:.3f}  {', '.join(names + where)}")
    for row in (row for key, row in rows.items() if key.startswith("scalars/")):
        print(f"zeroth order, {row['m']} canaries: {row}")
    for name in ("gaussian", "subsampled"):
        of = [row for key, row in rows.items() if key.startswith(f"coverage/{name}/")]
        if of:
            runs = sum(row["runs"] for row in of)
            counts = {k: sum(row[k] for row in of) for k in ("unconditional", "conditional", "profile_alarms")}
            print(f"coverage/{name}: of {runs} runs, above the truth: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = read()
    if options.table:
        table(rows)
        return
    torch.set_num_threads(1)
    for part in options.only:
        for key, case in PARTS[part]():
            if key not in rows:
                rows[key] = case()
                write(rows)
    table(rows)


if __name__ == "__main__":
    main()
