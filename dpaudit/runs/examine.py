"""Examination of a training step: the trainer that a configuration names, or a step of any library."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit import Ledger
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.finding import public_findings
from dpaudit.runs.progress import quiet_transformers
from dpaudit.storage.plain import plain

if TYPE_CHECKING:
    from dpaudit.attacks import FirstOrderAdapter, ZerothOrderAdapter
    from dpaudit.attacks.examiner.values import Findings
    from dpaudit.runs.config import Config

RECORDS = 96
"""Synthetic records of an examination of a configuration."""

LENGTH = 16
"""Tokens of a synthetic record, at most."""


def examine(
    source: str | Path | Sequence[tuple[Any, Any]], *, budget: str | float = "1min", accountant: str = "pld"
) -> Findings:
    """Test a training step from inside: sensitivity, noise, sampler, ledger, and one canary a step.

    Parameters
    ----------
    source : str, Path or sequence of (adapter, plan)
        A configuration (``.toml``), whose trainer is examined stage by stage on synthetic records; the name of a
        function, ``"module:function"``, that returns (adapter, plan); or such pairs, one for each stage.
    budget : str or float, default="1min"
        What to spend: seconds, a time such as "30s" or "2min", or "2000 steps".
    accountant : str, default="pld"
        Recomputes the claimed ε: "prv", "pld" or "rdp".

    Returns
    -------
    Findings
        ``violated`` says whether a finding contradicts the plan. Nothing found proves no more than the tests listed
        exclude.

    Raises
    ------
    InvalidValue
        If the source cannot be read, or the step cannot be examined: an adapter that fails on ordinary records is never
        a finding.
    """
    from dpaudit.attacks.examiner.examine import examine_stages

    remake = None
    if isinstance(source, str) and not source.endswith(".toml"):
        remake = functools.partial(_adapter_again, source)
    return examine_stages(_steps(source), budget=budget, accountant=_accountant(accountant), remake=remake)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """An examination as ``dpaudit examine`` prints it, with the budget it was given."""

    findings: Findings
    budget: str

    @property
    def exit_code(self) -> int:
        """1 when a finding contradicts the plan, else 0, which proves no more than the tests listed exclude."""
        return int(self.findings.violated)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.examine/1``."""
        verdict = "violated" if self.findings.violated else "nothing_found"
        return {"schema": "dpaudit.examine/1", "verdict": verdict, "budget": self.budget} | self.findings.to_dict()

    def __str__(self) -> str:
        return str(self.findings)


def examined(
    source: str, *, budget: str, accountant: str, release: Path | None, tell: Callable[[str], None]
) -> Examined:
    """Examine as :func:`examine` does, and leave what a certificate says of it in a release folder, if one is given."""
    found = examine(source, budget=budget, accountant=accountant)
    if release is not None:
        tell(f"{write_examination(found, release)} written, without witnesses; certify_run takes it from there.")
    return Examined(findings=found, budget=budget)


def _adapter_again(source: str) -> Any:
    """The adapter made anew, for a library that an empty minibatch breaks."""
    return _from_function(source)[0]


def write_examination(found: Findings, release: Path) -> Path:
    """Write what a certificate says of an examination into a release folder, without witnesses; returns the file.

    :func:`dpaudit.certificates.certify_run` takes it from there.

    Raises
    ------
    InvalidValue
        If the folder is missing, or holds a certificate, which is amended and never rewritten.
    """
    from dpaudit.privacy.finding import public_examination
    from dpaudit.storage.run_folder import write_json

    if not release.is_dir():
        raise InvalidValue(f"release={release} is no folder; give the one that certify_run will write into.")
    if (release / "certificate.json").exists():
        raise InvalidValue(f"{release / 'certificate.json'} exists; examine before the run is certified, or amend it.")
    path = release / "examination.json"
    write_json(path, plain(public_examination(found)))
    return path


