"""A run from configuration to certificate, in phases that can each be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import DpauditError, InvalidEvidence, InvalidValue
from dpaudit.runs.attempts import attempts_of, count_attempt
from dpaudit.runs.config import Config, parse_config
from dpaudit.runs.in_run.part import write_evidence
from dpaudit.runs.issue import refuse_new_evidence
from dpaudit.runs.processes import dismiss, refuse_lonely_shards, trains_in
from dpaudit.runs.progress import progress, quiet_transformers
from dpaudit.runs.publish import Published, publish, save_model, score_canaries
from dpaudit.runs.resume import declared_configuration, differing_keys, discard_preparation, drew_private_records
from dpaudit.storage.files import PRIVATE_MODE
from dpaudit.storage.run_folder import (
    RunFolder,
    RunRecord,
    new_record,
    read_record,
    update_record,
    write_json,
)

if TYPE_CHECKING:
    from dpaudit.auditing.in_run.evidence import ControlRun
    from dpaudit.runs.prepare import Prepared


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run folder with its configuration and record."""

    folder: RunFolder
    config: Config
    base: Path
    record: RunRecord


def begin(config: Config, base: Path, out: Path) -> Job:
    """Create the run folder, or continue the run that stands there; in a run's first process alone."""
    refuse_lonely_shards(config)
    folder = RunFolder.create(out)
    value = config.model_dump(mode="json")
    if not folder.record.exists():
        return Job(folder=folder, config=config, base=base, record=update_record(folder, new_record(value)))
    record = read_record(folder)
    if _whatever_runs_it(record.config) != _whatever_runs_it(value):
        record = _corrected(folder, record, value)
    return Job(folder=folder, config=config, base=base, record=record)


