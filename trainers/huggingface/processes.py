"""Hugging Face's Trainer in several processes: whole copies or shards, never wrapped, written by the first."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import Trainer

from dpaudit.privacy.errors import DpauditError, PrivacyRefusal
from dpaudit.trainers.distributed.checkpoint import load_sharded, save_sharded, whole_weights
from dpaudit.trainers.distributed.reduction import OneProcess, Reduction, reduction_for
from dpaudit.trainers.distributed.replicated import ShardSampler, refuse_coupled_sampling
from dpaudit.trainers.distributed.shards import any_process, first_process, gather_nothing, has_shards, is_sharded
from dpaudit.trainers.huggingface.continuation import data_digest
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.sampling import Sampler, sampler_for

SHARDS = "shards"
SCHEDULER = "scheduler.pt"
_FLAG = "is_distributed_loading_by_transformers"
T = TypeVar("T")


class ProcessesTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Base of the private trainers for several processes, under ``torchrun`` or ``accelerate launch``.

    A plain model is whole in every process; with ``fsdp`` (version 2), or where ``fully_shard`` was applied before, it
    is sharded. The first process has ledger, checkpoints' records and saved model.
    """

    def __init__(self, *arguments: Any, plan_sampling: PrivacyPlan, **kwargs: Any) -> None:
        self._together: Reduction = OneProcess()
        if kwargs["args"].world_size > 1:
            refuse_coupled_sampling(plan_sampling)
        super().__init__(*arguments, **kwargs)
        setattr(self, _FLAG, False)
        refuse_engines(self)

    @property
    def leads(self) -> bool:
        """Whether this is the first process: the one that counts and writes."""
        return bool(self.args.process_index == 0)

    @property
    def sharded(self) -> bool:
        """Whether the model is spread over the processes."""
        return has_shards(self.model)

    def from_the_first(self, work: Callable[[], T]) -> T:
        """What the first process's work gives, or raises, in all processes."""
        return from_the_first(self.args, work)

    def sampler(self, plan: PrivacyPlan, records: int, canaries: int = 0) -> Sampler:
        """This process's draws; in-run canaries stand behind the records, and the first process alone draws them."""
        if self.args.world_size == 1:
            return sampler_for(plan, records + canaries)
        return ShardSampler(
            records,
            plan.sampling_probability,
            rank=self.args.process_index,
            world=self.args.world_size,
            canaries=canaries if self.leads else 0,
        )

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not has_shards(model):  # a sharded model is on its devices already
            super()._move_model_to_device(model, device)

    # -- preparing ------------------------------------------------------------------------------------------------
    def _prepare_for_training(self, *arguments: Any, **kwargs: Any) -> Any:
        gather_nothing(self.model)  # in every process alike: what is gathered looks like a whole parameter
        several = self.args.world_size > 1 and not self.is_fsdp_enabled
        setattr(self, _FLAG, several or self.sharded)  # autocast only: DDP would average gradients
        try:
            found = super()._prepare_for_training(*arguments, **kwargs)
        finally:
            setattr(self, _FLAG, False)
        self._share()
        return found

    def trained(self) -> list[nn.Parameter]:
        """The trained parameters, in the order in which the optimizer has them."""
        raise NotImplementedError

    def _share(self) -> None:
        """Agree on what the processes do together; the optimizer gets this process's shards."""
        if self.args.world_size == 1:
            return
        if self.sharded:
            gather_nothing(self.model)
        trained = self.trained()
        self._together = reduction_for(self.model, trained)
        owned = iter(self._together.owned(trained))
        for group in self.optimizer.param_groups if self.optimizer is not None else []:
            pairs = [(held, next(owned)) for held in group["params"]]
            # The optimizer finds its moments by the tensor object, so a parameter that is already there stays the same
            # object.
            group["params"] = [held if _same(held, part) else part for held, part in pairs]

    # -- saving and loading -----------------------------------------------------------------------------------------
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole model, from the first process; every process calls it."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        save_whole(self, output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        updates: Any = self.optimizer
        save_sharded(Path(output_dir) / SHARDS, self.model, updates.state_dict(), names=self._names)
        if self.leads:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.sharded:  # shards come with the optimizer's state
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (self.sharded or (Path(checkpoint) / SHARDS).exists()):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self._share()
        updates: Any = self.optimizer
        updates.load_state_dict(load_sharded(Path(checkpoint) / SHARDS, self.model, names=self._names))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))


