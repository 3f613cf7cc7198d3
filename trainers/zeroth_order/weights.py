"""The weights of a zeroth-order run with anchor and mask, and their replay from the run's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidEvidence, PrivacyRefusal
from dpaudit.trainers.distributed.shards import gather_nothing, has_shards, local
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.zeroth_order.coordinates import (
    Mask,
    check_masks,
    masks_digest,
    trainable_parameters,
    weights_digest,
)
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.log import StageEntry, ZOLog
from dpaudit.trainers.zeroth_order.perturb import BitCache
from dpaudit.trainers.zeroth_order.pruning import MaskRule, pruning_mask
from dpaudit.trainers.zeroth_order.step import Pull, apply_update


class ZOWeights:
    """The moving weights with their anchor and mask; training and replay drive the same object.

    Of a model in shards each process moves its own coordinates, by the same numbers as if it held all of them.
    """

    def __init__(self, model: nn.Module, directions: Directions, *, cache: BitCache | None = None) -> None:
        self.model, self.directions = model, directions
        self.parameters = trainable_parameters(model)
        self.sharded = has_shards(model)
        self.cache = BitCache(0) if cache is None else cache
        self.masks: dict[str, Mask] | None = None
        self.anchor: dict[str, Tensor] | None = None
        self.updates = 0
        self.stage: int | None = None
        self._rule: MaskRule | None = None
        self._schedule: Mapping[str, Any] = {}

    def header(self) -> dict[str, Any]:
        """What the log says about base model and directions."""
        return {
            "run": self.directions.run,
            "generator": self.directions.generator,
            "kind": self.directions.kind.value,
            "clips": "slope (f+ - f-)/2β",
            "tensors": [[name, list(p.shape)] for name, p in sorted(self.parameters.items())],
            "base_sha256": weights_digest(self.parameters),
            "torch": torch.__version__.split("+")[0],
        }

    def begin(self, index: int, schedule: Mapping[str, Any], *, done: int, step: int) -> None:
        """Enter a stage: a fresh COPY of the weights as anchor, and the mask its rule asks for.

        A stage that already has updates in the weights goes on with the anchor and mask it has.
        """
        self._schedule = schedule
        if done and self.stage == index:
            return
        self.stage = index
        rule = None if schedule["mask"] is None else MaskRule(**schedule["mask"])
        if rule is None:
            self.masks = None
        elif rule.strategy != "static" or self._rule is None or rule.for_stage(0) != self._rule.for_stage(0):
            self._mask(rule, step)
        self._rule = rule
        self.anchor = None
        if schedule["proximal"]:
            # Updates are made in place, so an alias would follow them and there would be no pull; hence a copy.
            self.anchor = {name: local(p).detach().clone() for name, p in self.parameters.items()}

    def refresh(self, *, done: int, step: int) -> None:
        """Recompute a dynamic mask where its rule says so; called before every step."""
        value = self._schedule["mask"]
        if value is None or not done or not value["refresh_every"] or done % value["refresh_every"]:
            return
        self._mask(MaskRule(**value), step)

    def apply(self, released: Sequence[float], *, step: int) -> None:
        """One update."""
        strength = self._schedule["proximal"]
        gather_nothing(self.model)  # a weight that stays gathered would be the old one
        apply_update(
            self.parameters,
            self.directions,
            released,
            step=step,
            learning_rate=self._schedule["learning_rate"],
            pull=None if self.anchor is None or not strength else Pull(strength, self.anchor),
            masks=self.masks,
            cache=self.cache,
        )
        self.updates += 1

    def _mask(self, rule: MaskRule, step: int) -> None:
        if self.sharded:
            refuse_mask_of_shards(rule)
        self.masks = pruning_mask(self.model, self.parameters, rule, self.directions, key=step, previous=self.masks)
        check_masks(self.parameters, self.masks)

    def state(self) -> dict[str, Any]:
        """Plain dict of tensors and numbers for a checkpoint; with shards, this process's anchor alone."""
        masks = self.masks or {}
        return {
            "updates": self.updates,
            "stage": self.stage,
            "rule": None if self._rule is None else self._rule.to_dict(),
            "masked": self.masks is not None,
            "mask_index": {name: mask.index for name, mask in masks.items()},
            "mask_weight": {name: mask.weight for name, mask in masks.items() if mask.weight is not None},
            "anchor": self.anchor,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`state` back; the weights themselves come with the model."""
        self.updates, self.stage, self.anchor = int(state["updates"]), state["stage"], state["anchor"]
        self._rule = None if state["rule"] is None else MaskRule(**state["rule"])
        weights = state["mask_weight"]
        masks = {name: Mask(index=index, weight=weights.get(name)) for name, index in state["mask_index"].items()}
        self.masks = masks if state["masked"] else None


def refuse_mask_of_shards(rule: MaskRule | None) -> None:
    """Refuse a mask of weights that no process holds whole.

    Raises
    ------
    PrivacyRefusal
        Says what to do instead.
    """
    if rule is not None:
        raise PrivacyRefusal(
            f"a mask of {rule.keep:g} of the coordinates ranks all of them, and the model is sharded (fully_shard), so"
            " that no process sees them; leave keep out, or give every process a whole copy."
        )


def replay(log: ZOLog, model: nn.Module) -> nn.Module:
    """Rebuild a run's weights in place from the base model and the log, bit for bit, whole or in shards.

    Parameters
    ----------
    log : ZOLog
        As :func:`read_zo_log` gives it.
    model : nn.Module
        The base model; its weights are overwritten.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    InvalidEvidence
        If the model is not the base the log was written for, the generator is another, or a mask recomputed from
        the weights differs from the recorded one.
    """
    return rebuild(log, model).model


def rebuild(log: ZOLog, model: nn.Module) -> ZOWeights:
    """Like :func:`replay`, with the anchor and mask in which the log ends, for a resume."""
    header = log.header
    weights = ZOWeights(model, Directions(run=str(header["run"]), kind=header["kind"]))
    for key in ("generator", "tensors", "base_sha256"):
        if weights.header()[key] != header.get(key):
            raise InvalidEvidence(
                f"the log's {key} does not fit this model; give the base model that the run began from."
            )
    done, pending = 0, None
    with evaluating(model):
        for entry in log.entries:
            if isinstance(entry, StageEntry):
                pending, done = entry, entry.done
                continue
            if pending is not None:
                weights.begin(pending.index, pending.schedule, done=pending.done, step=entry.step)
                if masks_digest(weights.masks) != pending.mask_sha256:
                    raise InvalidEvidence(
                        f"stage {pending.index}: the mask recomputed from the weights differs from the recorded one;"
                        " replay on the machine type that wrote the log."
                    )
                pending = None
            weights.refresh(done=done, step=entry.step)
            weights.apply(entry.values, step=entry.step)
            done += 1
    return weights
