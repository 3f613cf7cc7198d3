"""What watches a run's steps: in-run canaries and the record of its releases, with their state for a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.auditing.in_run.plan import InRunPlan
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.runs.in_run.secret import InRunSecret

if TYPE_CHECKING:
    from dpaudit.attacks.canaries.in_run import InRunCanaries
    from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries
    from dpaudit.trainers import PrivacyPlan, ReleaseRecorder

BYTES_PER_CANARY, BYTES_PER_STEP = 8, 128
"""What a checkpoint keeps of a canary (its score) and of a step (its row in the record), at most."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """The observers of one run; both None in a run whose plan has no in-run audit.

    Attributes
    ----------
    canaries : InRunCanaries, ScalarInRunCanaries or None
    recorder : ReleaseRecorder or None
    """

    canaries: Any = None
    recorder: ReleaseRecorder | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; it belongs in ``private/`` until the run has ended."""
        import torch

        kept: dict[str, Any] = {}
        if self.canaries is not None:
            now = self.canaries.state()
            kept["canaries"] = {"scores": torch.from_numpy(now["scores"]), "steps": now["steps"]}
        if self.recorder is not None:
            kept["recorder"] = self.recorder.state()
        return kept

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Go on from :meth:`state`; nothing to do for a run that has not begun.

        Raises
        ------
        InvalidEvidence
            When the checkpoint lacks what this run's plan has.
        """
        if state is None:
            return
        try:
            if self.canaries is not None:
                kept = state["canaries"]
                self.canaries.resume({"scores": kept["scores"].numpy(), "steps": kept["steps"]})
            if self.recorder is not None:
                self.recorder.resume(state["recorder"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidEvidence(
                f"the checkpoint lacks the state of the in-run audit ({error!r:.60}); restore it, or start a new run"
                " folder."
            ) from None

    @property
    def bytes(self) -> int:
        """Room that a checkpoint needs for the state now; see also ``BYTES_PER_STEP``."""
        return 0 if self.canaries is None else BYTES_PER_CANARY * len(self.canaries.scores())


def watch_of(
    plan: InRunPlan | None, secret: InRunSecret | None, plans: Sequence[PrivacyPlan], sizes: Mapping[str, int]
) -> Watch:
    """The observers that a plan asks for.

    Parameters
    ----------
    plan, secret
        Of the run; None for a run without in-run audit.
    plans : sequence of PrivacyPlan
        One for each stage; q, σ and C are those of the first.
    sizes : mapping of str to int
        Numbers in each tensor of a release.
    """
    from dpaudit.trainers import ReleaseRecorder

    if plan is None:
        return Watch()
    recorder = ReleaseRecorder(sizes)
    if secret is None:
        return Watch(recorder=recorder)
    return Watch(canaries=_canaries(plan, secret, plans[0], sizes), recorder=recorder)


def _canaries(
    plan: InRunPlan, secret: InRunSecret, first: PrivacyPlan, sizes: Mapping[str, int]
) -> InRunCanaries | ScalarInRunCanaries:
    from dpaudit.attacks.canaries.in_run import InRunCanaries, InRunDesign
    from dpaudit.attacks.canaries.in_run_scalars import ScalarInRunCanaries
    from dpaudit.auditing.in_run.plan import SCALARS

    stage = first.stage()
    if plan.kind == SCALARS:
        return ScalarInRunCanaries(
            secret.coins,
            int(secret.commitment[:16], 16),  # public, and fixed with the plan
            sampling_probability=stage.sampling_probability,
            noise_multiplier=stage.noise_multiplier,
            releases_per_step=stage.releases_per_step,
            clip=stage.clip or "joint",
        )
    if sum(sizes.values()) != secret.dimension:
        raise InvalidEvidence(
            f"the model trains {sum(sizes.values())} numbers and the in-run canaries were drawn for {secret.dimension};"
            " give the model that the run began with."
        )
    return InRunCanaries(
        InRunDesign(secret.coordinates, secret.coins, secret.dimension),
        list(sizes.values()),
        sampling_probability=stage.sampling_probability,
        contribution=first.clipping_norm,
    )