def _steps(source: str | Path | Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
    if not isinstance(source, (str, Path)):
        return source
    if not str(source).endswith(".toml"):
        return [_from_function(str(source))]
    from dpaudit.runs.config import read_config

    quiet_transformers()
    path = Path(source)
    return adapters_of(read_config(path), path.resolve().parent)


def findings_for_certificate(found: Findings) -> list[dict[str, Any]]:
    """Findings as a certificate takes them: the cause and its standing text, never a witness."""
    return public_findings(found)


def examine_configuration(config: Config, base: Path, *, budget: str | float = "1min") -> Findings:
    """Examine the trainer that a configuration names, stage by stage, on synthetic records."""
    from dpaudit.attacks.examiner.examine import examine_stages

    accountant = _accountant(config.privacy.calibrate_with)
    return examine_stages(adapters_of(config, base), budget=budget, accountant=accountant)


def _accountant(name: str) -> Any:
    def epsilon(ledger: Ledger, delta: float) -> float:
        from dpaudit.accounting import epsilon_upper

        return epsilon_upper(ledger, delta, name)

    return epsilon


def _from_function(source: str) -> tuple[Any, Any]:
    name, _, function = source.partition(":")
    if not name or not function:
        raise InvalidValue(
            f"source={source!r} is neither a .toml file nor MODULE:FUNCTION; name the function, as in"
            " mypackage.training:step_adapter."
        )
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as error:
        raise InvalidValue(f"source={source!r} cannot be loaded ({error}); check name and path.") from error
    finally:
        sys.path.remove(os.getcwd())
    try:
        made = make()
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue(
            f"{source}() raised {type(error).__name__}: {str(error)[:200]}; it must return a pair (adapter, plan)."
        ) from error
    if not (isinstance(made, tuple) and len(made) == 2):
        raise InvalidValue(f"{source} returned {type(made).__name__} and must return a pair (adapter, plan).")
    return made


def adapters_of(config: Config, base: Path) -> list[tuple[Any, Any]]:
    """Adapter and plan of every stage of the trainer that a configuration names, on one model."""
    from dpaudit.runs.fit_zeroth_order import stages_of
    from dpaudit.runs.prepare import make_plans, public_size
    from dpaudit.runs.records import classes_of
    from dpaudit.runs.sources import load_model, select_trainable

    size = public_size(config)
    plans = make_plans(config, size)
    model = load_model(config, base, classes=classes_of(config, base))
    model = select_trainable(model, config)
    records, special = synthetic_records(config, model.config, min(RECORDS, size))
    if config.privacy.method != "dp-zoso":
        return [(_first_order(config, model, records, special, plans[0]), plans[0])]
    claims = [whole_plan(plans), *(dataclasses.replace(plan, target_epsilon=None) for plan in plans[1:])]
    adapters = [_zeroth_order(config, model, records, special, stage) for stage in stages_of(config, plans)]
    return list(zip(adapters, claims, strict=True))


def whole_plan(plans: Sequence[Any]) -> Any:
    """The plan that the claim is held against: the first stage's step, with the steps of all stages.

    Stages of one run share σ, q and P; they differ in rates, which cost no privacy.
    """
    return dataclasses.replace(plans[0], steps=sum(plan.steps for plan in plans))


def synthetic_records(config: Config, shape: Any, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Random token records of the task's form, and adversarial ones by name.

    Parameters
    ----------
    shape : transformers configuration
        Gives ``vocab_size`` and, for classification, ``num_labels``.
    """
    import numpy as np

    rng, vocabulary = np.random.default_rng(0), shape.vocab_size
    causal, longest = config.model.task == "causal-lm", max(4, min(LENGTH, config.data.max_length))

    def record(tokens: Any, *, labels: Any = None) -> dict[str, Any]:
        ids = [int(t) for t in tokens]
        own = list(ids) if causal else int(rng.integers(shape.num_labels))
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": own if labels is None else labels}

    rows = [record(rng.integers(2, vocabulary, size=rng.integers(3, longest))) for _ in range(count)]
    special = {"repeated token": record([5] * longest), "long record": record(rng.integers(2, vocabulary, longest))}
    if causal:
        special["empty label"] = record([7] * 4, labels=[-100] * 4)
        special["one token"] = record([9])
    return rows, special


def _collator(config: Config) -> Any:
    import torch

    causal = config.model.task == "causal-lm"

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max((len(row["input_ids"]) for row in rows), default=1)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

        labels = padded("labels", -100) if causal else torch.tensor([row["labels"] for row in rows])
        return {"input_ids": padded("input_ids", 1), "attention_mask": padded("attention_mask", 0), "labels": labels}

    return collate


def _losses(config: Config) -> Any:
    from dpaudit.trainers import causal_lm_losses, sequence_classification_losses

    if config.model.task == "causal-lm":
        return lambda model, batch: causal_lm_losses(model, **batch)
    return sequence_classification_losses


def _first_order(
    config: Config, model: Any, records: Sequence[Any], special: Mapping[str, Any], plan: Any
) -> FirstOrderAdapter:
    from dpaudit.attacks import FirstOrderAdapter
    from dpaudit.trainers import OptimizerSettings, train

    return FirstOrderAdapter(
        train, model, records, plan, collate=_collator(config), loss_fn=_losses(config), special=special,
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0), options={"physical_batch_size": 16},
    )  # fmt: skip


def _zeroth_order(
    config: Config, model: Any, records: Sequence[Any], special: Mapping[str, Any], stage: Any
) -> ZerothOrderAdapter:
    from dpaudit.attacks import ZerothOrderAdapter
    from dpaudit.runs.fit_zeroth_order import directions_of
    from dpaudit.trainers.zeroth_order.tasks import fixed_length
    from dpaudit.trainers.zeroth_order.train import zo_train

    return ZerothOrderAdapter(
        zo_train, model, records, stage, collate=fixed_length(_collator(config), LENGTH, pad=1),
        loss_fn=_losses(config), special=special, directions=directions_of(config, "examination"),
        options={"physical_batch_size": 16},
    )  # fmt: skip
