"""Whether a run gets in-run canaries, how many, and its plan: all of it before the first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpaudit import Ledger
from dpaudit.auditing.in_run.plan import (
    COORDINATES,
    FEWEST,
    SCALARS,
    ControlDesign,
    InRunPlan,
    guesses_in_run,
    split_alpha,
)
from dpaudit.auditing.in_run.visible import control_for, expected_auc
from dpaudit.auditing.independent import EPSILONS
from dpaudit.auditing.plan import AlphaSplit, AuditPlan
from dpaudit.certificates.curve import declared_deltas
from dpaudit.privacy.errors import InvalidEvidence, PrivacyRefusal
from dpaudit.privacy.rounding import lower_text
from dpaudit.privacy.stage import Clip
from dpaudit.runs.config import Config
from dpaudit.runs.in_run.secret import InRunSecret, read_secret, write_secret
from dpaudit.runs.sources import load_model, select_trainable
from dpaudit.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from dpaudit.trainers import PrivacyPlan

NEEDED = 6.0
"""Expected deviations of the rank sum at which p falls to the 1e-6 of a live observer nine times in ten."""
SCALARS_BLOCK = "scalars"
"""Name of the one block that a zeroth-order release has."""


def trained_sizes(config: Config, base: Path, classes: Sequence[str] | None) -> dict[str, int]:
    """Numbers in each trained tensor, in the order of a release; for zeroth order the P scalars of a step."""
    from dpaudit.trainers import trainable

    if config.privacy.method == "dp-zoso":
        assert config.zeroth_order is not None  # the configuration required it
        return {SCALARS_BLOCK: config.zeroth_order.directions}
    model = select_trainable(load_model(config, base, classes=classes), config)
    return {name: p.numel() for name, p in trainable(model).items()}


def canaries_and_reason(config: Config, plans: Sequence[PrivacyPlan], sizes: Mapping[str, int]) -> tuple[int, str]:
    """Number of in-run canaries, and why there are none where it is 0.

    Raises
    ------
    PrivacyRefusal
        When they were asked for and cannot be had; with the reason.
    """
    wanted = config.audit.in_run
    if wanted.enabled is False:
        return 0, "audit.in_run.enabled is false"
    reason, m = _reason(config), 0
    if not reason:
        m = _most(config, plans, sum(sizes.values())) if wanted.canaries is None else wanted.canaries
        if m < FEWEST:
            reason = f"there is room for {m} canaries that do not disturb one another, and {FEWEST} are the fewest"
        elif m > sum(sizes.values()) and config.privacy.method != "dp-zoso":
            reason = f"audit.in_run.canaries={m} is more than the {sum(sizes.values())} trained numbers"
        elif config.privacy.method == "dp-zoso" and wanted.canaries is None:
            reason = _dead_in_scalars(m, plans)
    if reason and (wanted.enabled or wanted.canaries):
        raise PrivacyRefusal(f"audit.in_run cannot be had: {reason}; leave audit.in_run out, or change that.")
    return (0, reason) if reason else (m, "")


def _reason(config: Config) -> str:
    if config.claim.relation == "replace_one":
        return "claim.relation='replace_one' needs paired canaries, and in-run canaries are in or out"
    if config.privacy.sampling not in ("poisson", "none"):
        return f"privacy.sampling={config.privacy.sampling!r} lets canaries take the place of records"
    return ""


def _most(config: Config, plans: Sequence[PrivacyPlan], dimension: int) -> int:
    """Canaries by default: a tenth of the coordinates, or as many as zeroth-order scalars carry apart from noise."""
    from dpaudit.attacks.canaries.in_run import recommended_in_run_canaries
    from dpaudit.attacks.canaries.planning import recommended_canaries_zeroth_order

    if config.privacy.method != "dp-zoso":
        return recommended_in_run_canaries(dimension)
    # All canaries share the scalars: with this many, the drawn ones have the variance of the noise.
    stage = plans[0].stage()
    return recommended_canaries_zeroth_order(
        stage.noise_multiplier,
        stage.sampling_probability,
        releases_per_step=stage.releases_per_step,
        clip=stage.clip,
    )


def _dead_in_scalars(m: int, plans: Sequence[PrivacyPlan]) -> str:
    """Why m canaries of a zeroth-order run would be no live observer; empty where they can be expected to be one.

    Members stand out by the drawn steps alone, whose scalars the other canaries move as much as the noise does. A live
    observer's rank sum lies ``NEEDED`` deviations above chance nine times in ten.
    """
    stages = []
    for plan in plans:
        stage = plan.stage()
        share = stage.releases_per_step if stage.clip is Clip.PER_DIRECTION else 1
        variance = stage.noise_multiplier**2 / share + stage.sampling_probability * m / 2 / stage.releases_per_step
        seen = dataclasses.replace(stage, noise_multiplier=math.sqrt(variance), releases_per_step=1, clip=None)
        stages.append(seen)
    deviation = math.sqrt((m + 1) / (3 * m * m))  # of the area under the curve of m/2 members and as many others
    expected = (expected_auc(stages) - 0.5) / deviation
    if expected >= NEEDED:
        return ""
    return (
        f"the scalars of all steps would set {m} members and others apart by {lower_text(expected, 2)} deviations of"
        f" their rank sum, and a live observer takes {NEEDED:g}"
    )


def fix_in_run(
    config: Config, folder: RunFolder, plans: Sequence[PrivacyPlan], sizes: Mapping[str, int], ledger: Ledger
) -> tuple[InRunPlan, AlphaSplit]:
    """Draw the canaries, write their secret, and plan the audit; also returns what is left for the final model."""
    from dpaudit.attacks import draw_in_run_canaries
    from dpaudit.attacks.canaries.coins import draw_nonce
    from dpaudit.attacks.canaries.in_run_scalars import draw_scalar_coins

    claim, m = config.claim, 0
    m, reason = canaries_and_reason(config, plans, sizes)
    final, mine = split_alpha(config.audit.alpha, canaries=bool(m))
    scalars = config.privacy.method == "dp-zoso"
    dimension = sum(sizes.values())
    secret, control = None, None
    if m and scalars:
        secret = InRunSecret(np.arange(m, dtype=np.int64), draw_scalar_coins(m)[0], m, draw_nonce())
    elif m:
        drawn = draw_in_run_canaries(dimension, m=m)
        secret = InRunSecret(drawn.coordinates, drawn.coins, dimension, draw_nonce())
        control = _control(m, plans, ledger, mine.profile)
    if secret is not None:
        write_secret(folder.in_run_secret, secret)
    plan = InRunPlan(
        kind=SCALARS if scalars else COORDINATES,
        m=m,
        dimension=dimension if secret is None else secret.dimension,
        claimed_epsilon=claim.epsilon,
        delta=claim.delta,
        relation=claim.relation,
        unit=claim.unit,
        guesses=guesses_in_run(m, claim.epsilon, claim.delta, mine),
        alpha=config.audit.alpha,
        alpha_split=mine,
        commitment=None if secret is None else secret.commitment,
        control=control,
        reason=reason,
    )
    return plan, final


def _control(m: int, plans: Sequence[PrivacyPlan], ledger: Ledger, level: float) -> ControlDesign | None:
    deltas = declared_deltas(ledger, EPSILONS)
    return control_for(m, [plan.stage() for plan in plans], deltas, EPSILONS, level)


def in_run_of(plan: AuditPlan) -> InRunPlan | None:
    """The in-run part of an audit plan; None in a plan without one, as of earlier versions."""
    return None if plan.in_run is None else InRunPlan.from_dict(plan.in_run)


def read_fixed(folder: RunFolder, plan: InRunPlan | None) -> InRunSecret | None:
    """The secret of a plan with canaries, compared with its commitment.

    Raises
    ------
    InvalidEvidence
        When the file is missing or does not open the commitment.
    """
    if plan is None or not plan.m:
        return None
    secret = read_secret(folder.in_run_secret)
    if secret.commitment != plan.commitment:
        raise InvalidEvidence(
            f"{folder.in_run_secret} does not match the in-run commitment in audit_plan.json; restore the file or start"
            " anew."
        )
    return secret
