"""``dpaudit account``: ε of stages or of a ledger; and the stage options that other commands share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from dpaudit.cli.common import delta_option, emit, json_option, number, table
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import ABSENT, exact_text, lower_text, nearest_text, upper_text
from dpaudit.privacy.stage import Relation, Sampling, Stage

F = TypeVar("F", bound=Callable[..., Any])

KEYS: dict[str, tuple[str, type]] = {
    "q": ("sampling_probability", float),
    "sigma": ("noise_multiplier", float),
    "steps": ("steps", int),
    "sampling": ("sampling", str),
    "directions": ("releases_per_step", int),
    "clip": ("clip", str),
    "mechanism": ("mechanism", str),
    "max_batch": ("max_batch", int),
    "public_size": ("public_size", int),
    "quantile_sigma": ("quantile_sigma", float),
}
REQUIRED = ("q", "sigma", "steps")
STAGE_HELP = (
    f"One stage; repeat in order. Keys: {', '.join(REQUIRED)}, and optionally"
    f" {', '.join(key for key in KEYS if key not in REQUIRED)}. q may be a fraction, as in q=256/60000."
)


def parse_stage(text: str) -> tuple[Stage, bool]:
    """Read ``"q=0.01,sigma=1.0,steps=1000"``; the flag says that sampling was left out and means poisson.

    >>> parse_stage("q=256/60000,sigma=1,steps=10")[0].sampling_probability
    0.004266666666666667
    """
    fields: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS:
            raise InvalidValue(f"stage {text!r} has the key {key!r}; known keys are {', '.join(KEYS)}.")
        name, kind = KEYS[key]
        if name in fields:
            raise InvalidValue(f"stage {text!r} gives {key} twice; give it once.")
        try:
            fields[name] = number(value) if kind is float else kind(value)
        except ValueError:
            raise InvalidValue(f"stage {text!r} has {key}={value!r}, which is not a valid {kind.__name__}.") from None
    for key in REQUIRED:
        if KEYS[key][0] not in fields:
            raise InvalidValue(f"stage {text!r} lacks {key}; write q=...,sigma=...,steps=....")
    defaulted = "sampling" not in fields
    fields.setdefault("sampling", Sampling.POISSON)
    return Stage(**fields), defaulted


def read_ledger_file(path: Path, relation: str | None) -> tuple[Ledger, list[str]]:
    """A ledger from a JSON ledger, a run (or its ``ledger.jsonl``), or a JSON history of (σ, q, T).

    Returns the ledger and the names of fields that defaults filled (histories do not state them).
    """
    if path.is_dir():
        path = path / "release" / "ledger.jsonl"
    if path.suffix == ".jsonl":
        from dpaudit.storage.journal import read_ledger

        ledger = read_ledger(path)
    else:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidEvidence(f"ledger {str(path)!r} cannot be read as JSON: {error}.") from None
        if isinstance(value, list) or (isinstance(value, dict) and "history" in value):
            from dpaudit.accounting.events import from_opacus

            missing = ["sampling", *(["relation"] if relation is None else [])]
            chosen = relation or Relation.ADD_OR_REMOVE_ONE
            return from_opacus(value, relation=chosen, unit="record"), missing
        if not isinstance(value, dict):
            raise InvalidEvidence(f"ledger {str(path)!r} is not a JSON object; write Ledger.to_dict() there.")
        ledger = Ledger.from_dict(value)
    return (ledger if relation is None else dataclasses.replace(ledger, relation=Relation.parse(relation))), []


def ledger_options(function: F) -> F:
    """Add ``--stage``, ``--ledger``, ``--relation``, ``--group-size`` and ``--assume``."""
    options = (
        click.option("--stage", "stages", multiple=True, metavar="KEY=VALUE,...", help=STAGE_HELP),
        click.option(
            "--ledger",
            "ledger_path",
            type=click.Path(exists=True, path_type=Path),
            help="A JSON ledger, a run folder or its ledger.jsonl, or a JSON history of (σ, q, steps).",
        ),
        click.option("--relation", default=None, help="add_or_remove_one (when omitted), replace_one or zero_out."),
        click.option("--group-size", type=int, default=1, show_default=True, help="Units that change together."),
        click.option(
            "--assume",
            "assume",
            multiple=True,
            help="shuffle_fixed_schedule: drop_last is off, steps and normaliser do not depend on the records.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def make_ledger(
    stages: tuple[str, ...], ledger_path: Path | None, relation: str | None
) -> tuple[Ledger, dict[str, Any]]:
    """The ledger of the options, and what to echo: relation, stages, and which fields a default filled."""
    if bool(stages) == bool(ledger_path):
        raise click.UsageError("Give either --stage (once or more) or --ledger.")
    if ledger_path is not None:
        ledger, missing = read_ledger_file(ledger_path, relation)
    else:
        parsed = [parse_stage(text) for text in stages]
        missing = ["sampling"] if any(defaulted for _, defaulted in parsed) else []
        missing += ["relation"] if relation is None else []
        chosen = Relation.parse(relation or Relation.ADD_OR_REMOVE_ONE)
        ledger = Ledger(stages=tuple(stage for stage, _ in parsed), relation=chosen)
    echo: dict[str, Any] = {"relation": str(ledger.relation), "stages": [s.to_dict() for s in ledger.stages]}
    if missing:
        echo |= {"defaulted": True, "defaulted_fields": sorted(missing)}
    return ledger, echo


def shown(result: Mapping[str, Any]) -> list[str]:
    """Cells of one accountant's answer: lower bound, upper bound, estimate, and what kind of answer it is."""
    lower, upper, estimate = (result[f"epsilon_{kind}"] for kind in ("lower", "upper", "estimate"))
    refused = lower is None and upper is None and estimate is None
    kind = "refused" if refused else "yes" if result["rigorous"] else "NO"
    return [lower_text(lower, 6), upper_text(upper, 6), nearest_text(estimate, 6), kind]


