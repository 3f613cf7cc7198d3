"""A commented configuration for somebody's data and model: what was read, what was assumed, what to decide."""

from __future__ import annotations

import dataclasses
import math
import os
import textwrap
import tomllib
from pathlib import Path
from typing import Any, Literal

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.text import printable
from dpaudit.runs.config import parse_config
from dpaudit.runs.looked_at import LookedAtData, LookedAtModel, look_at_data, look_at_model
from dpaudit.runs.reference import sections, toml
from dpaudit.storage.files import write_atomically

Task = Literal["causal-lm", "sequence-classification"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A configuration that :func:`dpaudit.init` wrote.

    Attributes
    ----------
    path : Path
        The TOML file.
    text : str
        Its content.
    assumed : tuple of str
        One sentence for each choice that was not asked for; each stands as a comment in the file, too.
    """

    path: Path
    text: str
    assumed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.init/1``."""
        return {
            "schema": "dpaudit.init/1",
            "path": str(self.path),
            "assumed": list(self.assumed),
            "config": tomllib.loads(self.text),
        }

    def __str__(self) -> str:
        lines = [f"wrote {self.path}; it assumes, and marks with ASSUMED:", *(f"- {line}" for line in self.assumed)]
        lines.append(f"next: dpaudit certify {self.path} --out runs/{self.path.stem} --examine")
        return "\n".join(map(printable, lines))


def init(
    data: str | Path,
    model: str | Path,
    *,
    unit: str,
    public_size: int,
    out: str | Path | None = None,
    epsilon: float | None = None,
    delta: float | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    task: Task | None = None,
) -> Proposal:
    """Write a commented configuration for a data file and a model folder.

    Names of columns and the model's configuration are read, and from the records nothing: what ends in the file may be
    published.

    Parameters
    ----------
    data : path
        Private records, in a form that a configuration's ``data.path`` may have.
    model : path
        Folder of a Hugging Face model.
    unit : str
        Unit of privacy in words; one record is one unit in the file.
    public_size : int
        Number of private records as it may be published.
    out : path, optional
        File to write; by default the data file's name with ``.toml``, in the current folder.
    epsilon, delta : float, optional
        The claim; assumed, and marked so, when left out.
    text_column, label_column : str, optional
        Columns of a table, where their names do not tell.
    task : str, optional
        ``causal-lm`` or ``sequence-classification``; by default what columns and model allow.

    Returns
    -------
    Proposal

    Raises
    ------
    InvalidValue
        When data or model cannot be used, or the file exists.

    Examples
    --------
    ::

        print(dpaudit.init("mails.csv", "my-model", unit="mail", public_size=2000))
    """
    validate.integer_at_least(20, public_size=public_size)
    validate.label(unit=unit)
    path = Path(f"{_stem(Path(data))}.toml") if out is None else Path(out)
    if os.path.lexists(path):
        raise InvalidValue(f"{path} exists; give another --out.")
    found = look_at_data(Path(data), text_column=text_column, label_column=label_column, wants_labels=_wants(task))
    folder = look_at_model(Path(model), task=task, has_labels=found.label_column is not None)
    choice = _Choice(public_size=public_size)
    choice.claim(unit, epsilon, delta, owner=found.owner_column)
    choice.model(folder, path)
    choice.data(found, folder, path)
    choice.mechanism(folder)
    choice.audit(folder)
    text = _write(choice, f"{found.path.name} and {folder.path.name}")
    parse_config(tomllib.loads(text), str(path))  # raises here where the file that is proposed could not be read later
    write_atomically(path, text.encode("utf-8"))
    return Proposal(path=path, text=text, assumed=tuple(choice.assumed.values()))


def _wants(task: Task | None) -> bool | None:
    return None if task is None else task == "sequence-classification"


def _stem(data: Path) -> str:
    return data.name.split(".", 1)[0] or "run"


class _Choice:
    """The values of a configuration as they are found, and why each that was assumed was."""

    def __init__(self, *, public_size: int) -> None:
        self.size = public_size
        self.values: dict[str, Any] = {}
        self.assumed: dict[str, str] = {}
        self.left_open: dict[str, str] = {}

    def take(self, key: str, value: Any, why: str | None = None) -> None:
        """Set a key; ``why`` marks it as assumed."""
        self.values[key] = value
        if why is not None:
            self.assumed[key] = f"{key} = {toml(value)}: {why}"

    def claim(self, unit: str, epsilon: float | None, delta: float | None, *, owner: str | None) -> None:
        """What is claimed."""
        likely = 10.0 ** -math.ceil(math.log10(10 * self.size))
        why = "a usual claim for text; smaller protects more and learns less"
        self.take("claim.epsilon", 3.0 if epsilon is None else epsilon, None if epsilon is not None else why)
        why = f"a tenth of 1/{self.size} or less; a delta of 1/N would allow publishing one record in full"
        self.take("claim.delta", likely if delta is None else delta, None if delta is not None else why)
        why = "it hides whether a record took part; replace_one also hides what it said, for about twice the epsilon"
        self.take("claim.relation", "add_or_remove_one", why)
        self.take("claim.unit", unit)
        why = f"each record is one {unit}; where one {unit} has several records, the claim does not cover it"
        if owner is not None:
            why += f". Nor does it cover a whole {owner!r} (a column of yours) of several records"
        self.take("claim.max_records_per_unit", 1, why)

    def model(self, model: LookedAtModel, out: Path) -> None:
        """Which model, and what of it is trained."""
        self.take("model.path", _relative(model.path, out))
        if model.gguf_file is not None:
            self.take("model.gguf_file", model.gguf_file)
        self.take("model.task", model.task)
        if model.is_large:
            self.take("model.trainable", "lora", "the model is large; low-rank adapters take less memory (needs peft)")

    def data(self, data: LookedAtData, model: LookedAtModel, out: Path) -> None:
        """Where the records are, and the share that is declared public."""
        self.take("data.path", _relative(data.path, out))
        if data.owner_column is not None:
            owner = toml(data.owner_column)
            self.left_open["data.path"] = (
                f"# unit_column = {owner}  # where the claim is for one of these, not one record"
            )
        if data.text_column not in (None, "text"):
            self.take("data.text_column", data.text_column)
        if model.task == "sequence-classification" and data.label_column not in (None, "label"):
            self.take("data.label_column", data.label_column)
        length = min(64, model.longest or 64)
        self.take("data.max_length", length, f"longer records are cut to {length} tokens; raise it if yours are longer")
        share = 0.2 if model.task == "sequence-classification" else 0.1
        why = f"{share:.0%} of the records are DECLARED PUBLIC, to measure on; give data.heldout a public file instead"
        self.take("data.heldout_fraction", share, why)
        self.left_open["data.heldout_fraction"] = '# heldout = "public.csv"'
        if model.task == "sequence-classification":
            labels = '# labels = ["first", "second"]  # all classes, where some are rare'
            self.left_open["data.heldout_fraction"] += f"\n{labels}"

    def mechanism(self, model: LookedAtModel) -> None:
        """Batch, clipping, steps and optimizer."""
        self.take("privacy.method", "dp-adam")
        self.take("privacy.sampling", "poisson")
        self.take("privacy.public_size", self.size)
        batch = max(8, min(256, self.size // 10))
        self.take("privacy.expected_batch_size", batch, "a tenth of the records, at most 256; larger learns better")
        norm = 0.1 if model.task == "sequence-classification" else 0.5
        self.take("privacy.clipping_norm", norm, "changes learning, never epsilon")
        self.take("privacy.steps", 100, "about ten passes over small data; the noise is calibrated to it")
        rate = 1e-3 if not model.is_large else 5e-4
        why = "choose it on public data: trying rates on private records costs epsilon"
        self.take("optimizer.learning_rate", rate, why)
        self.take("optimizer.physical_batch_size", 32)

    def audit(self, model: LookedAtModel) -> None:
        """Canaries and attack."""
        classifies = model.task == "sequence-classification"
        if classifies:
            count = max(2, min(500, self.size // 20))
            why = "public texts with a wrong label; there are at most as many as public records"
            self.take("canaries.kind", "label-flip")
        else:
            count = max(10, min(1000, self.size // 2))
            why = "half as many as records, at most 1000; too few for a claim is said before training"
            owned = model.reserved_tokens >= count and not model.is_large
            self.take("canaries.kind", "new-token" if owned else "random-token")
        self.take("canaries.count", count, why)
        if not classifies:
            self.take("canaries.length", min(12, self.values["data.max_length"]))
        self.take("audit.attack", "loss-drop" if classifies else "loss-residual")
        self.take("audit.alpha", 0.05)


def _relative(path: Path, out: Path) -> str:
    """The path as the configuration in ``out`` has to name it."""
    base, target = out.resolve().parent, path.resolve()
    return os.path.relpath(target, base) if base.parent in (target, *target.parents) else str(target)


def _write(choice: _Choice, of: str) -> str:
    """The TOML text: every chosen key below its meaning, what was assumed marked."""
    head = f"A configuration for {printable(of)}, proposed by dpaudit init."
    parts = [_comment(f"{head} Read what is marked ASSUMED; these are your decisions.")]
    for section in sections():
        keys = [key for key in section.keys if f"{section.name}.{key.name}" in choice.values]
        if not keys:
            continue
        parts.append(f"\n[{section.name}]")
        for key in keys:
            name = f"{section.name}.{key.name}"
            parts.append(_comment(key.meaning.replace("``", "")))
            if name in choice.assumed:
                parts.append(_comment(f"ASSUMED: {choice.assumed[name].split(': ', 1)[1]}."))
            parts.append(f"{key.name} = {toml(choice.values[name])}")
            if name in choice.left_open:
                parts.append(choice.left_open[name])
    return "\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
