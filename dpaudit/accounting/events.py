"""A ledger to and from other libraries' records: dp_accounting events, Opacus histories, (σ, q, T) lists.

What cannot be expressed exactly is refused by name; nothing is approximated or dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpaudit.privacy.errors import InvalidValue, UnsupportedStage
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Mechanism, Relation, Sampling, Stage, joint_noise_multiplier


def to_event(ledger: Ledger) -> Any:
    """The ledger as a ``dp_accounting.ComposedDpEvent``, one event for each stage.

    A step that publishes P directions becomes one Gaussian release whose noise multiplier is σ/√P (each direction
    clipped apart) or σ (clipped jointly). A quantile query of multiplier σ_b on the same minibatch is merged into that
    release: the multiplier of both is (σ⁻² + (2σ_b)⁻²)^(−1/2).

    Parameters
    ----------
    ledger : Ledger
        Stages that ran or are planned, with their neighbouring relation.

    Returns
    -------
    dp_accounting.ComposedDpEvent
        For the accountants of dp_accounting, under the relation that the ledger names.

    Raises
    ------
    UnsupportedStage
        For shuffled stages, which have no event, and for stages that lack what the event needs.
    """
    import dp_accounting as dp

    return dp.ComposedDpEvent([_stage_event(stage, n) for n, stage in enumerate(ledger.stages, start=1)])


def _stage_event(stage: Stage, number: int) -> Any:
    import dp_accounting as dp

    sigma, q = stage.effective_noise_multiplier, stage.sampling_probability
    if stage.quantile_sigma is not None:
        if stage.mechanism is Mechanism.LAPLACE:
            raise UnsupportedStage(f"stage {number} adds a Gaussian quantile query to laplace noise; no event says so.")
        sigma = stage.combined_noise_multiplier
    laplace = stage.mechanism is Mechanism.LAPLACE
    release = dp.LaplaceDpEvent(sigma) if laplace else dp.GaussianDpEvent(sigma)
    match stage.sampling:
        case Sampling.NONE:
            event = release
        case Sampling.POISSON:
            event = release if q == 1 else dp.PoissonSampledDpEvent(q, release)
        case Sampling.TRUNCATED_POISSON if stage.public_size and stage.max_batch and not laplace:
            event = dp.TruncatedSubsampledGaussianDpEvent(stage.public_size, q, stage.max_batch, sigma)
        case Sampling.WITHOUT_REPLACEMENT if stage.public_size:
            batch = round(q * stage.public_size)
            event = dp.SampledWithoutReplacementDpEvent(stage.public_size, batch, release)
        case _:
            raise UnsupportedStage(
                f"stage {number} with sampling={str(stage.sampling)!r} has no dp_accounting event (or no public_size);"
                " keep the ledger in its own form."
            )
    return dp.SelfComposedDpEvent(event, stage.steps)


def from_event(event: Any, *, relation: str | Relation, unit: str, max_records_per_unit: int = 1) -> Ledger:
    """Read a ``dp_accounting`` event tree as a ledger; an event that a stage cannot state is refused.

    Parameters
    ----------
    event : dp_accounting.DpEvent
    relation, unit, max_records_per_unit
        What the event does not say and a ledger must.

    Returns
    -------
    Ledger
        One stage for each mechanism in the tree, with as many steps as the compositions around it say.

    Raises
    ------
    UnsupportedStage
        If the tree holds an event that a stage cannot state.
    """
    stages = tuple(_walk(event, 1))
    return Ledger(
        stages=stages, relation=Relation.parse(relation), unit=unit, max_records_per_unit=max_records_per_unit
    )


def _walk(event: Any, count: int) -> Iterable[Stage]:
    import dp_accounting as dp

    match event:
        case dp.NoOpDpEvent():
            return
        case dp.NonPrivateDpEvent():
            yield Stage(sampling_probability=1.0, noise_multiplier=0.0, steps=count, sampling=Sampling.NONE)
        case dp.SelfComposedDpEvent():
            yield from _walk(event.event, count * int(event.count))
        case dp.ComposedDpEvent():
            for part in event.events:
                yield from _walk(part, count)
        case dp.GaussianDpEvent() | dp.LaplaceDpEvent():
            sigma, mechanism = _release(event)
            yield Stage(
                sampling_probability=1.0,
                noise_multiplier=sigma,
                steps=count,
                sampling=Sampling.NONE,
                mechanism=mechanism,
            )
        case dp.PoissonSampledDpEvent():
            sigma, mechanism = _release(event.event)
            yield Stage(
                sampling_probability=float(event.sampling_probability),
                noise_multiplier=sigma,
                steps=count,
                sampling=Sampling.POISSON,
                mechanism=mechanism,
            )
        case dp.SampledWithoutReplacementDpEvent():
            sigma, mechanism = _release(event.event)
            yield Stage(
                sampling_probability=event.sample_size / event.source_dataset_size,
                noise_multiplier=sigma,
                steps=count,
                sampling=Sampling.WITHOUT_REPLACEMENT,
                mechanism=mechanism,
                public_size=int(event.source_dataset_size),
            )
        case dp.TruncatedSubsampledGaussianDpEvent():
            yield Stage(
                sampling_probability=float(event.sampling_probability),
                noise_multiplier=float(event.noise_multiplier),
                steps=count,
                sampling=Sampling.TRUNCATED_POISSON,
                max_batch=int(event.truncated_batch_size),
                public_size=int(event.dataset_size),
            )
        case _:
            raise UnsupportedStage(
                f"event {type(event).__name__} has no stage in a ledger; account for it with dp_accounting itself."
            )


def _release(event: Any) -> tuple[float, Mechanism]:
    """σ and noise of what one minibatch releases; several Gaussians on it fold into one."""
    import dp_accounting as dp

    if isinstance(event, dp.LaplaceDpEvent):
        return float(event.noise_multiplier), Mechanism.LAPLACE
    return _multiplier(event), Mechanism.GAUSSIAN


def _multiplier(event: Any) -> float:
    import dp_accounting as dp

    match event:
        case dp.GaussianDpEvent():
            return float(event.noise_multiplier)
        case dp.SelfComposedDpEvent():
            return _multiplier(event.event) / math.sqrt(event.count) if event.count else math.inf
        case dp.ComposedDpEvent():
            return joint_noise_multiplier(*(_multiplier(part) for part in event.events))
        case _:
            raise UnsupportedStage(
                f"event {type(event).__name__} inside a sampled event has no stage in a ledger;"
                " only Gaussians (or one Laplace) may stand there."
            )


def from_triples(
    triples: Sequence[Sequence[float]],
    *,
    relation: str | Relation,
    unit: str,
    sampling: str | Sampling = Sampling.POISSON,
    max_records_per_unit: int = 1,
) -> Ledger:
    """Read a list of (σ, q, T), the order of Opacus histories and of prv-accountant style lists.

    ``sampling`` is what the list's own accountants assume (Poisson); pass what the loader really did.

    Parameters
    ----------
    triples : sequence of (float, float, int)
        σ, q and number of steps T of each entry.
    relation : Relation or str
        Neighbouring relation.
    unit : str
        Unit of privacy.
    sampling : Sampling or str, default="poisson"
        How minibatches were really drawn.
    max_records_per_unit : int, default=1
        Records that one unit contributes at most.

    Returns
    -------
    Ledger
        One stage for each entry.

    Raises
    ------
    InvalidValue
        If an entry is not three numbers, or a number is out of its bounds; names the entry or the key.
    """
    stages = []
    for number, triple in enumerate(triples, start=1):
        try:
            if any(isinstance(v, (str, bool)) for v in triple):
                raise TypeError
            sigma, q, steps = triple
            sigma, q, whole = float(sigma), float(q), int(steps)
        except (TypeError, ValueError, OverflowError):
            raise InvalidValue(f"history entry {number} is {triple!r:.80} and must be (sigma, q, steps).") from None
        if whole != steps:
            raise InvalidValue(f"history entry {number} has steps={steps} and must count whole steps.")
        kind = Sampling.NONE if q == 1 and sampling == Sampling.POISSON else sampling
        stages.append(
            Stage(
                sampling_probability=q,
                noise_multiplier=sigma,
                steps=whole,
                sampling=Sampling(str(kind)),
            )
        )
    return Ledger(
        stages=tuple(stages), relation=Relation.parse(relation), unit=unit, max_records_per_unit=max_records_per_unit
    )


OPACUS_ACCOUNTANTS = ("rdp", "prv", "gdp", "dpaudit")
"""Opacus' accountants whose history holds (σ, sample rate, steps) of Poisson-sampled Gaussians; the last is ours."""


