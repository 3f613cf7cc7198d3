"""A run folder: what is private, what may be released, and a record that is valid at every moment.

``run.json`` is written before anything else and rewritten atomically at every change of status, so that a crash
leaves a record that says the run did not finish.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.storage import readers
from dpaudit.storage.commitment import canonical_json, sha256_bytes, sha256_file
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.lock import FileLock

RUN_SCHEMA = "dpaudit.run/1"
STATUSES = ("planned", "training", "trained", "attacked", "certified", "failed")
LIBRARIES = ("dpaudit", "torch", "transformers", "numpy", "scipy", "dp-accounting", "safetensors")


@dataclasses.dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run folder; holds nothing else."""

    root: Path

    @property
    def record(self) -> Path:
        """run.json."""
        return self.root / "run.json"

    @property
    def private(self) -> Path:
        """Folder of what must not leave: coins, losses, realised batch sizes."""
        return self.root / "private"

    @property
    def release(self) -> Path:
        """Folder of what may be published."""
        return self.root / "release"

    @property
    def canaries(self) -> Path:
        """Secret canaries with coins and nonce."""
        return self.private / "canaries.secret.parquet"

    @property
    def beacons(self) -> Path:
        """Secret beacons with coins and nonce."""
        return self.private / "beacons.secret.parquet"

    @property
    def beacon_scores(self) -> Path:
        """Scores of the beacons, which the certificate will hold beside their coins."""
        return self.private / "beacon_scores.parquet"

    @property
    def checkpoint(self) -> Path:
        """Last checkpoint, for resuming."""
        return self.private / "checkpoint.pt"

    @property
    def steps_log(self) -> Path:
        """Realised batch and mean loss of every step."""
        return self.private / "steps.jsonl"

    @property
    def data_key(self) -> Path:
        """Key of the commitment to the private data."""
        return self.private / "data.key"

    @property
    def data_commitment(self) -> Path:
        """Commitment to the private data, and their number."""
        return self.private / "data_commitment.json"

    @property
    def holdout(self) -> Path:
        """Real records put to a coin, with the coins."""
        return self.private / "holdout.secret.parquet"

    @property
    def membership(self) -> Path:
        """What an audit of real records found."""
        return self.private / "membership.json"

    @property
    def in_run_secret(self) -> Path:
        """Secret coordinates and coins of the in-run canaries, with the nonce of their commitment."""
        return self.private / "in_run.secret.json"

    @property
    def prepared(self) -> tuple[Path, ...]:
        """What is written before the first private step and beside the ledger."""
        return (
            *(self.canaries, self.holdout, self.data_key, self.data_commitment, self.audit_plan, self.zeroth_order_log),
            *(self.control_scores, self.examination, self.private / "examination.json"),
            *(self.in_run_secret, self.beacons),
        )

    @property
    def zeroth_order_log(self) -> Path:
        """Released numbers of a zeroth-order run."""
        return self.release / "zo_log.jsonl"

    @property
    def audit_plan(self) -> Path:
        """Pre-registered audit."""
        return self.release / "audit_plan.json"

    @property
    def ledger(self) -> Path:
        """Sealed ledger; ``ledger.open`` stands beside it while a segment is open."""
        return self.release / "ledger.jsonl"

    @property
    def model(self) -> Path:
        """Fine-tuned model."""
        return self.release / "model"

    @property
    def scores(self) -> Path:
        """Canary scores."""
        return self.release / "scores.parquet"

    @property
    def in_run(self) -> Path:
        """What the in-run audit saw: scores, coordinates, the releases' energy and a simulated control; no coins."""
        return self.release / "in_run.json"

    @property
    def control_scores(self) -> Path:
        """Scores and coins of a positive control."""
        return self.release / "control_scores.parquet"

    @property
    def examination(self) -> Path:
        """Findings of a white-box examination, without witnesses."""
        return self.release / "examination.json"

    @property
    def certificate(self) -> Path:
        """The certificate."""
        return self.release / "certificate.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.release / "report.html"

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Make the folder tree; an existing non-empty folder that is no run folder is refused."""
        folder = cls(Path(root))
        if folder.root.exists() and not folder.root.is_dir():
            raise InvalidValue(f"run folder {root} is a file; give a folder that does not exist yet.")
        if folder.root.exists() and any(folder.root.iterdir()) and not folder.record.exists():
            raise InvalidValue(f"folder {root} is not empty and holds no run.json; give a new folder with --out.")
        folder.private.mkdir(parents=True, exist_ok=True)
        folder.private.chmod(0o700)
        folder.release.mkdir(exist_ok=True)
        return folder

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Open an existing run folder, or raise :class:`InvalidEvidence`."""
        folder = cls(Path(root))
        if not folder.record.is_file():
            raise InvalidEvidence(f"{root} is not a run folder: it has no run.json; give the --out of a dpaudit run.")
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for one process at a time."""
        lock = FileLock(self.private / ".lock", what=f"run folder {self.root}")
        try:
            yield
        finally:
            self.keep_private()
            lock.release()

    def keep_private(self) -> None:
        """Take the group's and others' permissions from every file in ``private/``, also from those of a library."""
        for path in self.private.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o077:
                path.chmod(PRIVATE_MODE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What run.json says: what was asked, by what, and how far it came."""

    status: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    created: str
    updated: str
    error: str | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config_sha256(self) -> str:
        """Digest of the resolved configuration."""
        return sha256_bytes(canonical_json(dict(self.config)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "schema": RUN_SCHEMA,
            "status": self.status,
            "created": self.created,
            "updated": self.updated,
            "error": self.error,
            "config_sha256": self.config_sha256,
            "config": dict(self.config),
            "provenance": dict(self.provenance),
            "facts": dict(self.facts),
        }


def new_record(config: Mapping[str, Any]) -> RunRecord:
    """A record of a run that is about to begin."""
    now = _now()
    return RunRecord(status="planned", config=config, provenance=provenance(), created=now, updated=now)


def update_record(folder: RunFolder, record: RunRecord, **changes: Any) -> RunRecord:
    """Write a changed record atomically and return it. ``facts`` are merged."""
    facts = {**record.facts, **changes.pop("facts", {})}
    record = dataclasses.replace(record, updated=_now(), facts=facts, **changes)
    write_json(folder.record, record.to_dict())
    return record


def read_record(folder: RunFolder) -> RunRecord:
    """Read run.json.

    Raises
    ------
    InvalidEvidence
        When it is not JSON, not a run record, or its configuration was changed.
    """
    value = read_json(folder.record)
    if value.get("schema") != RUN_SCHEMA or value.get("status") not in STATUSES:
        schema = str(value.get("schema"))[:60]
        raise InvalidEvidence(
            f"{folder.record} has schema {schema!r} or an unknown status; dpaudit reads {RUN_SCHEMA}."
        )
    for key, kinds in _KEYS.items():
        if key not in value or not isinstance(value[key], kinds):
            raise InvalidEvidence(f"{folder.record} is not a run record: its {key!r} is missing or wrong.")
    for key, item in value["facts"].items():
        if key in _FACTS and not isinstance(item, _FACTS[key]):
            raise InvalidEvidence(f"{folder.record} is not a run record: its fact {key!r} has another type.")
    record = RunRecord(status=value["status"], **{key: value[key] for key in _KEYS})
    if record.config_sha256 != value.get("config_sha256"):
        raise InvalidEvidence(f"{folder.record} was changed: its configuration does not match config_sha256.")
    return record


_KEYS: dict[str, Any] = {
    "config": dict,
    "provenance": dict,
    "created": str,
    "updated": str,
    "error": (str, type(None)),
    "facts": dict,
}
_FACTS: dict[str, Any] = {
    "base": str,
    "planned": list,
    "training_status": str,
    "steps_counted": int,
    "steps_lost": int,
    "heldout_before": (int, float, type(None)),
    "heldout_after": (int, float, type(None)),
}
"""Types of the facts that other parts of dpaudit read."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object within the limits of the strict readers; :class:`InvalidEvidence` when it is not one."""
    if not path.exists():
        raise InvalidEvidence(f"{path} does not exist; give a path of a dpaudit run.")
    value = readers.read_json(path)
    if not isinstance(value, dict):
        raise InvalidEvidence(f"{path} holds no JSON object; it is not a dpaudit file.")
    return value


def write_json(path: Path, value: Mapping[str, Any], *, mode: int | None = None) -> str:
    """Write canonical JSON atomically; returns the SHA-256 of the file's bytes."""
    content = canonical_json(dict(value)) + b"\n"
    write_atomically(path, content, mode=mode)
    return sha256_bytes(content)


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by relative path."""
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def provenance() -> dict[str, Any]:
    """Versions, commit and dirty flag of what is running; no user or host names."""
    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu_count": os.cpu_count(),
        "versions": versions,
        **_git(),
    }


def _git() -> dict[str, Any]:
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        command = ["git", "-C", str(here)]
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*command, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
