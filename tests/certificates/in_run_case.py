"""An in-run audit for a release folder: simulated canaries, energy and controls that fit the embedded ledger."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.auditing.energy import ReleaseEnergy
from dpaudit.auditing.in_run.arrays import bits_text
from dpaudit.auditing.in_run.audit import in_run_audit
from dpaudit.auditing.in_run.evidence import ControlRun, InRunEvidence, in_run_manifest
from dpaudit.auditing.in_run.plan import ControlDesign, InRunPlan, split_alpha
from dpaudit.auditing.independent import profile_counts
from dpaudit.certificates.curve import declared_deltas
from dpaudit.certificates.plain import plain_json
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.storage.commitment import canonical_json, commitment, sha256_bytes
from tests.auditing.in_run.cases import plan_of
from tests.certificates.forgery import Forgery

M, DIMENSION = 4_000, 50_000
NONCE = bytes(range(100, 132))
CONTROL = ControlDesign(noise_factor=0.5, canaries=M, repeats=20)


def scores_of(
    rng: np.random.Generator, ledger: Ledger, coins: NDArray[np.bool_], noise_factor: float = 1.0
) -> NDArray[np.float64]:
    """Log-likelihood ratios of canaries in a run with a share of the declared noise."""
    total = np.zeros(len(coins))
    for stage in ledger.stages:
        q, s = stage.sampling_probability, stage.noise_multiplier
        for _ in range(stage.steps):
            drawn = (rng.random(len(coins)) < q) & coins
            x = noise_factor * s * rng.standard_normal(len(coins)) + drawn
            total += np.log1p(q * np.expm1((2 * x - 1) / (2 * s * s)))
    return total


def energy_of(rng: np.random.Generator, steps: int, noise_factor: float = 1.0) -> ReleaseEnergy:
    """The energy of releases that are noise and nothing else."""
    squares = noise_factor**2 * rng.chisquare(DIMENSION, steps)
    return ReleaseEnergy(
        blocks=("w",),
        sizes=np.array([DIMENSION]),
        probe=np.array([1000]),
        step_squares=squares,
        block_squares=np.array([squares.sum()]),
        probe_squares=np.full(steps, 1000.0),
        lagged=np.zeros(steps),
        within=np.zeros((steps, 2)),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InRunCase:
    """Plan, evidence and nonce of one run."""

    plan: InRunPlan
    evidence: InRunEvidence


def case_of(
    ledger: Ledger, *, m: int = M, seed: int = 0, noise_factor: float = 1.0, shuffled: bool = False
) -> InRunCase:
    """A run with m canaries; ``shuffled`` scores belong to other canaries than their ids say."""
    rng, dimension = np.random.default_rng(seed), max(DIMENSION, 10 * m)
    coordinates = np.sort(rng.choice(dimension, m, replace=False)).astype(np.int64)
    coins = rng.random(m) < 0.5
    scores = scores_of(rng, ledger, coins, noise_factor)
    energy = energy_of(rng, ledger.steps, noise_factor)
    digest = commitment(NONCE, in_run_manifest(coordinates, coins, dimension))
    plan = plan_of(
        m, dimension=dimension, relation=ledger.relation, unit=ledger.unit, control=CONTROL, commitment=digest
    )
    deltas = declared_deltas(ledger, plan.epsilons)
    control = tuple(_control(rng, ledger, deltas, plan) for _ in range(CONTROL.repeats))
    if shuffled:
        scores = rng.permutation(scores)
    return InRunCase(
        plan=plan,
        evidence=InRunEvidence(coordinates=coordinates, scores=scores, coins=coins, energy=energy, control=control),
    )


def _control(rng: np.random.Generator, ledger: Ledger, deltas: tuple[float, ...], plan: InRunPlan) -> ControlRun:
    coins = rng.random(CONTROL.canaries) < 0.5
    scores = scores_of(rng, ledger, coins, CONTROL.noise_factor)
    order, k = np.argsort(-scores), plan.guesses
    right = int(coins[order[:k]].sum() + (~coins[order[-k:]]).sum())
    counts = profile_counts(scores, coins, deltas, epsilons=plan.epsilons)
    return ControlRun(counts=tuple(counts), guesses=2 * k, correct=right, sha256="0" * 64)


def write_in_run(forgery: Forgery, case: InRunCase) -> Forgery:
    """Put an in-run audit into a release: plan, evidence file, section; everything that binds the plan is redone."""
    audit = forgery.body["audit"]
    audit["plan"]["alpha_split"] = dataclasses.asdict(split_alpha(0.05)[0])
    audit["plan"]["in_run"] = plain_json(case.plan.to_dict())
    replan(forgery)
    data = canonical_json(plain_json(case.evidence.to_dict())) + b"\n"
    (forgery.folder / "in_run.json").write_bytes(data)
    forgery.body["in_run"] = {
        "coins": bits_text(case.evidence.coins),
        "nonce": NONCE.hex(),
        "evidence_digest": sha256_bytes(data),
        "result": audited_in_run(forgery, case),
    }
    return forgery


def audited_in_run(forgery: Forgery, case: InRunCase) -> dict[str, Any]:
    """The result that the evidence gives."""
    ledger = forgery.ledger()
    result = in_run_audit(
        case.plan,
        case.evidence,
        stages=ledger.stages,
        deltas=declared_deltas(ledger, case.plan.epsilons),
        coins="verified",
        accounted_upper=smallest_upper(forgery.body["accounting"]["guarantees"]),
    )
    value: dict[str, Any] = plain_json(result.to_dict())
    return value


def replan(forgery: Forgery) -> None:
    """Write the embedded plan and redo what follows from it: forecast, ledger's first line, the model's audit."""
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.design import planned_again

    plan = planned_again(AuditPlan.from_dict(forgery.body["audit"]["plan"]))
    forgery.body["audit"]["plan"] = plain_json(plan.to_dict())
    forgery.write_plan()
    forgery.write_ledger()
    forgery.audit_again()