def _whatever_runs_it(value: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the machine that it runs on, which a resume may change."""
    optimizer = {k: v for k, v in value["optimizer"].items() if k not in ("device", "threads")}
    run = {k: v for k, v in value["run"].items() if k not in ("processes", "sharding")}
    return {**value, "optimizer": optimizer, "run": run}


def _corrected(folder: RunFolder, record: RunRecord, value: dict[str, Any]) -> RunRecord:
    """Take another configuration while no private record was drawn; afterwards refuse it by its keys."""
    with folder.locked():
        if drew_private_records(folder):
            keys = differing_keys(record.config, value)
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InvalidValue(
                f"run folder {folder.root} holds a run of another configuration ({'; '.join(keys[:3])}{more}); give the"
                " configuration it began with, or another --out."
            )
        discard_preparation(folder)
        return update_record(folder, new_record(value))


def reopen(root: Path) -> Job:
    """Open a run folder that was trained before."""
    folder = RunFolder.open(root)
    record = read_record(folder)
    base = Path(str(record.facts.get("base", root)))
    try:
        value = declared_configuration(record.config, record.facts)
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, ValueError) as error:
        raise InvalidEvidence(
            f"{folder.record} holds a configuration or plan of another form ({error!r:.80})."
        ) from None
    return Job(folder=folder, config=parse_config(value, str(folder.record)), base=base, record=record)


def train_phase(job: Job, *, tell: Callable[[str], None] = lambda note: None) -> Job:
    """Prepare, train, save the model and score the canaries; skips what is done.

    Parameters
    ----------
    tell : callable
        Receives what is worth knowing before the first step, one sentence at a time.
    """
    from dpaudit.runs.fit import fit
    from dpaudit.runs.membership import score_real_records
    from dpaudit.runs.notes import before_training
    from dpaudit.runs.prepare import prepare
    from dpaudit.runs.sources import load_model

    quiet_transformers()
    folder, record = job.folder, job.record
    if record.status in ("attacked", "certified"):
        dismiss(job.config)
        return job
    with folder.locked():
        record = count_attempt(folder, record, "training")
        try:
            prepared = prepare(job.config, job.base, folder)
            record = update_record(
                folder,
                record,
                status="training",
                error=None,
                facts={
                    "base": str(job.base),
                    "planned": prepared.ledger.to_dict()["stages"],
                    **_processes(record, job.config),
                },
            )
            for note in before_training(prepared):
                tell(note)
            with progress(sum(plan.steps for plan in prepared.plans), "private steps") as advance:
                fitted = fit(prepared, advance)
            save_model(fitted.model, prepared.tokenizer, folder.model)
            write_evidence(folder, prepared.audit_plan, fitted.watch, _simulated_control(prepared))
            record = update_record(
                folder,
                record,
                status="trained",
                facts={
                    "training_status": fitted.status,
                    "steps_counted": fitted.steps_counted,
                    "steps_lost": fitted.steps_lost,
                    "heldout_before": fitted.heldout_before,
                    "heldout_after": fitted.heldout_after,
                },
            )
            base_model = load_model(job.config, job.base, classes=prepared.public.classes)
            score_real_records(prepared, fitted.model, base_model)
            score_canaries(prepared, fitted.model, base_model)
            record = update_record(folder, record, status="attacked")
        except BaseException as error:
            with contextlib.suppress(OSError):  # the disk that refused may refuse this as well
                update_record(folder, record, error=_told(error))
            raise
    return dataclasses.replace(job, record=record)


def _processes(record: RunRecord, config: Config) -> dict[str, int]:
    """The most processes that the run ever trained in, where they were several: an examination sees one."""
    most = max(record.facts.get("processes", 1), trains_in(config))
    return {} if most == 1 else {"processes": most}


def _simulated_control(prepared: Prepared) -> tuple[ControlRun, ...]:
    """The in-run audit's control; () where its plan has none."""
    from dpaudit.certificates.curve import declared_deltas
    from dpaudit.runs.in_run.control import simulate_control

    plan = prepared.in_run
    if plan is None or plan.control is None:
        return ()
    with progress(plan.control.repeats, "simulated runs") as advance:
        deltas = declared_deltas(prepared.ledger, plan.epsilons)
        return simulate_control(plan, prepared.plans[0], deltas, advance=advance)


def _told(error: BaseException) -> str:
    if isinstance(error, DpauditError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once, before the step was finished"
    return f"{type(error).__name__}: {error}"


def control_phase(job: Job, *, runs: int = 1, tell: Callable[[str], None] = lambda note: None) -> Job:
    """Train positive controls on public records, once; the power of the attack is measured on them together.

    ``tell`` hears beforehand where that many controls cannot show enough power. Every attempt is counted.
    """
    from dpaudit.runs.control import too_few_controls, train_control
    from dpaudit.runs.prepare import prepare

    if job.folder.control_scores.exists():
        return job
    refuse_new_evidence(job.folder.certificate, "a positive control")
    quiet_transformers()
    with job.folder.locked():
        prepared = prepare(job.config, job.base, job.folder)
        if note := too_few_controls(prepared.audit_plan, runs):
            tell(note)
        with progress(runs * sum(plan.steps for plan in prepared.plans), "control steps") as advance:
            record = count_attempt(job.folder, job.record, "control")
            train_control(prepared, job.folder.control_scores, job.record.config_sha256, runs=runs, advance=advance)
    return dataclasses.replace(job, record=record)


def examine_phase(job: Job, *, budget: str = "1min", tell: Callable[[str], None] = lambda note: None) -> Job:
    """Examine the trainer on synthetic records; witnesses stay private, the findings enter the certificate.

    A second examination replaces the first, and both ``tell`` and the certificate say so. One that a published
    certificate holds stays as it is.
    """
    from dpaudit.runs.examine import examine_configuration, findings_for_certificate
    from dpaudit.storage.plain import plain

    if job.folder.examination.exists():
        if job.folder.certificate.exists():
            tell(f"the examination stays as {job.folder.certificate} holds it, which was published.")
            return job
        tell(f"the examination in {job.folder.examination} is replaced by a new one; the certificate counts both.")
    refuse_new_evidence(job.folder.certificate, "an examination")
    quiet_transformers()
    with job.folder.locked():
        record = count_attempt(job.folder, job.record, "examination")
        found = examine_configuration(job.config, job.base, budget=budget)
        write_json(job.folder.private / "examination.json", plain(found.to_dict()), mode=PRIVATE_MODE)
        payload = {
            "schema": "dpaudit.examination/1",
            "findings": findings_for_certificate(found),
            "tests": [{"name": test.name, "excludes": test.excludes} for test in found.tests],
            "untested": list(found.untested),
            **{name: value for name, value in found.to_dict().items() if name in _COMPLETENESS},
            "config_sha256": job.record.config_sha256,
            "budget": budget,
            "attempt": attempts_of(record.facts)["examination"],
            "false_alarm_probability": found.alpha,
        }
        write_json(job.folder.examination, plain(payload))
    return dataclasses.replace(job, record=record)


_COMPLETENESS = ("excluded", "in_full", "partial")
"""What an examination says of its own completeness."""


def certify_phase(job: Job, *, signing_key: bytes | None = None) -> Published:
    """Account, audit, certify and report what the training phase left."""
    if job.record.status not in ("attacked", "certified"):
        raise InvalidEvidence(
            f"run folder {job.folder.root} has status {job.record.status!r}: its training did not finish; run"
            f" 'dpaudit certify CONFIG.toml --out {job.folder.root}' again to resume it."
        )
    with job.folder.locked():
        published = publish(job.folder, job.config, job.record, signing_key=signing_key)
        update_record(job.folder, job.record, status="certified")
    return published
