"""A positive control: the same attack on a run of the same configuration with a planted fault.

The control is trained WITHOUT noise, and therefore on public records only: its scores may be published. They measure
how often this attack, with this number of guesses, would convict a run whose noise is missing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit import MemoryJournal
from dpaudit.certificates.control_file import (
    ControlBinding,
    binding_of,
    foreign_control,
    read_control_file,
    write_control,
)
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.verdict import ENOUGH_POWER
from dpaudit.runs.canary_scores import canary_scores
from dpaudit.runs.membership import expected_size
from dpaudit.runs.prepare import Prepared, make_canaries
from dpaudit.runs.records import Records
from dpaudit.runs.sources import load_model, merged, select_trainable
from dpaudit.runs.units import draws_units, unit_names, units_of_canary
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.run_folder import RunFolder, read_json

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan, Control

FAULT = "no noise is added, while the ledger claims it; clipping and everything else as configured"


class _NoNoise:
    """The planted fault; marks the run as a test, so that it can never be certified."""

    is_test = True

    def sample(self, shape: Any, std: float, device: Any = "cpu") -> Any:
        """Zeros."""
        import torch

        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


def train_control(
    prepared: Prepared,
    path: Path,
    config_sha256: str,
    *,
    runs: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Train controls, score their own fresh canaries, and write scores and coins with what binds them to the run.

    Several controls are spread over joblib's backend: ``with joblib.parallel_config(backend="dask"): certify(...)``.

    Parameters
    ----------
    prepared : Prepared
        The run that the control belongs to.
    path : Path
        ``control_scores.parquet``.
    config_sha256 : str
        Digest of the run's configuration.
    runs : int
        Controls to train; their guesses count together. One control of the run's own size shows little where the
        audit plan allows few errors: ``audit_plan.control_canaries`` says how many canaries it takes.

    Raises
    ------
    InvalidValue
        For a method whose control is not wired.
    """
    validate.integer_at_least(1, controls=runs)
    if runs == 1:
        made = [_one_control(prepared, advance)]
    else:
        made = _several(prepared, runs, advance)
    _write(path, made, prepared, config_sha256)


def _several(prepared: Prepared, runs: int, advance: Callable[[int], None]) -> list[Scores]:
    """Controls spread over the surrounding ``joblib.parallel_config``; workers get nothing private."""
    from dpaudit.attacks.scores.fan_out import run_each

    made: list[Scores] = []
    steps = sum(plan.steps for plan in prepared.plans)

    def done(number: int, one: Scores) -> None:
        made.append(one)
        advance(steps)

    nothing: Any = None  # what a control never reads must not travel: records, coins, held-out records
    public = dataclasses.replace(prepared, private=nothing, secret=nothing, in_run_secret=None, split=None)
    run_each(functools.partial(_one_control, public), {number: () for number in range(runs)}, done)
    return made


def too_few_controls(plan: AuditPlan, runs: int) -> str | None:
    """Sentence on controls that cannot show a power of 0.8, however well the attack does; None for enough of them."""
    needed = plan.control_canaries
    if needed is None or runs * plan.m >= needed:
        return None
    return (
        f"controls={runs} with {plan.m} canaries each cannot show that the attack has a power of {ENOUGH_POWER:g}: the"
        f" plan takes {needed} control canaries; give --controls {-(-needed // plan.m)}, or change m or the claim."
    )


def _one_control(prepared: Prepared, advance: Callable[[int], None] = lambda n: None) -> Scores:
    from dpaudit.attacks import flip_coins
    from dpaudit.attacks.canaries.canary import commit
    from dpaudit.attacks.canaries.coins import draw_nonce
    from dpaudit.runs.encoding import encode, inserted_rows, training_options
    from dpaudit.trainers import train

    config = prepared.config
    if config.privacy.method != "dp-adam":
        raise InvalidValue(
            f"--control with privacy.method={config.privacy.method!r} is not available; it needs method='dp-adam'."
        )
    canaries = make_canaries(config, prepared.tokenizer, prepared.public)
    coins = flip_coins(len(canaries))
    ids = commit(canaries, coins, draw_nonce(), units_of_canary(config)).ids
    # As many stand-ins as were declared: the control's scores are published, and may not tell the private count.
    rows = [i % len(prepared.public) for i in range(expected_size(config))]
    stand_in: Records = prepared.public.take(rows)
    units = None
    if draws_units(config):  # a stand-in is a unit of its own
        named = dataclasses.replace(stand_in, units=tuple(f"stand-in {i}" for i in range(len(stand_in))))
        units = unit_names(config, named, len(canaries.present(coins)))
    records = encode(prepared, stand_in) + inserted_rows(config, canaries, coins, config.canaries.copies)
    classes = prepared.public.classes
    model, base = (load_model(config, prepared.base, classes=classes) for _ in range(2))
    model = select_trainable(model, config)
    (plan,) = prepared.plans
    train(
        model,
        records,
        dataclasses.replace(plan),
        journal=MemoryJournal(),
        units=units,
        callback=lambda report: advance(1),
        noise=_NoNoise(),
        preflight=False,  # the audited run's own was done with the same collator, model and loss
        **training_options(prepared),
    )
    return Scores(ids, canary_scores(prepared, canaries, merged(model), base), coins)


def _write(path: Path, made: Sequence[Scores], prepared: Prepared, config_sha256: str) -> None:
    from dpaudit.auditing import Control

    control = Control(
        scores=Scores(
            [name for one in made for name in one.ids],
            np.concatenate([one.values for one in made]),
            np.concatenate([one.members for one in made]),
        ),
        fault=FAULT,
        runs=[str(run) for run, one in enumerate(made) for _ in one.ids] if len(made) > 1 else None,
    )
    write_control(path, control, plan=prepared.folder.audit_plan, config_sha256=config_sha256)


def binding_of_run(folder: RunFolder, config_sha256: str) -> ControlBinding:
    """What a control of this run must carry."""
    plan = read_json(folder.audit_plan)
    return binding_of(plan, plan_sha256=sha256_file(folder.audit_plan), config_sha256=config_sha256)


def read_control(path: Path, expected: ControlBinding, audited: Sequence[str]) -> Control | None:
    """The control's scores as the audit takes them, or None when no control was trained.

    Raises
    ------
    InvalidEvidence
        When the file is not a control of this run: of another configuration, plan, canary generator or attack.
    """
    if not path.exists():
        return None
    found = read_control_file(path)
    if why := foreign_control(found, expected, audited):
        raise InvalidEvidence(
            f"{path} is not a control of this run ({why}); remove it and make one: dpaudit certify RUN --control."
        )
    return found.control
