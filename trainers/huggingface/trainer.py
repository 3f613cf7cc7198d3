"""Private training in Hugging Face's Trainer: its conveniences, without its batches, losses, clipping and logs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from dpaudit import Ledger, MemoryJournal, Stage
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, StorageFailed
from dpaudit.privacy.parts import write_atomically
from dpaudit.privacy.protocols import Budget, Calibrate, FileJournal, Journal, seal_reason
from dpaudit.trainers.contribution import RunningSum
from dpaudit.trainers.distributed.examination import refuse_faulty_release
from dpaudit.trainers.distributed.reduction import count_together
from dpaudit.trainers.draw import SharedPasses, clipped_sum
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.heartbeat import Heartbeat
from dpaudit.trainers.huggingface.arguments import PrivacyArguments, optimizer_settings
from dpaudit.trainers.huggingface.continuation import (
    refuse_another_plan,
    refuse_lost_steps,
)
from dpaudit.trainers.huggingface.draws import Drawn, Draws, Member, WithMembers
from dpaudit.trainers.huggingface.forbidden import refuse_arguments
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.huggingface.observed import Observed
from dpaudit.trainers.huggingface.opening import (
    LEDGER,
    PRIVATE,
    compare_data,
    open_run_ledger,
    read_record,
    write_record,
)
from dpaudit.trainers.huggingface.output import logged_epsilon, train_output
from dpaudit.trainers.huggingface.plans import later_fields, plain_plan, steps_within
from dpaudit.trainers.huggingface.processes import ProcessesTrainer, refuse_other_records
from dpaudit.trainers.huggingface.room import CheckpointRoom, checkpoint_size
from dpaudit.trainers.huggingface.units import DatasetUnits
from dpaudit.trainers.noise import Noise, NoiseSource, noise_statement
from dpaudit.trainers.objective import LossFunction, Objective
from dpaudit.trainers.observer import Canaries, refuse_undrawn
from dpaudit.trainers.optimizers import DPOptimizer
from dpaudit.trainers.physical import PhysicalBatch
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.preflight.before import before_training
from dpaudit.trainers.refusals import refuse_model
from dpaudit.trainers.release import Releaser, clipper_for
from dpaudit.trainers.sampling import Sampler, countable
from dpaudit.trainers.state import ModelState
from dpaudit.trainers.step import PrivateStep, trainable
from dpaudit.trainers.stopping import Interruption, finish_the_step
from dpaudit.trainers.target import settled
from dpaudit.trainers.witness import ReleaseRecorder

PUBLIC_LOGS = ("learning_rate", "epoch", "step")


class DPTrainer(ProcessesTrainer):
    """A ``transformers.Trainer`` that trains with DP-SGD or DP-Adam as a privacy plan describes.

    Each optimizer step uses one Poisson-sampled batch, per-example clipping and one Gaussian noise draw.

    What stays Hugging Face's: arguments, learning-rate schedules, checkpoints, evaluation, callbacks. What does not:
    the loader (one Poisson draw a step, never re-wrapped), the loss (one per example), the gradients (clipped one by
    one, summed, noised once, divided by the constant L), ``max_grad_norm`` (switched off), and what is logged.

    Parameters
    ----------
    model, args, **kwargs
        As in ``transformers.Trainer``; arguments that break the guarantee are refused with a sentence.
    privacy : PrivacyArguments or PrivacyPlan
        The claim. A plan brings its own number of steps.
    per_example_loss : callable or None
        ``f(model, batch) -> (B,)``; by default chosen by the model's head.
    calibrate : Calibrate or None
        Finds σ for a target ε; the package's own calibration by default.
    budget : Budget or None
        Remaining ε of a ledger; training stops before the step that would overspend it.
    journal : Journal or None
        By default ``OUTPUT_DIR/privacy/ledger.jsonl``, durable before every release.
    audit_plan_sha256 : str or None
        Digest of the audit plan, as :func:`dpaudit.certificates.write_plan` returns it; the ledger's first line then
        binds the run to the plan.
    units : iterable or None
        Name of each record's unit of privacy, where no ``unit_column`` of the arguments tells it; see :func:`train`.
    rows_per_record : int
        Successive rows of a collated batch that are one record with one loss, clipped as one.
    in_run : Canaries, optional
        In-run canaries made for the model's trainable parameters, as :class:`dpaudit.attacks.InRunCanaries`: each is
        drawn with the records' q, added to the clipped sums and scored from every release.
    sampler, noise : optional
        Injected for tests; they mark :attr:`status` "test".

    Attributes
    ----------
    plan : PrivacyPlan
        With σ known.
    private_logs : list of dict
        Losses and metrics that were kept back, in memory; write them to ``private/`` only. What is logged instead is
        the learning rate and ``epsilon``: the certified upper bound at the plan's δ for every step so far.
    private_step : PrivateStep or None
        Noise-free values of the last step.
    status : str
        "completed" or "test".
    recorder : ReleaseRecorder or None
        Energy of every release so far, for :func:`dpaudit.auditing.energy_test`; None before the first step.

    Notes
    -----
    A checkpoint holds ``privacy.json`` (plan and ledger) and the sealed ledger. After a resume the sampler and the
    noise start afresh, and the steps of the ledger, not of the checkpoint, count against the plan. A ledger that is
    missing or holds fewer steps than the checkpoint is refused, and so are other data, where they can be compared.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        privacy: PrivacyArguments | PrivacyPlan,
        per_example_loss: LossFunction | None = None,
        calibrate: Calibrate | None = None,
        budget: Budget | None = None,
        journal: Journal | None = None,
        audit_plan_sha256: str | None = None,
        units: Iterable[Any] | None = None,
        rows_per_record: int = 1,
        in_run: Canaries | None = None,
        sampler: Sampler | None = None,
        noise: Noise | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise InvalidValue("args=None must be TrainingArguments; private training writes a ledger in output_dir.")
        arguments = privacy if isinstance(privacy, PrivacyArguments) else None
        refuse_arguments(args, arguments, list(kwargs.get("callbacks") or []))
        for name in ("compute_loss_func", "optimizer_cls_and_kwargs"):
            if kwargs.get(name) is not None:
                raise PrivacyRefusal(f"{name} cannot be used in private training; pass per_example_loss instead.")
        if any(part is not None for part in kwargs.get("optimizers", (None, None))[:1]):
            raise PrivacyRefusal("optimizers=... would step without noise; choose the optimizer in args.optim.")
        if isinstance(privacy, PrivacyArguments):
            plan = privacy.plan(max_steps=args.max_steps, num_train_epochs=args.num_train_epochs)
        else:
            plan = privacy
        self.plan = settled(plan, calibrate)
        args = copy.copy(args)  # the caller's value stays what was written
        args.max_steps, args.ignore_data_skip, args.max_grad_norm = self.plan.steps, True, 0.0
        self.privacy = arguments
        self.settings = optimizer_settings(args)
        self.private_logs: list[dict[str, Any]] = []
        self.private_step: PrivateStep | None = None
        self._loss = per_example_loss or functools.partial(
            per_example_losses, chunked_head=arguments is not None and arguments.chunked_head
        )
        self._budget, self._journal, self._given_journal = budget, journal, journal is not None
        self._audit_plan, self._told = audit_plan_sha256, Interruption()
        self._noise: Noise = NoiseSource(secure=self.plan.secure_noise) if noise is None else noise
        self._given_sampler = sampler
        self._in_run = in_run
        self._observed: Observed | None = None
        self._clipper: GhostClipping | None = None
        self._release: Releaser | None = None
        self._updates: DPOptimizer | None = None
        self._beat: Heartbeat | None = None
        self._state: ModelState | None = None
        self.optimizer: torch.optim.Optimizer | None
        self._names: list[str] = []
        self._past: tuple[Stage, ...] = ()
        self._counted, self._allowed = 0, self.plan.steps
        self._room, self._saved = CheckpointRoom(Path(args.output_dir), 0), 0
        self._micro = PhysicalBatch(args.per_device_train_batch_size)
        if model is not None:
            refuse_model(model)  # before Hugging Face wraps it, compiles it or drops the columns that it cannot name
        super().__init__(model=model, args=args, plan_sampling=self.plan, **kwargs)
        refuse_model(self.model)
        self._rows = rows_per_record
        self.train_dataset: Any
        self._units = DatasetUnits.of(kwargs.get("train_dataset"), self.plan, arguments, units)
        self.train_dataset = self._units.dataset
        self.add_callback(_StopAtTheLedger(self))

    # -- what is accounted ----------------------------------------------------------------------------------------
    @property
    def ledger(self) -> Ledger:
        """Every step counted so far, of earlier segments too."""
        now = () if not self._counted else (self.plan.stage(self._counted),)
        return dataclasses.replace(self.plan.ledger(), stages=(*self._past, *now)).merged()

    @property
    def status(self) -> str:
        """ "completed", or "test" where injected randomness took part."""
        injected = self._noise.is_test or bool(self._given_sampler and self._given_sampler.is_test)
        return "test" if injected else "completed"

    @property
    def recorder(self) -> ReleaseRecorder | None:
        """Energy of every release so far, in the first process; None before the first step."""
        return None if self._observed is None or not self.leads else self._observed.recorder

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """Train as the plan says; a resume continues the ledger of the checkpoint's run.

        Ctrl-C and SIGTERM finish the step and save a checkpoint first. Where checkpoints are saved at all, room for one
        is reserved before the first step and after each of them, so that a disk that fills up loses no step.

        Raises
        ------
        StorageFailed
            When the ledger or a checkpoint cannot be written; says where the steps so far are saved.
        InvalidEvidence
            When the ledger is missing, holds fewer steps than the checkpoint, or is another one.
        PrivacyRefusal
            When plan or data are not those that the run began with, or the ledger allows no more steps.
        """
        if trial is not None:
            raise PrivacyRefusal("trial=... would spend the budget once for each trial; train one configuration.")
        refuse_model(self.model)
        resume = resume_from_checkpoint or None
        if resume is True:
            resume = get_last_checkpoint(self.args.output_dir)
        checkpoint = Path(resume) if isinstance(resume, str) else None
        reason = "interrupted"
        try:
            self._open_together(checkpoint)
            if self.privacy is None or self.privacy.preflight:
                self._check()
            assert self._journal is not None
            self._reserve()
            self._journal.begin(self.plan.stage(0))
            self._beat = Heartbeat(self.plan, lambda: self.ledger)
            with finish_the_step() as self._told:
                self._train(resume, kwargs)
            self._beat.end(self.ledger.steps)
            self._told.end()
            reason = "completed"
        finally:
            self._close(reason)
        return train_output(self.state.global_step, self.ledger, self.plan.delta)

    def _reserve(self) -> None:
        """Reserve room for a checkpoint, where checkpoints are written by this process."""
        folder = Path(self.args.output_dir) / "privacy"
        wanted = self.args.save_strategy != "no" and self.args.should_save
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
        tokenizer = getattr(self, "processing_class", None)
        self._room = CheckpointRoom(folder, checkpoint_size(self.model, tokenizer=tokenizer) if wanted else 0)
        self._saved = self.ledger.steps
        self._room.reserve()

    def _train(self, resume: Any, options: dict[str, Any]) -> None:
        """Train; what cannot be written ends training, with the steps so far saved into the reserved room."""
        try:
            super().train(resume_from_checkpoint=resume, **options)
        except OSError as error:
            if not (isinstance(error, StorageFailed) or self._room.explains(error)):
                raise
            self._room.give_back()
            failure = error if isinstance(error, StorageFailed) else StorageFailed.of(Path(self.args.output_dir), error)
            told = f"{str(failure).rstrip('.')}; {self._keep()}"
            stopped = StorageFailed(told)
            stopped.errno = failure.errno
            raise stopped from error
        finally:
            self._room.give_back()

    def _keep(self) -> str:
        """Save the steps that no checkpoint holds, and say where they are."""
        steps = self.ledger.steps
        if self.args.save_strategy == "no" or not steps:
            return f"the model in memory holds the {steps} steps that were counted."
        if steps > self._saved:
            self._room = CheckpointRoom(Path(self.args.output_dir), 0)  # training ends, so no room is reserved any more
            try:
                self._save_checkpoint(self.model, None)
            except Exception as error:
                lost = steps - self._saved
                return f"the last {lost} steps that were counted could not be saved either ({type(error).__name__})."
        return f"the {steps} steps that were counted are saved in checkpoint-{self.state.global_step}."

    def _close(self, reason: str) -> None:
        if self._clipper is not None:
            self._clipper.close()
            self._clipper = None
        try:
            if self._journal is not None:
                self._journal.seal(seal_reason(reason, is_test=self.status == "test"))
        finally:
            self._past, self._counted = self.ledger.stages, 0
            if not self._given_journal and isinstance(self._journal, FileJournal):
                self._journal.close()  # so that a resume in this process finds the ledger free

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: every trial would spend the budget again."""
        raise PrivacyRefusal("hyperparameter_search would spend the budget once for each trial; search on public data.")

    def _open_together(self, checkpoint: Path | None) -> None:
        def opened() -> tuple[tuple[Stage, ...], int]:
            self._open_ledger(checkpoint)
            return self._past, self._allowed

        refuse_other_records(self.args, self.train_dataset, self.plan)
        self._past, self._allowed = self.from_the_first(opened)
        if not self.leads:
            self._journal, self._counted = MemoryJournal(), 0

    def _open_ledger(self, checkpoint: Path | None) -> None:
        path = Path(self.args.output_dir) / "privacy" / LEDGER
        known, head = sum(stage.steps for stage in self._past), None
        if checkpoint is not None:
            record = read_record(checkpoint)
            began = {**later_fields(), **record["plan"]}
            if began != plain_plan(self.plan):
                changed = sorted(k for k, v in plain_plan(self.plan).items() if began.get(k) != v)
                raise PrivacyRefusal(
                    f"{changed[0]} differs from the checkpoint's plan ({began.get(changed[0])!r}); resume with the plan"
                    " it began with, or start a new run."
                )
            self._past, head = Ledger.from_dict(record["ledger"]).stages, record.get("head")
            known = sum(stage.steps for stage in self._past)
        if isinstance(self._journal, FileJournal) and self._given_journal:
            if checkpoint is not None:
                counted = self._journal.ledger()
                refuse_lost_steps(self._journal.path, counted, self._journal.heads, known=known, head=head)
                self._past = counted.stages
        elif not self._given_journal:
            begun = checkpoint is not None or bool(self._past)
            journal = open_run_ledger(
                path, self.plan, begun=begun, known=known, checkpoint=checkpoint, audit_plan_sha256=self._audit_plan
            )
            self._journal = journal
            refuse_lost_steps(path, journal.ledger(), journal.heads, known=known, head=head)
            refuse_another_plan(journal.ledger(), [self.plan.stage()])
            self._past = journal.ledger().stages  # a crash after the checkpoint is counted here
            compare_data(path.parent.parent / PRIVATE, self.train_dataset, begun=begun)
        self._counted = 0
        self._allowed = self.plan.steps - sum(stage.steps for stage in self._past)
        if self._budget is not None:
            self._allowed = steps_within(self._budget, self.ledger, self.plan, self._allowed)
        if self._allowed < 1:
            raise PrivacyRefusal(
                f"the ledger already holds {self.ledger.steps} of {self.plan.steps} planned steps and the budget allows"
                " no more; the run is complete."
            )

    def _check(self) -> None:
        modes = {module: module.training for module in self.model.modules()}
        self.model.train()
        try:
            before_training(
                Objective(model=self.model, collate=self._collator(), loss_fn=self._loss, rows=self._rows),
                self.train_dataset,
                physical_batch_size=self._micro.size,
                wanted=countable(self.train_dataset) > 0,
                forward_only=self.sharded,
            )
        finally:
            for module, mode in modes.items():
                module.training = mode

    # -- what runs ------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> DataLoader[Any]:
        """One Poisson draw an item, as a list of records; handed to no other library for preparation."""
        members = 0 if self._in_run is None else self._in_run.members
        count = self._units.drawn.count
        sampler = self._given_sampler or self.sampler(self.plan, count, members)
        if self._given_sampler is not None:
            refuse_undrawn(sampler, count + members, canaries=bool(members))
        steps = max(1, round(1 / self.plan.sampling_probability))
        return DataLoader(
            WithMembers(self._units.placed) if members else self._units.placed,
            batch_sampler=Draws(sampler, steps, self._units.drawn),
            collate_fn=Drawn,
            num_workers=self.args.dataloader_num_workers,
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The draws, without a count of tokens: that count would couple the examples."""
        return [next(epoch_iterator) for _ in range(num_batches)], None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """DP-AdamW or DP-SGD over Hugging Face's two groups, with and without weight decay."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            parameters = trainable(self.model)
            with_decay = [n for n in parameters if n in decayed]
            without = [n for n in parameters if n not in decayed]
            self._names = [*with_decay, *without]
            groups = [
                {"params": [parameters[n] for n in names], "weight_decay": decay}
                for names, decay in ((with_decay, self.settings.weight_decay), (without, 0.0))
                if names
            ]
            self._updates = DPOptimizer(groups, self.settings)
            self.optimizer = self._updates
        return self.optimizer

    def trained(self) -> list[nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return [self.model.get_parameter(name) for name in self._names]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Count, clip, sum, add noise once; the optimizer's step that follows applies the release."""
        assert self._journal is not None and self._updates is not None
        if self._counted >= self._allowed:
            raise PrivacyRefusal(f"the ledger allows {self._allowed} more steps and they were taken; stop here.")
        model.train()
        group = self._updates.param_groups[0]
        if self._clipper is None or self._release is None:
            self._clipper = clipper_for(self.model, self.plan, group.get("clipping_norm"), rows=self._rows)
            self._release = Releaser(self.plan, self._clipper, self._noise, reduction=self._together)
            self._state = ModelState(self.model)
            refuse_faulty_release(self.model, self.trained(), self._together, self._noise)
            self._watch()
        canaries = [r.number for r in inputs.records if isinstance(r, Member)]
        drawn = self._units.draw([r for r in inputs.records if not isinstance(r, Member)])
        bound = self._release.clipping_norm
        passes = count_together(self._journal, self._together, self.model, drawn.passes(self._micro.size))
        self._counted += 1
        trained = self.trained()
        self.private_step, total = clipped_sum(
            Objective(
                model=model,
                collate=self._collator(),
                loss_fn=self._autocast_loss,
                rows=self._rows,
                reduction=self.plan.unit_reduction if self.plan.draws_units else None,
                state=self._state,
            ),
            drawn,
            micro=self._micro,
            clipper=self._clipper,
            sums=RunningSum(trained),
            bound=bound,
            shared=SharedPasses(passes, lambda: self.train_dataset[0]) if self._together.shares_passes else None,
        )
        totals = total.totals(trained)
        if self._observed is not None:
            self._observed.add_to(totals, canaries, self._clipper, bound)
        released = self._release(total, totals)
        if self._observed is not None:
            self._observed.observe(released.gradients, self._clipper, bound)
        self._updates.receive(released.gradients, released.noise_std)
        group["clipping_norm"] = self._release.clipping_norm
        losses = self.private_step.losses
        mean = float(losses.mean()) if len(losses) else 0.0
        self.private_logs.append({"step": self.state.global_step + 1, "loss": mean, "batch": len(losses)})
        if self._beat is not None:
            self._beat.step(self.ledger.steps)
        shown = mean if self._may_publish else 0.0
        return torch.tensor(shown, device=self.args.device)

    def _watch(self) -> None:
        """Begin to watch releases, or go on from the checkpoint: the first process, and the owners of shards for it."""
        if not (self.leads or self.sharded):
            return
        if self._observed is None:
            count = self._units.drawn.count
            self._observed = Observed(self.model, self.plan, self.trained(), count, self._in_run)
            if self.state.global_step and self.leads:
                self._observed.resume(self._seen_path())

    def _seen_path(self) -> Path:
        return Path(self.args.output_dir) / PRIVATE / f"in_run-{self.state.global_step}.pt"

    def _autocast_loss(self, model: nn.Module, batch: Any) -> Tensor:
        with self.compute_loss_context_manager():
            return self._loss(model, batch)

    def _collator(self) -> Callable[[list[Any]], Any]:
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        return self._units.without_column(collate)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        return None

    # -- what may be seen -----------------------------------------------------------------------------------------
    @property
    def _may_publish(self) -> bool:
        return bool(self.privacy and self.privacy.allow_nonprivate_logs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Publish what depends on no private record; keep the rest in ``private_logs``."""
        public_eval = bool(self.privacy and self.privacy.evaluation_is_public)
        shown = {
            k: v
            for k, v in logs.items()
            if k in PUBLIC_LOGS or self._may_publish or (public_eval and k.startswith("eval_"))
        }
        if kept := {k: v for k, v in logs.items() if k not in shown and not (k == "loss" and not self._may_publish)}:
            self.private_logs.append({"step": self.state.global_step, **kept})
        if ("learning_rate" in logs or "train_runtime" in logs) and (
            upper := logged_epsilon(self.ledger, self.plan.delta)
        ) is not None:
            shown["epsilon"] = upper  # public by the ledger: of every step so far, at the plan's delta
        super().log(shown, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: the true count would publish the realised batch sizes in ``trainer_state.json``."""
        return 0

    # -- what is stored -------------------------------------------------------------------------------------------
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self._journal is not None
        self._journal.seal(seal_reason("checkpoint", is_test=self.status == "test"))
        try:
            self._write_checkpoint(model, trial)
        finally:
            self._journal.begin(self.plan.stage(0))

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, on a full disk into the reserved room; then reserve the next one's."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            if self._observed is not None and self.args.should_save:
                path = self._seen_path()
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomically(path, self._observed.state(), mode=0o600)
            super()._save_checkpoint(model, trial)
        except Exception as error:  # the libraries that write have errors of their own for a full disk
            if not self._room.explains(error) or self.args.world_size > 1:
                raise  # with several processes one cannot write again alone
            self._room.give_back()
            shutil.rmtree(folder, ignore_errors=True)
            try:
                super()._save_checkpoint(model, trial)
            except Exception as again:
                raise StorageFailed.of(folder, again) from again
        self._saved = self.ledger.steps
        self._room.reserve(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.leads:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        head = None
        if isinstance(self._journal, FileJournal):
            self._journal.copy_to(folder / LEDGER)  # seals, so that the record names the line it ends at
            head = self._journal.head
        own = {
            "status": self.status,
            "plan": plain_plan(self.plan),
            "head": head,
            "noise": None if self._noise.is_test else noise_statement(secure=self.plan.secure_noise),
            "units": self._units.statement,
        }
        write_record(folder, own, ledger=self.ledger, publishes_logs=self._may_publish, processes=self.args.world_size)


class _StopAtTheLedger(TrainerCallback):  # type: ignore[misc]
    """Stops training when the ledger, not the step counter, has reached what is allowed."""

    def __init__(self, trainer: DPTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._trainer._counted >= self._trainer._allowed:
            control.should_training_stop = True
        together = self._trainer._together
        if together.any(self._trainer._told.signal is not None):
            control.should_training_stop = control.should_save = True
        control.should_training_stop = together.any(bool(control.should_training_stop))
        return control
