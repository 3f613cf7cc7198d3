"""Score files and manifests for the audit commands: read, join by id, and refuse what cannot be joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.canaries import Canaries
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import Scores
from dpaudit.privacy.validate import name_some
from dpaudit.storage.readers import read_json
from dpaudit.storage.tables import coins as read_flips
from dpaudit.storage.tables import format_of, identifiers, numbers, read_table


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScoreFile:
    """Columns of a score file, in its own order; ``member`` is None when the coins come from a manifest."""

    ids: list[str]
    scores: NDArray[np.float64]
    member: NDArray[np.bool_] | None
    copies: int | None
    """What the column ``copies`` says; None without one."""
    runs: list[str] | None
    pairs: list[str] | None
    attack: str | None

    def scored(self, coins: NDArray[np.bool_] | None = None) -> Scores:
        """The scores with their coins: those of the column ``member``, or others in the file's order."""
        given = self.member if coins is None else coins
        if given is None:
            raise InvalidEvidence("the score file has no column member; give its coins in a manifest.")
        return Scores(self.ids, self.scores, given)


def read_scores(path: Path, *, attack: str | None = None, needs_member: bool = True) -> ScoreFile:
    """Read ``id, member, score[, run][, copies][, pair][, attack]`` from CSV, JSON lines or Parquet."""
    required = ("id", "member", "score") if needs_member else ("id", "score")
    optional = ("run", "copies", "pair", "attack") if needs_member else ("member", "run", "copies", "pair", "attack")
    table = read_table(path, columns=required, optional=optional)
    table = _one_attack(table, path, attack)
    if not table["id"]:
        raise InvalidEvidence(f"{path.name} holds no rows; give one row for each canary.")
    ids = identifiers(table["id"], name=path.name)
    member = read_flips(table["member"], name="member", ids=ids) if "member" in table else None
    copies = None
    if "copies" in table:
        counts = np.unique(numbers(table["copies"], name="copies", ids=ids))
        if counts.size != 1 or not 1 <= counts[0] < 2**31 or counts[0] != int(counts[0]):
            shown = ", ".join(f"{c:g}" for c in counts[:5])
            raise InvalidValue(
                f"column copies holds {shown}; all canaries of one audit need the same whole number >= 1, so split the"
                " file by copies."
            )
        copies = int(counts[0])
    return ScoreFile(
        ids=ids,
        scores=numbers(table["score"], name="score", ids=ids),
        member=member,
        copies=copies,
        runs=identifiers(table["run"], name=path.name, column="run") if "run" in table else None,
        pairs=identifiers(table["pair"], name=path.name, column="pair") if "pair" in table else None,
        attack=str(table["attack"][0]) if "attack" in table else None,
    )


def scores_of(path: Path, ids: Sequence[str], *, attack: str) -> NDArray[np.float64]:
    """Scores of a run's canaries by its pre-registered attack, in the order of their ids.

    Parameters
    ----------
    path : Path
        Table ``id, score[, attack]``.
    ids : sequence of str
        The canaries.
    attack : str
        What the audit plan names; "unspecified" takes every row.

    Raises
    ------
    InvalidEvidence
        When the file does not hold exactly one score of that attack for each canary.
    """
    table = read_table(path, columns=("id", "score"), optional=("attack",))
    rows = list(range(len(table["id"])))
    if "attack" in table and attack != "unspecified":
        rows = [i for i in rows if table["attack"][i] == attack]
        if not rows:
            held = ", ".join(sorted({str(a) for a in table["attack"]}))[:100]
            raise InvalidEvidence(
                f"{path.name} holds scores of {held} and the plan pre-registered {attack!r}; restore the file."
            )
    names = [str(table["id"][i]) for i in rows]
    values = numbers([table["score"][i] for i in rows], name="score", ids=names)
    by_id = dict(zip(names, values, strict=True))
    if len(by_id) != len(names) or set(by_id) != set(ids):
        raise InvalidEvidence(
            f"{path.name} does not hold exactly one score for each of {len(ids)} canaries; score each of them once."
        )
    return np.array([by_id[i] for i in ids])


def _one_attack(table: dict[str, list[Any]], path: Path, wanted: str | None) -> dict[str, list[Any]]:
    """Rows of one attack; several without a choice are refused, since choosing afterwards is not an audit."""
    if "attack" not in table:
        return table
    names = sorted(set(identifiers(table["attack"], name=path.name, column="attack")))
    if wanted is None and len(names) > 1:
        raise InvalidValue(
            f"{path.name} holds {len(names)} attacks ({name_some(names)}); name the pre-registered one with --attack."
        )
    if wanted is not None and wanted not in names:
        raise InvalidValue(f"attack={wanted!r} is not in {path.name}; it holds {name_some(names)}.")
    if wanted is None or len(names) == 1:
        return table
    rows = [i for i, a in enumerate(table["attack"]) if str(a) == wanted]
    return {column: [cells[i] for i in rows] for column, cells in table.items()}


