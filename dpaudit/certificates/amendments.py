"""Amendments: a certificate is never rewritten; what is learnt later is appended, chained by digest.

``amendments/0001.json``, ``0002.json`` … lie beside the certificate. Each is an in-toto statement about the
certificate's exact bytes and carries the digest of the statement before it, so that none can be changed, reordered or
dropped from the middle. Dropping the last one can be seen only where it was signed or published elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import STATEMENT_TYPE, Predicate
from dpaudit.certificates.verify.report import DIFFERENT, EQUAL, Step
from dpaudit.privacy import validate
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, InvalidValue
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from dpaudit.storage.readers import parse_json, read_bytes

AMENDMENT_TYPE = "https://dpaudit.dev/amendment/v1"
AMENDMENT_SCHEMA = "dpaudit.amendment/1"
KINDS = ("note", "correction", "withdrawal")
MAX_AMENDMENTS = 1000
MAX_BYTES = 2**20
_KEYS = {"schema", "number", "kind", "text", "changes", "author", "previous"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """One appended statement.

    Attributes
    ----------
    number : int
        1 for the first.
    kind : str
        "note", "correction" (what a reader should take instead) or "withdrawal" (the certificate no longer stands).
    text : str
        Reason, in words.
    changes : mapping
        Corrected fields by dotted path; the certificate itself stays as it was.
    author : str
    """

    number: int
    kind: str
    text: str
    changes: Mapping[str, Any]
    author: str


def amendment_bytes(
    certificate: bytes,
    earlier: list[bytes],
    *,
    kind: str,
    text: str,
    author: str,
    changes: Mapping[str, Any] | None = None,
) -> bytes:
    """Canonical bytes of the next amendment.

    Parameters
    ----------
    certificate : bytes
        Exact bytes of ``certificate.json``.
    earlier : list of bytes
        Exact bytes of the amendments so far, in order.
    kind, text, author, changes
        As in :class:`Amendment`.
    """
    validate.one_of(KINDS, kind=kind)
    if not text.strip() or not author.strip():
        raise InvalidValue("text and author of an amendment are empty; say what was learnt, and who says so.")
    if len(earlier) >= MAX_AMENDMENTS:
        raise InvalidValue(
            f"there are {len(earlier)} amendments and the limit is {MAX_AMENDMENTS}; issue a new certificate."
        )
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "certificate.json", "digest": {"sha256": sha256_bytes(certificate)}}],
        "predicateType": AMENDMENT_TYPE,
        "predicate": {
            "schema": AMENDMENT_SCHEMA,
            "number": len(earlier) + 1,
            "kind": kind,
            "text": text,
            "changes": plain_json(dict(changes or {})),
            "author": author,
            "previous": sha256_bytes(earlier[-1] if earlier else certificate),
        },
    }
    return canonical_json(statement) + b"\n"


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Corrected fields from texts PATH=VALUE, each value read as JSON or, where it is none, taken as text.

    >>> parse_changes(["claim.unit=page", "claim.max_records_per_unit=2"])
    {'claim.unit': 'page', 'claim.max_records_per_unit': 2}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise InvalidValue(f"--change {pair!r} is not PATH=VALUE, as in claim.unit=page.")
        try:
            found[path] = parse_json(text.encode())
        except DpauditError:
            found[path] = text
    return found


def amend(certificate: Path, *, kind: str, text: str, author: str, changes: Mapping[str, Any] | None = None) -> Path:
    """Append an amendment beside a certificate and return its path; nothing that exists is touched.

    Parameters
    ----------
    certificate : Path
        ``certificate.json``, which stays as it is.
    kind : str
        "note", "correction" or "withdrawal".
    text : str
        What was learnt, in words.
    author : str
        Who says so.
    changes : mapping, optional
        Dotted path of each corrected field to its new value; read for corrections alone.

    Returns
    -------
    Path
        ``amendments/NNNN.json``, chained to the certificate and to the amendment before it.

    Raises
    ------
    InvalidValue
        If the kind is unknown.
    InvalidEvidence
        If the certificate or an earlier amendment cannot be read.
    """
    folder = certificate.parent / "amendments"
    earlier = _files(folder)
    data = amendment_bytes(
        read_bytes(certificate),
        [read_bytes(path, limit=MAX_BYTES) for path in earlier],
        kind=kind,
        text=text,
        author=author,
        changes=changes,
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(earlier) + 1:04d}.json"
    with path.open("xb") as file:  # mode "x" refuses a file that exists, so that no amendment is overwritten
        file.write(data)
    return path


def read_amendments(certificate: Path, data: bytes) -> list[Amendment]:
    """Read and check the chain of amendments beside a certificate with the exact bytes ``data``.

    Raises
    ------
    InvalidEvidence
        When one is missing, reordered, changed, or about another certificate.
    """
    previous, found = sha256_bytes(data), []
    subject = [{"name": "certificate.json", "digest": {"sha256": sha256_bytes(data)}}]
    for number, path in enumerate(_files(certificate.parent / "amendments"), start=1):
        content = read_bytes(path, limit=MAX_BYTES)
        value = parse_json(content, name=path.name)
        stated = value.get("predicate") if isinstance(value, dict) else None
        if not isinstance(stated, dict) or set(stated) != _KEYS or stated["schema"] != AMENDMENT_SCHEMA:
            raise InvalidEvidence(f"amendment {path.name} does not follow {AMENDMENT_SCHEMA}.")
        if canonical_json(value) + b"\n" != content or value.get("predicateType") != AMENDMENT_TYPE:
            raise InvalidEvidence(f"amendment {path.name} is not in canonical form: it was edited.")
        if value.get("subject") != subject:
            raise InvalidEvidence(f"amendment {path.name} is about another certificate.")
        if stated["number"] != number or path.name != f"{number:04d}.json" or stated["previous"] != previous:
            raise InvalidEvidence(f"amendment {path.name} does not continue the one before it: the chain is broken.")
        if stated["kind"] not in KINDS or not isinstance(stated["changes"], dict):
            raise InvalidEvidence(f"amendment {path.name} has an unknown kind or changes.")
        found.append(
            Amendment(
                number=number,
                kind=stated["kind"],
                text=str(stated["text"]),
                changes=stated["changes"],
                author=str(stated["author"]),
            )
        )
        previous = sha256_bytes(content)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Corrected:
    """A certificate's predicate as its corrections leave it.

    Attributes
    ----------
    plain : dict
        As plain JSON, with every correction applied in order; it may no longer follow the schema.
    changed : tuple of str
        Dotted paths that were changed.
    unknown : tuple of str
        Sentences on changes of fields that the certificate does not have.
    """

    plain: dict[str, Any]
    changed: tuple[str, ...]
    unknown: tuple[str, ...]


def corrected(body: Predicate, amendments: Sequence[Amendment]) -> Corrected:
    """Apply the corrections among amendments to a copy of a predicate.

    A policy must be met by the certificate as issued and as corrected, so that a correction can only make it stricter.
    """
    copied = body.to_plain()
    changed: list[str] = []
    unknown: list[str] = []
    for amendment in amendments:
        for path, value in amendment.changes.items() if amendment.kind == "correction" else ():
            if _apply(copied, path, value):
                changed.append(path)
            else:
                unknown.append(f"amendment {amendment.number} corrects {path[:80]!r}, which the certificate lacks")
    return Corrected(copied, tuple(changed), tuple(unknown))


def _apply(body: dict[str, Any], path: str, value: Any) -> bool:
    holder: Any = body
    *parents, last = path.removeprefix("predicate.").split(".")
    for part in parents:
        holder = holder.get(part) if isinstance(holder, dict) else _item(holder, part)
    if isinstance(holder, dict) and last in holder:
        holder[last] = copy.deepcopy(value)
        return True
    if isinstance(holder, list) and last.isdecimal() and int(last) < len(holder):
        holder[int(last)] = copy.deepcopy(value)
        return True
    return False


def _item(holder: Any, part: str) -> Any:
    inside = isinstance(holder, list) and part.isdecimal() and int(part) < len(holder)
    return holder[int(part)] if inside else None


def amendment_steps(certificate: Path, data: bytes, trusted: tuple[str, ...]) -> list[Step]:
    """Check the chain; with trusted keys each amendment needs a signature. A withdrawal refuses the certificate."""
    from dpaudit.certificates.sign import signature_steps

    try:
        found = read_amendments(certificate, data)
    except InvalidEvidence as error:
        return [Step("amendments", DIFFERENT, str(error))]
    steps = []
    if trusted:
        for path in _files(certificate.parent / "amendments"):
            signed, _ = signature_steps(path, read_bytes(path, limit=MAX_BYTES), trusted)
            steps += [Step(f"amendments.{path.stem}.signature", s.outcome, s.detail) for s in signed]
    withdrawn = [a for a in found if a.kind == "withdrawal"]
    if withdrawn:
        reason = f"withdrawn by amendment {withdrawn[-1].number}: {withdrawn[-1].text[:200]}"
        return [*steps, Step("amendments", DIFFERENT, reason)]
    if not found:
        return steps
    return [*steps, Step("amendments", EQUAL, f"{len(found)} in an unbroken chain; the last: {found[-1].text[:120]}")]


def _files(folder: Path) -> list[Path]:
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise InvalidEvidence(f"{folder.name} is not a folder of its own; put the original folder there.")
    paths = sorted(p for p in folder.iterdir() if p.suffix == ".json" and not p.name.endswith(".dsse.json"))
    if links := [path.name for path in paths if path.is_symlink()]:
        raise InvalidEvidence(f"amendment {links[0]} is a link; put the original file there.")
    if len(paths) > MAX_AMENDMENTS:
        raise InvalidEvidence(f"{folder.name} holds {len(paths)} amendments and the limit is {MAX_AMENDMENTS}.")
    return paths