def from_opacus(
    history: Any, *, relation: str | Relation, unit: str, sampling: str | Sampling = Sampling.POISSON
) -> Ledger:
    """Read an Opacus accountant, its ``state_dict()``, or its ``history`` of (σ, sample rate, steps).

    Every entry counts, also where Opacus' own ``gdp`` accountant reads only the last.

    Parameters
    ----------
    history : accountant, mapping or sequence
        An Opacus accountant, its ``state_dict()``, or its list of (σ, q, steps).
    relation : Relation or str
        Neighbouring relation; Opacus' own accountants mean ``add_or_remove_one``.
    unit : str
        Unit of privacy.
    sampling : Sampling or str, default="poisson"
        How minibatches were really drawn; Opacus' accountants assume Poisson sampling whatever the loader did.

    Returns
    -------
    Ledger
        One stage for each entry of the history.

    Raises
    ------
    InvalidValue
        When it is no history, or that of an accountant whose entries may mean something else.
    """
    if isinstance(history, Mapping):
        if "history" not in history:
            raise InvalidValue("the state_dict has no key 'history'; pass accountant.state_dict().")
        if (kind := history.get("mechanism", "rdp")) not in OPACUS_ACCOUNTANTS:
            raise InvalidValue(
                f"the state_dict is of the accountant {str(kind)[:40]!r}, whose entries may be no Poisson-sampled"
                f" Gaussian steps ({', '.join(OPACUS_ACCOUNTANTS)} hold such); if they"
                " are, pass the list of (sigma, q, steps)."
            )
        history = history["history"]
    entries = getattr(history, "history", history)
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Iterable):
        raise InvalidValue(f"a history is {type(entries).__name__} and must be a list of (sigma, q, steps).")
    return from_triples(list(entries), relation=relation, unit=unit, sampling=sampling)
