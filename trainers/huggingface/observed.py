"""In-run canaries and the record of releases in Hugging Face's Trainer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.trainers.contribution import Clipper, Summing
from dpaudit.trainers.distributed.shards import has_shards
from dpaudit.trainers.distributed.watched import spread
from dpaudit.trainers.observer import Canaries, Observers, Recorder
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.step import trainable
from dpaudit.trainers.witness import ReleaseRecorder


class Observed:
    """What watches a run of Hugging Face's Trainer.

    Parameters
    ----------
    model : nn.Module
        Its trainable parameters, in their order, are what canaries and record know.
    plan : PrivacyPlan
    released : sequence of nn.Parameter
        The same parameters in the order of the optimizer's groups.
    records : int
    canaries : Canaries, optional
        Beside a model in shards every process takes part, and the first one's canaries and record count.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: PrivacyPlan,
        released: Sequence[Any],
        records: int,
        canaries: Canaries | None,
    ) -> None:
        named = trainable(model)
        place = {id(p): i for i, p in enumerate(released)}
        self._order = [place[id(p)] for p in named.values()]
        self.recorder = ReleaseRecorder({name: p.numel() for name, p in named.items()})
        watching: tuple[Canaries | None, Recorder | None] = canaries, self.recorder
        if has_shards(model):
            watching = spread(list(named.values()), canaries, self.recorder)
        self._observers = Observers(plan, records, canaries=watching[0], recorder=watching[1])
        self._canaries: Any = canaries
        self._records = records

    def add_to(
        self, totals: Sequence[Tensor], drawn: Sequence[int], clipper: Clipper | Summing, clipping_norm: float
    ) -> None:
        """Add the drawn canaries to a step's clipped sums, before the noise."""
        indices = [self._records + number for number in drawn]
        self._observers.add_to([totals[i] for i in self._order], indices, clipper, clipping_norm)

    def observe(self, released: Sequence[Tensor], clipper: Clipper | Summing, clipping_norm: float) -> None:
        """See a step's noisy means."""
        self._observers.observe([released[i] for i in self._order], clipper, clipping_norm)

    def state(self) -> bytes:
        """What a resume needs, as a file; it belongs to nobody else before the run has ended."""
        kept: dict[str, Any] = {"recorder": self.recorder.state()}
        if self._canaries is not None:
            state = self._canaries.state()
            kept["canaries"] = {"scores": torch.as_tensor(state["scores"]), "steps": int(state["steps"])}
        sink = io.BytesIO()
        torch.save(kept, sink)
        return sink.getvalue()

    def resume(self, path: Path) -> None:
        """Go on from what was kept with a checkpoint; without canaries, a missing file begins the record anew.

        Raises
        ------
        InvalidEvidence
            When canaries' scores are missing: without the steps before they would say less than they seem to.
        """
        if self._canaries is None and not path.exists():
            return
        try:
            kept = torch.load(path, weights_only=True)
            if self._canaries is not None:
                state = kept["canaries"]
                self._canaries.resume({"scores": state["scores"].numpy(), "steps": state["steps"]})
            self.recorder.resume(kept["recorder"])
        except (OSError, RuntimeError, KeyError, TypeError, EOFError) as error:
            raise InvalidEvidence(
                f"{path} cannot be read ({type(error).__name__}), so that what in-run canaries saw before is lost;"
                " restore it, or start a new run."
            ) from None
