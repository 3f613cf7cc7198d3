"""What in-run canaries show at other claims and configurations, on their coordinates alone: the cases of ``claims``.

The trainer's own sampler, loop and release, with the σ that is calibrated to each claim, without records and without a
model. The full run of a configuration differs by what its records' gradients hide.
"""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_in_run as small  # noqa: E402
import numpy as np  # noqa: E402 - the checkout comes first on the path

MINILM, LORA = 22_713_986, 16_384
"""Trained numbers of the encoder with its two-class head, and of rank-8 adapters on the bundled model."""
CONFIGURATIONS = {"lora": ("certify.toml", LORA), "encoder": ("encoder.toml", MINILM)}
CLAIMS, SEEDS = (1.0, 2.0, 4.0, 8.0), 3
Row = dict[str, Any]


def seconds() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@functools.cache
def planned(name: str, epsilon: float) -> tuple[Any, Any, Any, Any, float]:
    """Privacy plan, certified profile, in-run plan, its control's runs, and their CPU seconds."""
    from dpaudit.attacks.canaries.in_run import recommended_in_run_canaries
    from dpaudit.auditing.in_run.visible import control_for
    from dpaudit.runs.config import read_config
    from dpaudit.runs.in_run.control import simulate_control
    from dpaudit.runs.prepare import make_plans, public_size

    file, dimension = CONFIGURATIONS[name]
    config = read_config(ROOT / "examples" / file)
    claim = config.claim.model_copy(update={"epsilon": epsilon})
    config = config.model_copy(update={"claim": claim})
    (plan,) = make_plans(config, public_size(config))
    m = recommended_in_run_canaries(dimension)
    deltas, alpha = small.deltas_of(plan.ledger()), small.split_alpha(config.audit.alpha)[1]
    frozen = small.plan_in_run(
        m,
        epsilon,
        claim.delta,
        dimension=dimension,
        relation=claim.relation,
        unit=claim.unit,
        alpha=config.audit.alpha,
        alpha_split=alpha,
        commitment="0" * 64,
        control=control_for(m, [plan.stage()], deltas, small.EPSILONS, alpha.profile),
    )
    begun = seconds()
    control = simulate_control(frozen, plan, deltas)
    return plan, deltas, frozen, control, seconds() - begun


def case(name: str, epsilon: float, seed: int) -> Row:
    """One simulated run, its audit, and the plan's control."""
    from dpaudit.runs.in_run.control import simulate

    plan, deltas, frozen, control, took = planned(name, epsilon)
    begun = seconds()
    scores, coins = simulate(plan, frozen.m)
    evidence = small.InRunEvidence(
        coordinates=np.arange(frozen.m), scores=scores, coins=coins, energy=None, control=control
    )
    found = small.in_run_audit(frozen, evidence, stages=[plan.stage()], deltas=deltas)
    assert found.audit is not None and found.conditional is not None
    return {
        "run": "claims",
        "configuration": name,
        "seed": seed,
        "claim": epsilon,
        "delta": plan.delta,
        "canaries": frozen.m,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_lower": found.epsilon_lower,
        "expected": found.audit.expected_epsilon_lower,
        "ceiling": found.audit.ceiling,
        "correct": [found.audit.correct, found.audit.guesses],
        "conditional": found.conditional.epsilon_lower,
        "visible_by_canaries": found.visible_by_canaries,
        "fault": None if found.control is None else found.control.fault,
        "convicted_controls": None if found.control is None else [found.control.convicted, found.control.repeats],
        "alive": found.alive,
        "cpu_seconds": {"run": round(seconds() - begun, 2), "controls": round(took, 2)},
    }


def claims(work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each configuration at each claim, three seeds; every seed under one control."""
    for name in CONFIGURATIONS:
        for epsilon in CLAIMS:
            for seed in range(SEEDS):
                yield f"claims/{name}/{epsilon:g}/{seed}", functools.partial(case, name, epsilon, seed)
