"""Zeroth-order training in Hugging Face's conventions: arguments in, a ledger, a log and a saved model out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from dpaudit import Ledger, MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.protocols import Calibrate, FileJournal, Journal
from dpaudit.trainers.distributed.replicated import share_weights
from dpaudit.trainers.distributed.shards import has_shards
from dpaudit.trainers.huggingface.arguments import PrivacyArguments, described, told
from dpaudit.trainers.huggingface.continuation import refuse_another_plan, refuse_lost_steps
from dpaudit.trainers.huggingface.forbidden import refuse_arguments
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.huggingface.opening import LEDGER, PRIVATE, compare_data, open_run_ledger, write_record
from dpaudit.trainers.huggingface.output import logged_epsilon, train_output
from dpaudit.trainers.huggingface.processes import (
    from_the_first,
    refuse_engines,
    refuse_other_records,
    save_whole,
    shard_by_accelerate,
)
from dpaudit.trainers.huggingface.units import DatasetUnits
from dpaudit.trainers.noise import Noise, noise_statement
from dpaudit.trainers.objective import LossFunction
from dpaudit.trainers.refusals import refuse_model
from dpaudit.trainers.sampling import Sampler
from dpaudit.trainers.stopping import Interruption, finish_the_step
from dpaudit.trainers.target import settled
from dpaudit.trainers.witness import ReleaseRecorder
from dpaudit.trainers.zeroth_order.directions import DirectionKind, Directions
from dpaudit.trainers.zeroth_order.distributed import TorchWorld
from dpaudit.trainers.zeroth_order.log import ZOLog, ZOLogWriter, read_zo_log
from dpaudit.trainers.zeroth_order.pruning import MaskRule
from dpaudit.trainers.zeroth_order.stages import ZOPlan, zoso
from dpaudit.trainers.zeroth_order.steps import ZOReport
from dpaudit.trainers.zeroth_order.train import ZOResult, zo_train
from dpaudit.trainers.zeroth_order.watched import ScalarCanaries, scalar_recorder, watch_again
from dpaudit.trainers.zeroth_order.weights import rebuild, refuse_mask_of_shards

LOG = "zo_log.jsonl"


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZerothOrderArguments:
    """What ``HfArgumentParser`` reads beside TrainingArguments and PrivacyArguments for forward-only training."""

    run_key: str = told("Public key of the run's directions; a new one for each run on the same records.")
    directions: int = told("P, directions evaluated on each minibatch.", default=1)
    clip: str = told("per_direction (sensitivity C sqrt(P)) or joint (sensitivity C).", default="joint")
    scale: float = told("Beta, half the distance between the two evaluations.", default=1e-3)
    last_scale: float | None = told("Beta of the last stage, geometric in between.", default=None)
    stages: int = told("Stages of DP-ZOSO; 1 is DPZero or DP-AggZO.", default=1)
    growth: float = told("Ratio of step counts from stage to stage.", default=2.0)
    decay: float = told("Ratio of learning rates from stage to stage.", default=0.5)
    proximal: float = told("Gamma, pull towards the weights at the stage's start.", default=0.0)
    distribution: str = told("gaussian or rademacher.", default="gaussian")
    perturbation: str = told("per_layer (out of place) or in_place.", default="per_layer")
    keep: float | None = told("DP-ZOPO: fraction of coordinates that move; None moves all.", default=None)
    prune_score: str = told("zo_synflow, magnitude or random.", default="zo_synflow")
    prune_strategy: str = told("static, dynamic or incremental.", default="static")
    prune_ranked: bool = told("Weight the kept coordinates by rank.", default=False)

    def mask(self) -> MaskRule | None:
        """DP-ZOPO's rule, or None."""
        if self.keep is None:
            return None
        return MaskRule(keep=self.keep, score=self.prune_score, strategy=self.prune_strategy, ranked=self.prune_ranked)


class ZOTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """``transformers.Trainer`` that fine-tunes with forward passes alone; the rival of :class:`DPTrainer`.

    It takes the same :class:`PrivacyArguments`, refuses the same TrainingArguments, and writes the same
    ``OUTPUT_DIR/privacy/ledger.jsonl``. Beside it stands ``zo_log.jsonl``, the whole checkpoint: a resume replays it
    on the base model and goes on. Under ``torchrun`` and ``accelerate launch`` every process evaluates its share of
    each step's records: with a whole copy or, with ``fsdp_version: 2`` or after ``fully_shard``, in shards, of which it
    moves its own. The first one draws, counts, adds the noise and writes.

    Parameters
    ----------
    model, args, **kwargs
        As in ``transformers.Trainer``. ``learning_rate`` is that of the first stage; Hugging Face's schedules,
        optimizers and weight decay do not act.
    privacy : PrivacyArguments
        The claim.
    zeroth_order : ZerothOrderArguments
        Directions, clip and stages.
    per_example_loss, calibrate, journal, audit_plan_sha256, units, sampler, noise
        As in :class:`DPTrainer`.
    in_run : ScalarCanaries, optional
        In-run canaries of zeroth-order steps, as ``ScalarInRunCanaries``: drawn with the records' q, their loss
        differences known. All of them share a step's P scalars, so that they show little; see the documentation.

    Attributes
    ----------
    plan : ZOPlan
        With σ known.
    recorder : ReleaseRecorder or None
        Energy of every release so far, for :func:`dpaudit.auditing.energy_test`; always on. None for Laplace noise.
    private_logs : list of dict
        Mean losses and batch sizes; write them to ``private/`` only.
    result : ZOResult or None
        What the last :meth:`train` ran.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        privacy: PrivacyArguments,
        zeroth_order: ZerothOrderArguments,
        per_example_loss: LossFunction | None = None,
        calibrate: Calibrate | None = None,
        journal: Journal | None = None,
        audit_plan_sha256: str | None = None,
        units: Iterable[Any] | None = None,
        sampler: Sampler | None = None,
        noise: Noise | None = None,
        in_run: ScalarCanaries | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise InvalidValue("args=None must be TrainingArguments; private training writes a ledger in output_dir.")
        refuse_arguments(args, privacy, list(kwargs.get("callbacks") or []))
        for name in ("compute_loss_func", "optimizer_cls_and_kwargs", "optimizers"):
            if kwargs.get(name) is not None:
                raise PrivacyRefusal(f"{name} has no effect without gradients; remove it, or use DPTrainer.")
        self.privacy, self.zeroth_order = privacy, zeroth_order
        self.plan = settled(_plan(privacy, zeroth_order, args), calibrate)
        self.private_logs: list[dict[str, Any]] = []
        self.result: ZOResult | None = None
        self._loss = per_example_loss or per_example_losses
        self._journal, self._given_journal = journal, journal is not None
        self._audit_plan, self._told = audit_plan_sha256, Interruption()
        self._sampler, self._noise, self._in_run = sampler, noise, in_run
        self.recorder: ReleaseRecorder | None = None
        self.control: Any
        if model is not None:
            refuse_model(model)  # before Hugging Face wraps it, compiles it or drops the columns that it cannot name
        super().__init__(model=model, args=args, **kwargs)
        refuse_model(self.model)
        refuse_engines(self)
        if has_shards(self.model) or self.is_fsdp_enabled:
            refuse_mask_of_shards(zeroth_order.mask())
        self.train_dataset: Any
        self._units = DatasetUnits.of(kwargs.get("train_dataset"), self.plan.stages[0].plan, privacy, units)
        self.train_dataset = self._units.dataset

    @property
    def ledger(self) -> Ledger:
        """Every step counted so far, of earlier segments too."""
        if isinstance(self._journal, FileJournal):
            return self._journal.ledger().merged()
        if isinstance(self._journal, MemoryJournal):
            return dataclasses.replace(self.plan.ledger(), stages=self._journal.ledger_stages()).merged()
        stages = () if self.result is None else self.result.stages
        return dataclasses.replace(self.plan.ledger(), stages=stages).merged()

    @property
    def status(self) -> str:
        """ "completed" or "test"; "planned" before :meth:`train`."""
        return "planned" if self.result is None else self.result.status

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """Train as the plan says; with ``resume_from_checkpoint=True`` the log is replayed on the base model first."""
        if trial is not None:
            raise PrivacyRefusal("trial=... would spend the budget once for each trial; train one configuration.")
        refuse_model(self.model)
        if isinstance(resume_from_checkpoint, str):
            raise PrivacyRefusal(
                f"resume_from_checkpoint={resume_from_checkpoint!r}: the log in output_dir is the checkpoint; pass True"
                " and the base model."
            )
        folder = Path(self.args.output_dir) / "privacy"
        with finish_the_step() as self._told:
            return self._train(folder, resume=bool(resume_from_checkpoint))

    def _train(self, folder: Path, *, resume: bool) -> TrainOutput:
        try:
            start, state = self._open_together(folder, resume=resume)
            log = ZOLogWriter(folder / LOG if self.leads else None)
        except BaseException:
            self._release_ledger()
            raise
        arguments, handler = self.zeroth_order, self.callback_handler
        self.state.max_steps = sum(stage.plan.steps for stage in self.plan.stages)
        self.state.compute_steps(self.args, self.state.max_steps)
        self.control = handler.on_train_begin(self.args, self.state, self.control)
        assert self._journal is not None
        try:
            self.result = zo_train(
                self.model,
                self.train_dataset,
                self.plan,
                collate=self._collate,
                loss_fn=self._evaluate_losses,
                journal=self._journal,
                directions=Directions(run=arguments.run_key, kind=DirectionKind(arguments.distribution)),
                log=log,
                physical_batch_size=self.args.per_device_train_batch_size,
                perturbation_mode=arguments.perturbation,
                callback=self._after_step,
                sampler=self._sampler,
                noise=self._noise,
                start=start,
                state=state,
                units=self._units.units,
                canaries=self._in_run if self.leads else None,
                recorder=self.recorder if self.leads else None,
                world=TorchWorld("records") if self.args.world_size > 1 or has_shards(self.model) else None,
                preflight=self.privacy.preflight,
            )
        finally:
            log.close()
            self._release_ledger()
        self.control = handler.on_train_end(self.args, self.state, self.control)
        self._told.end()
        output = train_output(self.state.global_step, self.ledger, self.plan.stages[0].plan.delta)
        output.metrics["train_runtime"] = self.result.seconds
        return output

    def _release_ledger(self) -> None:
        if not self._given_journal and isinstance(self._journal, FileJournal):
            self._journal.close()  # so that a resume in this process finds the ledger free

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: every trial would spend the budget again."""
        raise PrivacyRefusal("hyperparameter_search would spend the budget once for each trial; search on public data.")

    @property
    def leads(self) -> bool:
        """Whether this is the first process: the one that draws, counts and writes."""
        return bool(self.args.process_index == 0)

    def _open_together(self, folder: Path, *, resume: bool) -> tuple[tuple[int, int], dict[str, Any] | None]:
        """Where the first process begins, in all of them, with its weights."""
        self.recorder = scalar_recorder(self.plan)
        refuse_other_records(self.args, self.train_dataset, (self.plan, self.zeroth_order))
        start, log = from_the_first(self.args, lambda: self._open(folder, resume=resume))
        if self.args.world_size > 1:
            share_weights(self.model)
            if not self.leads:
                self._journal = MemoryJournal()
        shard_by_accelerate(self)
        if log is None:
            return start, None
        state = rebuild(log, self.model).state()  # in every process: each moves what it holds
        if self.leads:
            watch_again(log, self.plan, canaries=self._in_run, recorder=self.recorder)
        return start, state

    def _open(self, folder: Path, *, resume: bool) -> tuple[tuple[int, int], ZOLog | None]:
        """Open the ledger; on a resume find the first step that was not counted, and the log that leads up to it."""
        if seen := getattr(self._in_run, "steps", 0):
            raise InvalidValue(
                f"in_run has already seen {seen} releases, which a resume shows it again; make it anew, with the same"
                " coins and key."
            )
        folder.mkdir(parents=True, exist_ok=True)  # also where the journal lies elsewhere
        path = folder / LEDGER
        log = read_zo_log(folder / LOG) if resume else None
        known = 0 if log is None else log.steps
        if not self._given_journal:
            self._journal = open_run_ledger(
                path,
                self.plan.stages[0].plan,
                begun=resume,
                known=known,
                checkpoint=None,
                audit_plan_sha256=self._audit_plan,
            )
            if not resume and (folder / LOG).exists():
                self._refuse_steps_without_ledger(folder / LOG)
            compare_data(folder.parent / PRIVATE, self.train_dataset, begun=resume)
        if log is None:
            return (0, 0), None
        refuse_lost_steps(path, self.ledger, (), known=known, head=None)
        if not self._given_journal:
            refuse_another_plan(self.ledger, self.plan.ledger().stages)
        counted = self.ledger.steps
        for index, stage in enumerate(self.plan.stages):
            if counted < stage.plan.steps:
                return (index, counted), log
            counted -= stage.plan.steps
        raise PrivacyRefusal(f"the ledger already holds all {self.ledger.steps} planned steps; the run is complete.")

    def _refuse_steps_without_ledger(self, path: Path) -> None:
        logged = read_zo_log(path).steps
        if logged:
            raise PrivacyRefusal(
                f"output_dir={self.args.output_dir!r} holds a log of {logged} released steps and no ledger of them;"
                " restore the ledger, or give a new output_dir."
            )
        path.unlink()  # of a run that was refused before its first step

    def _collate(self, rows: list[Any]) -> Any:
        collator = self._get_collator_with_removed_columns(self.data_collator, description="training")
        return self._prepare_inputs(self._units.without_column(collator)(rows))

    def _evaluate_losses(self, model: nn.Module, batch: Any) -> Any:
        with self.compute_loss_context_manager():
            return self._loss(model, batch).float()

    def _after_step(self, report: ZOReport) -> bool:
        losses = report.private.losses
        mean = float(losses.mean()) if len(losses) else None
        self.private_logs.append({"step": report.step, "loss": mean, "batch": len(losses)})
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        self.state.global_step = report.step
        self.state.epoch = report.step * report.schedule.plan.sampling_probability
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.control.should_log:
            shown = {"learning_rate": report.schedule.learning_rate}
            if (upper := logged_epsilon(self.ledger, report.schedule.plan.delta)) is not None:
                shown["epsilon"] = upper
            if self.privacy.allow_nonprivate_logs and mean is not None:
                shown["loss"] = mean
            self.log(shown)
        if self.control.should_save:
            self.save_model(str(Path(self.args.output_dir) / f"checkpoint-{report.step}"))
            self.control.should_save = False
        if self.control.should_evaluate:
            if not self.privacy.evaluation_is_public:
                raise PrivacyRefusal(
                    f"eval_strategy={self.args.eval_strategy!r} looks at records during training; set"
                    " evaluation_is_public=True for public records, or evaluate after training."
                )
            self.evaluate()
            self.model.eval()
        return bool(self.control.should_training_stop) or self._told.signal is not None

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not has_shards(model):  # a sharded model is on its devices already
            super()._move_model_to_device(model, device)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole model, from the first process; every process calls it."""
        if has_shards(self.model):
            save_whole(self, output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.leads:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        injected, publishes = self._noise and self._noise.is_test, self.privacy.allow_nonprivate_logs
        own = {
            "status": self.status,
            "plan": self.plan.ledger().to_dict(),
            "schedules": [stage.schedule() for stage in self.plan.stages],
            "noise": None if injected else noise_statement(secure=self.plan.secure_noise),
            "units": self._units.statement,
        }
        write_record(folder, own, ledger=self.ledger, publishes_logs=publishes, processes=self.args.world_size)


def _plan(privacy: PrivacyArguments, zeroth: ZerothOrderArguments, args: TrainingArguments) -> ZOPlan:
    whole = privacy.plan(max_steps=args.max_steps, num_train_epochs=args.num_train_epochs)
    whole = dataclasses.replace(
        whole,
        releases_per_step=zeroth.directions,
        clip=zeroth.clip if zeroth.directions > 1 else None,  # type: ignore[arg-type]  # a plan reads names
    )
    return zoso(
        whole,
        learning_rate=args.learning_rate,
        scale=zeroth.scale,
        last_scale=zeroth.last_scale,
        stages=zeroth.stages,
        growth=zeroth.growth,
        decay=zeroth.decay,
        proximal=zeroth.proximal,
        mask=zeroth.mask(),
    )
