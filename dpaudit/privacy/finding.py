"""A finding: one thing that an audit, an examination or a check found, and what it says about the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.verdict import Verdict

NOTE = "note"
"""The status that asks for nothing."""

STATUSES: tuple[str, ...] = (*Verdict, NOTE)
"""What a finding may ask for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FindingFields:
    """What every finding states, of an audit or an examination; :class:`Finding` says what each field means."""

    name: str
    status: str
    claim: str
    text: str
    deterministic: bool = False
    p_value: float | None = None
    power: float | None = None
    excludes: str = ""
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        values["detail"] = dict(self.detail)
        return values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding(FindingFields):
    """One thing an audit found, with what it says about the verdict.

    Attributes
    ----------
    name : str
        Short machine name, such as ``one_run_bound`` or ``noise_scale``.
    status : str
        ``violated``, ``accounting_mismatch``, ``invalid_audit``, ``inconclusive`` or ``note``.
    claim : str
        The claim it concerns: ``(epsilon, delta)``, ``group (epsilon, delta)``, ``ledger``, ``declared mechanism``,
        ``step function`` or ``audit``.
    text : str
        One paragraph of plain words: what it means, and what it does not.
    deterministic : bool
        True for a witness that needs no statistics.
    p_value : float or None
        For statistical findings.
    power : float or None
        Probability with which this test would have caught the fault named in ``excludes``; lets white-box tests supply
        the power that a black-box attack lacks.
    excludes : str
        The fault sizes that a clean result excludes.
    detail : mapping
        Further plain JSON values.

    Raises
    ------
    InvalidValue
        If ``status`` is unknown.
    """

    def __post_init__(self) -> None:
        validate.one_of(STATUSES, status=self.status)


@runtime_checkable
class Findings(Protocol):
    """A result that holds findings."""

    @property
    def findings(self) -> Sequence[Any]: ...


@runtime_checkable
class Examined(Findings, Protocol):
    """The result of an examination: findings, the tests that ran, what could not be tested, and the level α."""

    @property
    def tests(self) -> Sequence[Any]: ...
    @property
    def untested(self) -> Sequence[str]: ...
    @property
    def alpha(self) -> float: ...
    def to_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class PublicFinding(Protocol):
    """A finding of an examination, whose public form leaves out what its witness tells of records."""

    def public(self) -> dict[str, Any]: ...


@runtime_checkable
class PlainFinding(Protocol):
    """A finding that gives itself as a plain JSON value, as :class:`Finding` does."""

    def to_dict(self) -> dict[str, Any]: ...


def public_findings(given: Any) -> list[dict[str, Any]]:
    """Findings as a certificate takes them, from whatever an examination, an audit or a file gave.

    Parameters
    ----------
    given : object or sequence
        The result of an examination (anything with ``findings``), or findings: see :class:`PublicFinding` and
        :class:`PlainFinding`, or mappings with name, status and text.

    Raises
    ------
    InvalidEvidence
        When something is no finding, or has no known status.
    """
    rows = given.findings if isinstance(given, Findings) else given
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise InvalidEvidence(
            f"findings={given!r:.80} must be the result of an examination, or a list of findings; give"
            " examine(adapter, plan), or mappings with name, status and text."
        )
    found = []
    for row in rows:
        value = (
            row.public() if isinstance(row, PublicFinding) else row.to_dict() if isinstance(row, PlainFinding) else row
        )
        finding_status(value)  # raises for what is no finding
        found.append(dict(value))
    return found


def public_examination(result: Examined) -> dict[str, Any]:
    """What a certificate says of an examination: findings without witnesses, what ran, and what was left out.

    Parameters
    ----------
    result : Examined
        What an examination returned.
    """
    whole = result.to_dict()
    return {
        "schema": "dpaudit.examination/1",
        "findings": public_findings(result),
        "tests": [{"name": test.name, "excludes": test.excludes} for test in result.tests],
        "untested": list(result.untested),
        **{name: whole[name] for name in ("excluded", "in_full", "partial")},
        "false_alarm_probability": result.alpha,
    }


def finding_status(row: Any) -> str:
    """Status of a recorded finding; anything that is not a known status is refused, never ignored.

    Parameters
    ----------
    row : mapping
        A finding as it stands in a certificate. Certificates written before the key ``status`` was settled carry it
        as ``verdict``; where both stand they must agree.

    Raises
    ------
    InvalidEvidence
        When the finding has no name or no status, or a status that no verdict follows from.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise InvalidEvidence("a finding has no name; every finding needs name, status and text.")
    name = row["name"][:60]
    given = [row[key] for key in ("status", "verdict") if row.get(key) is not None]
    if not given:
        raise InvalidEvidence(f"finding {name!r} has no status; give one of {', '.join(STATUSES)}.")
    for status in given:
        if not isinstance(status, str) or status not in STATUSES:
            known = ", ".join(STATUSES)
            raise InvalidEvidence(f"finding {name!r} has status={status!r:.60}; it must be one of {known}.")
    if len(set(given)) > 1:
        raise InvalidEvidence(f"finding {name!r} says {given[0]!r} and {given[1]!r}; a finding has one status.")
    return str(given[0])
