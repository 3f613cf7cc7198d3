"""The beacons of a run: drawn with its canaries, trained with many copies, and scored in one pass with the audit's."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit import Ledger
from dpaudit.auditing.beacons import BeaconPlan
from dpaudit.certificates.group import group_epsilon
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.scores import Scores
from dpaudit.runs.config import Config
from dpaudit.runs.units import units_of_beacon
from dpaudit.storage.run_folder import RunFolder
from dpaudit.storage.scores import scores_of

if TYPE_CHECKING:
    from dpaudit.attacks.canaries.canary import CanarySet
    from dpaudit.attacks.canaries.secret import Secret
    from dpaudit.auditing import AuditPlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedBeacons:
    """Scores and coins of a run's beacons, and the nonce that opens their commitment."""

    scores: Scores
    nonce: bytes
    copies: int

    @property
    def inserted(self) -> int:
        """Beacons in the data."""
        return self.scores.member_count

    def section(self) -> dict[str, Any]:
        """What a certificate holds of them: id, coin and score of each."""
        rows = zip(self.scores.ids, self.scores.members, self.scores.values, strict=True)
        return {
            "nonce": self.nonce.hex(),
            "copies": self.copies,
            "canaries": sorted([i, int(coin), float(score)] for i, coin, score in rows),
        }


def set_apart(generated: CanarySet, beacons: int) -> tuple[CanarySet, CanarySet | None]:
    """The audit's canaries, and the beacons: so many of those generated, at random."""
    if not beacons:
        return generated, None
    order = np.random.default_rng().permutation(len(generated))
    return generated.take(np.sort(order[beacons:])), generated.take(np.sort(order[:beacons]))


def fix_beacons(config: Config, folder: RunFolder, beacons: CanarySet | None, planned: Ledger) -> BeaconPlan | None:
    """Flip the beacons' coins, write them into ``private/``, and say what the audit plan freezes of them."""
    from dpaudit.attacks import flip_coins, write_secret
    from dpaudit.attacks.canaries.coins import draw_nonce

    copies = config.canaries.beacon_copies
    if beacons is None or copies is None:
        return None
    coins = np.asarray(flip_coins(len(beacons)))
    secret = write_secret(folder.beacons, beacons, coins, draw_nonce(), copies)
    units = units_of_beacon(config)
    return BeaconPlan(
        count=len(beacons),
        copies=copies,
        group_size=units,
        group_epsilon=group_epsilon(
            planned, delta=config.claim.delta, accountants=config.privacy.accountants, copies=units
        ),
        commitment=secret.commitment,
    )


def read_beacons(folder: RunFolder, plan: AuditPlan) -> Secret | None:
    """The beacons that an audit plan froze; None for a plan without any.

    Raises
    ------
    InvalidEvidence
        When the file is not the one that the plan commits to.
    """
    from dpaudit.attacks import read_secret

    if plan.beacons is None:
        return None
    secret = read_secret(folder.beacons)
    if secret.commitment != plan.beacons.commitment:
        raise InvalidEvidence(
            f"{folder.beacons} does not match the beacons' commitment in audit_plan.json; restore the file or start"
            " anew."
        )
    return secret


def opened_beacons(folder: RunFolder, plan: AuditPlan) -> OpenedBeacons | None:
    """Scores and coins of the beacons after training; None for a plan without any."""
    secret = read_beacons(folder, plan)
    if secret is None:
        return None
    values = scores_of(folder.beacon_scores, secret.ids, attack=plan.attack)
    return OpenedBeacons(
        scores=Scores(secret.ids, values, secret.coins),
        nonce=secret.nonce,
        copies=secret.copies,
    )


def beacon_note(config: Config, planned: BeaconPlan | None) -> str | None:
    """What beacons cost and are promised, in one sentence before training; None for a run without any."""
    if planned is None:
        return None
    copies = planned.count * planned.copies // 2
    epsilon = planned.group_epsilon
    promised = "no accountant here has a bound" if epsilon is None else f"epsilon <= {upper_text(epsilon)}"
    batch, declared = exact_text(config.privacy.expected_batch_size), config.privacy.public_size
    return (
        f"{planned.count} beacons of {planned.copies} copies are about {copies} records beside the {declared} declared,"
        f" so that privacy.expected_batch_size={batch} holds fewer of your own; to groups of {planned.group_size} is"
        f" promised: {promised} at delta={exact_text(config.claim.delta)}."
    )
