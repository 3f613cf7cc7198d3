"""Translation of a ledger into its privacy cost: the dominating pair of every stage under a relation and group size.

Every stage becomes either Gaussian cost (its mean shift μ, whose squares add up exactly) or a run of identical
steps whose outputs are dominated by a pair of one-dimensional mixtures

    P = Σ_j up[j] · noise(x − j)        Q = Σ_j down[j] · noise(x + j)

For symmetric log-concave noise this pair dominates every k records of norm at most 1 under Poisson sampling: write
a = Q₀(A) for the unshifted noise Q₀. Among all sets A of mass a, the half-line maximises the mass of every upward
shift and minimises that of every downward one, and a shift by j is the largest that j sampled records can cause
(Neyman and Pearson). Add or remove k records: down = (1,), up = Binomial(k, q). Replace k records: both Binomial.
The same pairs, with other proofs: 2106.08567 (k = 1), 2403.04867 (groups), 2405.20769 (replacement).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from dpaudit.privacy import validate
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Mechanism, Relation, Sampling, Stage

SHUFFLE_SCHEDULE = "shuffle_fixed_schedule"
ASSUMPTIONS = (SHUFFLE_SCHEDULE,)
MAX_POISSON_GROUP = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Component:
    """One pair of mixtures with noise of ``scale`` (σ or b) and integer shifts; weights sum to one."""

    mechanism: Mechanism
    scale: float
    up: tuple[float, ...]
    down: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A step's dominating pair: components picked by a public label, each with its weight.

    ``tight`` says that some data set attains the pair, so that a lower bound for it is one for the mechanism.
    ``truncation`` keeps (N, q, cap) of truncated Poisson sampling for accountants that take the event itself.
    """

    components: tuple[tuple[float, Component], ...]
    tight: bool = True
    truncation: tuple[int, float, int, float] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Charges:
    """What a ledger costs: μ of its Gaussian part, runs of identical sampled steps, and why it is infinite.

    μ itself and not its square, which leaves the range of floats for σ below 1e-154 or above 1e154.
    """

    mu: float
    runs: tuple[tuple[Step, int], ...]
    tight: bool
    infinite: str | None
    assumptions: tuple[str, ...]

    @property
    def mu_squared(self) -> float:
        """Square of the Gaussian part's μ; squares add up over Gaussian stages."""
        return self.mu * self.mu