def read_coins(path: Path) -> Canaries:
    """Read coins from a JSON manifest, or from a table id, coin[, nonce][, copies] such as the secret canary file.

    JSON: the manifest of ``dpaudit.storage.commitment.manifest`` (``canaries``: [[id, coin], …], ``copies``), bare or
    under the key ``manifest``, with optional ``nonce`` (hexadecimal) and ``commitment`` (published beforehand).
    """
    if format_of(path) in ("parquet", "csv", "jsonl") and path.suffix.lower() != ".json":
        return _coins_of_table(path)
    value = read_json(path)
    inner = value.get("manifest", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("canaries"), list):
        raise InvalidEvidence(f"{path.name} is not a canary manifest; it needs canaries: [[id, coin], ...] and copies.")
    rows = inner["canaries"]
    if not all(isinstance(r, list) and len(r) == 2 for r in rows):
        raise InvalidEvidence(f"{path.name} has a canary that is not [id, coin]; restore the manifest.")
    published = value.get("commitment")
    copies = _whole(inner.get("copies", 1), path)
    return _coins(path, rows, copies, _nonce(value.get("nonce"), path), None if published is None else str(published))


def _coins_of_table(path: Path) -> Canaries:
    table = read_table(path, columns=("id", "coin"), optional=("nonce", "copies"), binary=("nonce",))
    ids = identifiers(table["id"], name=path.name)
    flips = read_flips(table["coin"], name="coin", ids=ids)
    copies = set(numbers(table["copies"], name="copies", ids=ids).tolist()) if table.get("copies") else {1.0}
    nonces = set(identifiers(table["nonce"], name=path.name, column="nonce")) if "nonce" in table else set()
    if len(copies) > 1 or len(nonces) > 1:
        raise InvalidEvidence(
            f"{path.name} holds {len(copies)} copy counts and {len(nonces)} nonces; it needs one each."
        )
    nonce = _nonce(nonces.pop() if nonces else None, path)
    rows = list(zip(ids, flips.astype(int).tolist(), strict=True))
    return _coins(path, rows, _whole(copies.pop(), path), nonce, None)


def _whole(copies: Any, path: Path) -> int:
    known = isinstance(copies, (int, float)) and not isinstance(copies, bool)
    if not known or not 1 <= copies < 2**31 or copies != int(copies):
        raise InvalidEvidence(
            f"{path.name} has copies={str(copies)[:40]}, which is no whole number >= 1; restore the file."
        )
    return int(copies)


def _nonce(text: Any, path: Path) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except (TypeError, ValueError):
        raise InvalidEvidence(f"{path.name} has a nonce that is not hexadecimal; restore the file.") from None


def _coins(path: Path, rows: Sequence[Any], copies: int, nonce: bytes | None, published: str | None) -> Canaries:
    ids = tuple(identifiers([row[0] for row in rows], name=path.name))
    try:
        return Canaries(ids=ids, coins=tuple(row[1] for row in rows), copies=copies, nonce=nonce, published=published)
    except (InvalidValue, TypeError) as error:
        raise InvalidEvidence(f"{path.name}: {error}") from None


def join_coins(file: ScoreFile, coins: Canaries, path: Path) -> NDArray[np.bool_]:
    """Coins in the order of the scores; unknown, missing and contradicting ids are refused by name."""
    known = coins.by_id
    if unknown := [i for i in file.ids if i not in known]:
        raise InvalidEvidence(f"id {unknown[0]!r} and {len(unknown) - 1} others are scored but not in {path.name}.")
    scored = set(file.ids)
    if missing := [i for i in known if i not in scored]:
        raise InvalidEvidence(
            f"{len(missing)} canaries of {path.name} have no score (first: {missing[0]!r}); score each; none may be"
            " lost to deduplication or truncation."
        )
    joined = np.array([known[i] for i in file.ids], dtype=np.bool_)
    if file.member is not None and (wrong := np.flatnonzero(joined != file.member)).size:
        raise InvalidEvidence(
            f"member of id {file.ids[int(wrong[0])]!r} and {wrong.size - 1} others contradicts {path.name};"
            " the scores belong to other coins."
        )
    return joined
