"""``control_scores.parquet``: the scores of a positive control, with the digests that bind it to one run.

Every row carries the same four facts, so that the file says by itself what it is a control of: the configuration's
digest, the audit plan's digest (and with it the commitment to the run's coins), the digest of the canary generator, and
the attack. A control of anything else says nothing about this run and is refused.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.scores import Scores
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.files import write_atomically
from dpaudit.storage.readers import read_json
from dpaudit.storage.tables import coins, identifiers, numbers, read_table

if TYPE_CHECKING:
    from dpaudit.auditing import Control


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlBinding:
    """What a control belongs to.

    Attributes
    ----------
    config_sha256 : str or None
        Digest of the run's configuration.
    plan_sha256 : str or None
        Digest of the bytes of ``audit_plan.json``.
    canaries_sha256 : str or None
        Digest of the canary generator: kind, number and parameters, without the canaries themselves.
    attack : str or None
        Name of the score.
    """

    config_sha256: str | None
    plan_sha256: str | None
    canaries_sha256: str | None
    attack: str | None

    def difference(self, other: ControlBinding) -> str:
        """Sentence on the first fact in which another binding differs; empty where all agree."""
        for field in dataclasses.fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if mine != its:
                return f"its {field.name} is {_short(its)} and this run's is {_short(mine)}"
        return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ControlFile:
    """A control as read; ``binding`` is None for a file that does not say what it belongs to."""

    control: Control
    binding: ControlBinding | None


def binding_of(plan: Mapping[str, Any], *, plan_sha256: str | None, config_sha256: Any) -> ControlBinding:
    """The binding that a control of a run must carry.

    Parameters
    ----------
    plan : mapping
        The audit plan, as in ``audit_plan.json``.
    plan_sha256, config_sha256
        Digests of the plan's bytes and of the configuration.
    """
    parameters = plan.get("attack_parameters") or {}
    return ControlBinding(
        config_sha256=config_sha256 if isinstance(config_sha256, str) else None,
        plan_sha256=plan_sha256,
        canaries_sha256=parameters.get("generator_digest"),
        attack=plan.get("attack"),
    )


def control_columns(binding: ControlBinding, *, fault: str, rows: int) -> dict[str, list[str]]:
    """The columns, constant over all rows, that bind a control and name its fault; facts that are None are left out."""
    facts = {**dataclasses.asdict(binding), "fault": fault}
    return {name: [value] * rows for name, value in facts.items() if value is not None}


def write_control(
    path: Path,
    control: Control,
    *,
    plan: Path,
    config_sha256: str | None = None,
) -> str:
    """Write a positive control with what binds it to one run, and return the file's SHA-256.

    A control is the same attack on a run of the same configuration with a fault planted in it. Its scores are
    published: train it on public records, since with the usual fault, no noise, it releases what it was trained on.

    Parameters
    ----------
    path : Path
        ``release/control_scores.parquet`` of the run that the control belongs to.
    control : Control
        Ids (none of the run's own canaries), scores, coins, the fault in words, and the run of each canary where there
        were several.
    plan : Path
        ``audit_plan.json`` of that run; the control is bound to its bytes.
    config_sha256 : str, optional
        Digest of the run's configuration, where the run's ``provenance`` states one.

    Returns
    -------
    str
        SHA-256 of the file, 64 hexadecimal digits.

    Raises
    ------
    InvalidValue
        When ``plan`` is no audit plan.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dpaudit.auditing import AuditPlan

    scored = control.scores
    coins = scored.members.astype(int).tolist()
    runs = [""] * len(scored) if control.runs is None else [str(run) for run in control.runs]
    rows = sorted(zip(scored.ids, scored.values.tolist(), coins, runs, strict=True))
    columns: dict[str, Any] = {
        "id": pa.array([row[0] for row in rows], pa.string()),
        "score": pa.array([row[1] for row in rows], pa.float64()),
        "member": pa.array([row[2] for row in rows], pa.int8()),
    }
    if control.runs is not None:
        columns["run"] = pa.array([row[3] for row in rows], pa.string())
    stated = read_json(plan)
    AuditPlan.from_dict(stated)  # raises for a file that is no plan
    binding = binding_of(stated, plan_sha256=sha256_file(plan), config_sha256=config_sha256)
    for name, cells in control_columns(binding, fault=control.fault, rows=len(rows)).items():
        columns[name] = pa.array(cells, pa.string()).dictionary_encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_atomically(path, buffer.getvalue())
    return sha256_file(path)


def read_control_file(path: Path) -> ControlFile:
    """Read a control within the limits of the safe readers.

    Raises
    ------
    InvalidEvidence
        When the file cannot be read, or names two runs, faults or attacks.
    """
    from dpaudit.auditing import Control

    facts = [field.name for field in dataclasses.fields(ControlBinding)]
    table = read_table(path, columns=("id", "score", "member"), optional=(*facts, "fault", "run"))
    ids = identifiers(table["id"], name=path.name)
    fault = _constant(table, "fault", path.name)
    control = Control(
        scores=Scores(
            ids,
            numbers(table["score"], name="control score", ids=ids),
            coins(table["member"], name="control member", ids=ids),
        ),
        fault="unspecified" if fault is None else fault,
        runs=[str(run) for run in table["run"]] if "run" in table else None,
    )
    bound = {name: _constant(table, name, path.name) for name in facts}
    unbound = bound["plan_sha256"] is None
    return ControlFile(control=control, binding=None if unbound else ControlBinding(**bound))


def foreign_control(found: ControlFile, expected: ControlBinding, audited: Sequence[str]) -> str:
    """Why a control says nothing about a run, in words; empty where it belongs to it.

    Parameters
    ----------
    found : ControlFile
    expected : ControlBinding
        Of the run.
    audited : sequence of str
        Ids of the run's own canaries, which no control may share.
    """
    if found.binding is None:
        return "it names neither the configuration, the audit plan nor the canaries of this run"
    if differs := expected.difference(found.binding):
        return differs
    if shared := set(audited) & set(found.control.scores.ids):
        return f"it holds {len(shared)} of the audited canaries themselves"
    return ""


def _constant(table: Mapping[str, Sequence[Any]], name: str, file: str) -> str | None:
    values = {None if cell is None else str(cell) for cell in table.get(name, ())}
    if len(values) > 1:
        raise InvalidEvidence(f"{file} names {len(values)} values of {name}; a control belongs to one run.")
    return next(iter(values), None)


def _short(value: str | None) -> str:
    return "not stated" if value is None else f"{value[:12]}…" if len(value) > 24 else repr(value)