def participations(stage: Stage) -> int:
    """Times one record takes part in a shuffled stage: ⌈steps / ⌊1/q⌋⌉, a fresh permutation at its start."""
    batches = max(1, math.floor((1 / stage.sampling_probability) * (1 + 1e-12)))
    return -(-stage.steps // batches)


def charges(ledger: Ledger, *, group_size: int = 1, assume: Collection[str] = ()) -> Charges:
    """Translate a ledger under its relation for ``group_size`` units.

    Parameters
    ----------
    group_size : int
        Units that change together; multiplied by the ledger's ``max_records_per_unit``.
    assume : names
        ``"shuffle_fixed_schedule"``: for shuffled stages under add_or_remove_one, the caller states that the last
        incomplete batch is kept and that neither the number of steps nor the normaliser depends on the number
        of records. Without it such a stage is refused.

    Raises
    ------
    UnsupportedStage
        A stage has no proven pair under this relation; the message names the stage and the remedy.
    """
    validate.integer_at_least(1, group_size=group_size)
    for name in assume:
        validate.one_of(ASSUMPTIONS, assume=name)
    records = group_size * ledger.max_records_per_unit
    infinite: str | None = None
    shifts: list[float] = []
    runs: dict[Step, int] = {}
    notes: dict[str, None] = {}
    tight = True
    for number, stage in enumerate(ledger.stages, start=1):
        q, sigma = stage.sampling_probability, stage.combined_noise_multiplier
        if stage.steps == 0 or q == 0 or math.isinf(sigma):
            continue
        if sigma == 0:
            infinite = infinite or f"stage {number} adds no noise (noise_multiplier=0), so its ε is infinite"
            continue
        cost, note = _charge(stage, number, ledger.relation, records, sigma, assume)
        if note:
            notes[note] = None
        if isinstance(cost, float):
            shifts.append(cost)
            tight &= stage.sampling in (Sampling.NONE, Sampling.POISSON)
        else:
            step, times = cost
            runs[step] = runs.get(step, 0) + times
            tight &= step.tight
    return Charges(math.hypot(*shifts), tuple(runs.items()), tight, infinite, tuple(notes))


def _charge(
    stage: Stage, number: int, relation: Relation, records: int, sigma: float, assume: Collection[str]
) -> tuple[float | tuple[Step, int], str]:
    """Cost of one stage (μ, or a step with its count) and the assumption it rests on."""
    replace = relation is Relation.REPLACE_ONE
    if stage.mechanism is Mechanism.LAPLACE and stage.quantile_sigma is not None:
        raise UnsupportedStage(
            f"stage {number} has mechanism='laplace' with quantile_sigma={stage.quantile_sigma}, which no accountant"
            " treats; use the gaussian mechanism or a fixed clipping norm."
        )
    match stage.sampling:
        case Sampling.SHUFFLE:
            return _shuffled(stage, number, relation, records, sigma, assume)
        case Sampling.WITHOUT_REPLACEMENT:
            if not replace:
                raise UnsupportedStage(
                    f"stage {number} samples without replacement, which is defined under replace_one only and the"
                    f" relation is {relation}; restate the ledger with relation='replace_one'."
                )
            note = "without-replacement stages are charged without amplification"
            return _full(stage.mechanism, sigma, 2 * records, stage.steps, tight=False), note
        case Sampling.TRUNCATED_POISSON:
            return (_truncated(stage, number, relation, records, sigma), stage.steps), ""
        case _:
            pass
    q = stage.sampling_probability
    if q == 1:
        return _full(stage.mechanism, sigma, (2 if replace else 1) * records, stage.steps), ""
    if records > MAX_POISSON_GROUP:
        raise UnsupportedStage(
            f"stage {number} is Poisson-sampled and the group has {records} records, above {MAX_POISSON_GROUP};"
            " state a smaller group or bound max_records_per_unit."
        )
    up = binomial(records, q)
    component = Component(stage.mechanism, sigma, up, up if replace else (1.0,))
    return (Step(((1.0, component),)), stage.steps), "minibatches are drawn by Poisson sampling, afresh for every step"


def binomial(n: int, q: float) -> tuple[float, ...]:
    """Weights of Binomial(n, q), adding up to one."""
    weights = [math.comb(n, j) * q**j * (1 - q) ** (n - j) for j in range(n + 1)]
    return tuple(weights)


def _full(mechanism: Mechanism, scale: float, shift: float, steps: int, tight: bool = True) -> float | tuple[Step, int]:
    """Cost of unsampled steps: the exact μ for Gaussian noise, one step's pair for Laplace noise."""
    if mechanism is Mechanism.GAUSSIAN:
        return math.sqrt(steps) * (shift / scale)
    return Step(((1.0, Component(mechanism, scale / shift, (0.0, 1.0), (1.0,))),), tight), steps


def _shuffled(
    stage: Stage, number: int, relation: Relation, records: int, sigma: float, assume: Collection[str]
) -> tuple[float | tuple[Step, int], str]:
    """Unamplified bound of shuffled epochs: a coupling of permutations moves the means by at most this much."""
    rounds = participations(stage)
    note = "shuffled stages are charged without amplification"
    if relation is Relation.ADD_OR_REMOVE_ONE:
        if SHUFFLE_SCHEDULE not in assume or stage.mechanism is not Mechanism.GAUSSIAN:
            raise UnsupportedStage(
                f"stage {number} is shuffled and the relation is add_or_remove_one, where removing a record shifts"
                f" another into its slot; state assume={SHUFFLE_SCHEDULE!r} when drop_last is off and neither steps"
                " nor normaliser depends on the number of records, or use relation='zero_out' or 'replace_one'."
            )
        # The record's own slot changes by at most 2, since another moves in, and one other slot by at most 1; as one
        # vector that is √(2² + 1²).
        note = "drop_last is off and neither steps nor normaliser depends on the number of records; " + note
        return math.sqrt(5.0 * rounds) * (records / sigma), note
    shift = (2 if relation is Relation.REPLACE_ONE else 1) * records
    return _full(stage.mechanism, sigma, shift, rounds, tight=False), note


def _truncated(stage: Stage, number: int, relation: Relation, records: int, sigma: float) -> Step:
    """Cost of truncated Poisson sampling (2508.15089): a public label says whether the cap on the minibatch binds."""
    from scipy.special import bdtrc

    population, cap, q = stage.public_size, stage.max_batch, stage.sampling_probability
    if population is None or cap is None:
        raise UnsupportedStage(
            f"stage {number} samples by truncated Poisson without public_size; record the number of records."
        )
    if records > 1:
        raise UnsupportedStage(
            f"stage {number} samples by truncated Poisson and the group has {records} records, where only 1 is proven;"
            " use plain Poisson sampling for group claims."
        )
    if stage.mechanism is not Mechanism.GAUSSIAN:
        raise UnsupportedStage(
            f"stage {number} samples by truncated Poisson with laplace noise, which is not proven; use gaussian."
        )
    replace = relation is Relation.REPLACE_ONE
    plain = Component(Mechanism.GAUSSIAN, sigma, (1 - q, q), (1 - q, q) if replace else (1.0,))
    bind = min(1.0, float(bdtrc(cap - 1, population - 1, q)) * (1 + 1e-9)) if population > 1 else 0.0
    if bind == 0:
        return Step(((1.0, plain),), tight=False)
    taken = min(1.0, float(bdtrc(cap, population, q)) * (1 + 1e-9) * cap / bind / population)
    # Where the cap binds, the record displaces another one, so that the sum moves by at most 2 instead of 1.
    capped = Component(Mechanism.GAUSSIAN, sigma / 2, (1 - taken, taken), (1 - taken, taken))
    parts = ((bind, capped),) if bind == 1 else ((1 - bind, plain), (bind, capped))
    return Step(parts, tight=False, truncation=(population, q, cap, sigma))