def save_whole(trainer: Any, output_dir: str | None) -> None:
    """Save a sharded model whole, from the first process; every process calls it."""
    whole = whole_weights(trainer.model)
    if whole is not None:
        trainer._save(output_dir or trainer.args.output_dir, state_dict=whole)
    trainer.accelerator.wait_for_everyone()


def shard_by_accelerate(trainer: Any) -> None:
    """Bring a Trainer's model into shards where it is to be (``fsdp_version: 2``) and is not yet."""
    if not trainer.is_fsdp_enabled or has_shards(trainer.model):
        return
    # accelerate shards a model only together with an optimizer, so it is given one that is never used.
    idle = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.0)
    trainer.model, _ = trainer.accelerator.prepare(trainer.model, idle)
    trainer.model_wrapped = trainer.model


def from_the_first(args: Any, work: Callable[[], T]) -> T:
    """What the first process's work gives, or raises, in all processes of a Trainer with these arguments."""
    if args.world_size == 1:
        return work()
    told: tuple[Any, DpauditError | None] = (None, None)
    if args.process_index == 0:
        try:
            told = work(), None
        except DpauditError as refusal:
            told = None, refusal
        except BaseException as failure:
            first_process((None, PrivacyRefusal(f"the first process failed ({type(failure).__name__}).")))
            raise
    value, error = first_process(told)
    if error is not None:
        raise error
    found: T = value
    return found


def refuse_other_records(args: Any, dataset: Any, plan: Any) -> None:
    """Refuse processes that hold other records, or the same in another order, or another plan.

    A record that stands at two places of two processes would be drawn twice, and move the sum by two clipping norms.

    Raises
    ------
    PrivacyRefusal
        In every process.
    """
    if args.world_size == 1:
        return
    key = first_process(secrets.token_bytes(32) if args.process_index == 0 else None)
    mine = (len(dataset), data_digest(dataset, key), plan)
    if any_process(first_process(mine) != mine):
        raise PrivacyRefusal(
            "the processes hold different records, another order of them, or different plans, so that a record could"
            " take part twice in a step; load the same data and arguments in every process, and shuffle by one seed."
        )


def _same(held: torch.Tensor, part: torch.Tensor) -> bool:
    return not is_sharded(held) and held.shape == part.shape and held.data_ptr() == part.data_ptr()


def refuse_engines(trainer: Any) -> None:
    """Refuse engines that own gradients, layers or updates, however they were switched on.

    Raises
    ------
    PrivacyRefusal
        With what to set instead.
    """
    state = trainer.accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    parallel = getattr(trainer.args, "parallelism_config", None)
    axes = [f"{axis}_size" for axis in ("tp", "cp", "sp") if getattr(parallel, f"{axis}_size", 1) not in (None, 1)]
    engines: list[tuple[bool, str]] = [
        (
            getattr(state, "deepspeed_plugin", None) is not None,
            "deepspeed owns gradients and updates; launch with fsdp_version: 2",
        ),
        (
            getattr(state, "megatron_lm_plugin", None) is not None,
            "megatron owns gradients and updates; launch with fsdp_version: 2",
        ),
        (
            plugin is not None and int(plugin.fsdp_version) != 2,
            "fsdp_version=1 flattens layers into one parameter; set fsdp_version: 2",
        ),
        (
            plugin is not None and bool(plugin.activation_checkpointing),
            "fsdp activation_checkpointing wraps layers; set it to false, and gradient_checkpointing=True",
        ),
        (
            plugin is not None
            and bool(getattr(plugin.cpu_offload, "offload_params", plugin.cpu_offload))
            and "CPUOffload" in type(plugin.cpu_offload).__name__,
            "fsdp cpu_offload keeps shards apart from the device that computes; set it to false",
        ),
        (
            bool(axes),
            f"{', '.join(axes)} > 1 shows a process part of a layer or of an example; set 1, and fsdp_version: 2",
        ),
    ]
    for broken, why in engines:
        if broken:
            raise PrivacyRefusal(f"this launch cannot be used in private training: {why}.")