@click.command("account")
@ledger_options
@delta_option
@click.option("--accountant", "accountants", multiple=True, help="prv (default), rdp, pld, gdp, gdp-clt; repeatable.")
@click.option(
    "--tuning", default=None, help="Law of the number of tuning runs: geometric:10, log:10, poisson:10 (rdp)."
)
@click.option("--rtol", type=float, default=None, help="Relative width that prv aims at (0.005 when omitted).")
@json_option
def command(
    stages: tuple[str, ...],
    ledger_path: Path | None,
    relation: str | None,
    group_size: int,
    assume: tuple[str, ...],
    delta: float,
    accountants: tuple[str, ...],
    tuning: str | None,
    rtol: float | None,
    as_json: bool,
) -> None:
    """ε of stages or of a ledger by every accountant asked for.

    An accountant that refuses the ledger says why in its row; the exit code is 64 only where nobody answers.

    \b
    Example:
      dpaudit account --stage "q=0.01,sigma=1.0,steps=1000" --delta 1e-5 --relation add_or_remove_one --json
      dpaudit account --ledger runs/first --delta 1e-6 --accountant prv --accountant rdp
    """
    from dpaudit.accounting import replies
    from dpaudit.accounting.account import answered

    ledger, echo = make_ledger(stages, ledger_path, relation)
    found = replies(
        ledger,
        delta=delta,
        accountants=accountants or ("prv",),
        group_size=group_size,
        assume=assume,
        tuning=tuning,
        rtol=rtol,
    )
    answered(found)
    payload: dict[str, Any] = {
        "schema": "dpaudit.account/1",
        "delta": delta,
        **echo,
        "unit": ledger.unit,
        "group_size": group_size * ledger.max_records_per_unit,
        "results": [reply.to_dict() for reply in found],
    }
    rows = [["accountant", "ε lower", "ε upper", "estimate", "rigorous", "seconds", "rests on"]]
    for result in payload["results"]:
        said = result["refused"] or result["assumption"] or ABSENT
        rows.append([result["accountant"], *shown(result), f"{result['seconds']:.3f}", said])
    said = f" ({', '.join(echo['defaulted_fields'])} by default)" if "defaulted" in echo else ""
    emit(payload, as_json, f"ε at δ={exact_text(delta)} under {echo['relation']}{said}\n{table(rows)}")
