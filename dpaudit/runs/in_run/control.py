"""The simulated control: the trainer's own loop on the canaries' coordinates alone, with a stated fault.

No record and no model takes part, so that it takes seconds and may be published. It measures how often the in-run
audit convicts a run that has the fault.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpaudit import MemoryJournal
from dpaudit.auditing.guess import count_correct, guess
from dpaudit.auditing.in_run.evidence import ControlRun
from dpaudit.auditing.in_run.plan import InRunPlan
from dpaudit.auditing.independent import profile_counts

if TYPE_CHECKING:
    from dpaudit.trainers import PrivacyPlan


@dataclasses.dataclass(frozen=True, slots=True)
class WeakerNoise:
    """The trainer's noise times a factor; marks the run as a test, so that it can never be certified."""

    factor: float
    is_test: bool = True

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        """Noise of ``factor`` times the deviation asked for."""
        from dpaudit.trainers import NoiseSource

        return NoiseSource().sample(shape, self.factor * std, device)


class _NoRecords:
    """A clipper that is never asked, since there are no records."""

    def backward(self, losses: Any) -> Any:
        """Refused: a simulated run has no losses."""
        raise AssertionError("a simulated run has no records")


def simulate(
    privacy: PrivacyPlan, m: int, *, noise: Any = None, sampler: Callable[[int], Any] | None = None, **options: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (m,) and coins (m,) of a run of the trainer's loop on m canary coordinates, without records.

    Parameters
    ----------
    privacy : PrivacyPlan
        With σ known.
    m : int
    noise, sampler : optional
        Planted faults: a noise source, and a function of the number of members that gives a sampler.
    options : dict
        Further arguments of :func:`dpaudit.trainers.train`.
    """
    import torch

    from dpaudit.attacks import InRunCanaries, draw_in_run_canaries
    from dpaudit.trainers import OptimizerSettings, train

    design = draw_in_run_canaries(m, m=m)
    model = torch.nn.Module()
    model.register_parameter("coordinates", torch.nn.Parameter(torch.zeros(m)))
    canaries = InRunCanaries(
        design,
        [m],
        sampling_probability=privacy.sampling_probability,
        contribution=privacy.clipping_norm,
    )
    train(
        model,
        [],
        dataclasses.replace(privacy, target_epsilon=None),
        collate=lambda rows: {},
        loss_fn=lambda model, batch: torch.zeros(0),
        journal=MemoryJournal(),
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1e-3),
        sampler=None if sampler is None else sampler(len(design.members)),
        noise=noise,
        clipper=_NoRecords(),
        units=() if privacy.draws_units else None,
        canaries=canaries,
        preflight=False,
        **options,
    )
    return canaries.scores(), design.coins


def simulate_control(
    plan: InRunPlan,
    privacy: PrivacyPlan,
    deltas: Sequence[float],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[ControlRun, ...]:
    """The repetitions of a plan's control, as the counts that its tests need; () for a plan without control.

    They are spread over joblib's backend: ``with joblib.parallel_config(backend="loky", n_jobs=8): certify(...)``.
    """
    from dpaudit.attacks.scores.fan_out import run_each

    if plan.control is None:
        return ()
    made: dict[int, ControlRun] = {}

    def done(number: int, run: ControlRun) -> None:
        made[number] = run
        advance(1)

    run_each(_repetition, {number: (plan, privacy, deltas) for number in range(plan.control.repeats)}, done)
    return tuple(made[number] for number in sorted(made))


def _repetition(plan: InRunPlan, privacy: PrivacyPlan, deltas: Sequence[float]) -> ControlRun:
    """One simulated run of the plan's control."""
    design = plan.control
    assert design is not None  # simulate_control asked
    scores, coins = simulate(privacy, design.canaries, noise=WeakerNoise(design.noise_factor))
    values = scores.astype(np.float32)
    guesses, correct = 0, 0
    if design.canaries == plan.m:
        ids = [str(i) for i in range(plan.m)]
        guesses, correct = count_correct(guess(ids, values, (plan.guesses, plan.guesses)), coins)
    return ControlRun(
        counts=profile_counts(values, coins, deltas, epsilons=plan.epsilons),
        guesses=guesses,
        correct=correct,
        sha256=hashlib.sha256(values.astype("<f4").tobytes() + coins.astype(np.uint8).tobytes()).hexdigest(),
    )
