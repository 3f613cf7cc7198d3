"""The certificate as a value, and its file format, version 1: the published JSON schema is generated from here.

A field's meaning never changes. A new version is a new predicate type with its own models beside these, and a reader
for version 1 stays for ever. ``dpaudit/schemas/certificate-1.json`` is the output of :func:`json_schema`; a test
compares the two.

Sections whose keys depend on the run (plan, result, mechanism, stages, provenance, examination, exposure) are plain
JSON objects. Every other field is an attribute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, WrapValidator

from dpaudit.certificates.plain import plain_json
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.finding import finding_status
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.verdict import Verdict
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from dpaudit.storage.readers import parse_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://dpaudit.dev/certificate/v1"
SCHEMA = "dpaudit.certificate/1"


def _as_written(value: Any, check: Callable[[Any], Any]) -> Any:
    """Check a number and keep it as it was written: a whole number stays one, so that the bytes stay the same."""
    checked = check(value)
    return math.inf if checked == "inf" else value


def _verdict(word: str) -> Verdict:
    """The verdict of a word. An enumeration itself has no signature that pydantic reads from Python 3.12 on."""
    return Verdict(word)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, 64 lower-case hexadecimal digits.")]
Text = Annotated[str, Field(max_length=20_000)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), WrapValidator(_as_written)]
Relation = Literal["add_or_remove_one", "replace_one", "zero_out"]
if TYPE_CHECKING:
    Epsilon = float | None
    VerdictName = Verdict
    Object = dict[str, Any]
else:
    # Infinity is written "inf"; what else stands in an open section is any plain JSON.
    Epsilon = Annotated[
        Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | Literal["inf"] | None,
        Field(),
        WrapValidator(_as_written),
    ]
    VerdictName = Annotated[
        Literal["violated", "accounting_mismatch", "invalid_audit", "inconclusive", "consistent"],
        AfterValidator(_verdict),
    ]
    Object = dict[str, JsonValue]
M = TypeVar("M", bound="_Model")
_PLAIN = frozenset({str, int, bool, type(None)})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON value, as it stands in the file; optional fields that are absent stay absent."""
        fields = type(self).model_fields
        return {
            field.alias or name: _plain(getattr(self, name))
            for name, field in fields.items()
            if name in self.model_fields_set
        }

    def replaced(self: M, **changes: Any) -> M:
        """A copy in which some attributes have other values, which are not checked."""
        return self.model_copy(update=changes)


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN:  # most of a certificate: a test by type takes a tenth of those below
        return value
    if isinstance(value, _Model):
        return value.to_plain()
    if isinstance(value, Claim):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else plain_json(value)


class Digests(_Model):
    """Digests of one file."""

    sha256: Digest


class Subject(_Model):
    """One released file that the certificate is bound to."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    """Path relative to the folder of the certificate."""
    digest: Digests


class ClaimModel(_Model):
    """What the model's maker claims."""

    epsilon: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), WrapValidator(_as_written)]
    """Claimed upper bound on ε."""
    delta: Annotated[float, Field(strict=True, gt=0, lt=1), WrapValidator(_as_written)]
    relation: Relation
    """Neighbouring relation."""
    unit: Annotated[str, Field(min_length=1, max_length=200)]
    """Unit of privacy, such as "record" or "user"."""
    max_records_per_unit: Annotated[int, Field(strict=True, ge=1)]


def _claim(written: ClaimModel) -> Claim:
    """The claim as the frozen value that all readers use; the model above only says what may stand in the file."""
    try:
        return Claim(**dict(written))
    except InvalidValue as error:
        raise InvalidEvidence(f"the certificate's claim is none ({error}); give the original.") from None


if TYPE_CHECKING:
    ClaimField = Claim | None
else:
    ClaimField = Annotated[ClaimModel, AfterValidator(_claim)] | None


class Scope(_Model):
    """Who is trusted, and what leaves the run."""

    trust_model: Text | None
    release_scope: Text | None


class LedgerModel(_Model):
    """Stages really executed, in order; see the privacy language for a stage's keys."""

    relation: Relation
    unit: Text
    max_records_per_unit: Annotated[int, Field(strict=True, ge=1)]
    stages: Annotated[tuple[Object, ...], Field(max_length=10_000)]
    head: Digest | None
    """SHA-256 of the last line of the digest-chained ``ledger.jsonl``."""

    def to_ledger(self) -> Ledger:
        """The ledger as a value; raises where a stage has not the form it must have."""
        plain = self.to_plain()
        del plain["head"]
        return Ledger.from_dict(plain)


class GuaranteeModel(_Model):
    """ε at δ for the ledger by one accountant; upper and lower are proven bounds, estimate is not."""

    accountant: Text
    version: Text
    epsilon_lower: Epsilon
    epsilon_upper: Epsilon
    epsilon_estimate: Epsilon
    rigorous: bool
    assumption: Text
    delta: Number
    relation: Relation
    group_size: Annotated[int, Field(strict=True, ge=1)]


class Accounting(_Model):
    """Every accountant's result; the smallest certified upper bound is the one quoted."""

    guarantees: Annotated[tuple[GuaranteeModel, ...], Field(max_length=64)]


class Audit(_Model):
    """The attack's evidence: the frozen plan, the opened commitment, guesses, and the result."""

    plan: Object | None
    """``audit_plan.json``, frozen before the first step."""
    plan_digest: Digest | None
    """SHA-256 of the bytes of ``audit_plan.json``."""
    commitment: Digest | None
    """SHA-256(nonce ‖ canonical manifest of ids, coins and copies), published in the plan."""
    nonce: Digest | None
    """The 32-byte nonce, hexadecimal, opened after training."""
    copies: Annotated[int, Field(strict=True, ge=1)]
    """Times an inserted canary stands in the data; above 1 the group claim is tested."""
    canaries: Annotated[
        tuple[
            tuple[
                Annotated[str, Field(min_length=1, max_length=128)],
                Annotated[int, Field(strict=True, ge=0, le=1)],
                Annotated[int, Field(strict=True, ge=-1, le=1)],
            ],
            ...,
        ],
        Field(max_length=1_000_000),
    ]
    """``[opaque id, coin, guess]``: coin 1 = inserted; guess 1 = in, -1 = out, 0 = abstain."""
    scores_digest: Digest | None
    """SHA-256 of ``scores.parquet``."""
    control_digest: Digest | None
    """SHA-256 of ``control_scores.parquet``: id, score and member of a positive control."""
    result: Object | None
    """The audit's result, ``dpaudit.audit/1``."""
    commitment_order: Literal["asserted", "proven"]
    """Whether a party other than the run's owner proves that the commitment came before training."""

    @property
    def ids(self) -> list[str]:
        """Opaque ids of the canaries."""
        return [row[0] for row in self.canaries]

    @property
    def coins(self) -> list[int]:
        """Coins of the canaries, in the order of the ids; 1 = inserted."""
        return [row[1] for row in self.canaries]

    @property
    def made(self) -> list[tuple[int, int]]:
        """Coin and guess of every canary that was guessed."""
        return [(coin, guess) for _, coin, guess in self.canaries if guess]

    @property
    def right(self) -> int:
        """Number of guesses that are right."""
        return sum((guess == 1) == (coin == 1) for coin, guess in self.made)


class InRun(_Model):
    """The audit by who sees every noisy update; its plan is ``audit.plan.in_run``."""

    coins: Annotated[str, Field(max_length=4_000_000)] | None
    """Coins of the in-run canaries as bits in base64, opened after training; the first is the highest bit."""
    nonce: Digest | None
    """The 32-byte nonce of their commitment, hexadecimal."""
    evidence_digest: Digest
    """SHA-256 of ``in_run.json``: coordinates, scores, energy of the releases, counts of the controls."""
    result: Object
    """What an in-run audit says, as a plain value."""


class Beacons(_Model):
    """Canaries with many copies, outside the audit: whether its attack is alive. Planned in ``audit.plan``."""

    nonce: Digest
    """The 32-byte nonce of their commitment, hexadecimal, opened after training."""
    copies: Annotated[int, Field(strict=True, ge=2)]
    """Times an inserted beacon stands in the data; what is claimed for one unit is not claimed for its group."""
    canaries: Annotated[
        tuple[
            tuple[
                Annotated[str, Field(min_length=1, max_length=128)],
                Annotated[int, Field(strict=True, ge=0, le=1)],
                Number,
            ],
            ...,
        ],
        Field(max_length=10_000),
    ]
    """``[opaque id, coin, score]``: coin 1 = inserted; higher score = member."""


class VerdictModel(_Model):
    """The verdict, its reasons, and what it means."""

    name: VerdictName
    reasons: tuple[Text, ...]
    meaning: Text


class LineModel(_Model):
    """One of the four lines of evidence: its standing, and the reasons in words."""

    name: Literal["accounting", "implementation", "released_model", "origin"]
    standing: Literal["shown", "not shown", "against the claim"]
    text: Text
    reasons: tuple[Text, ...]
    """Why it is not shown, or what it has against the claim."""


class Predicate(_Model):
    """The certificate itself."""

    schema_: Literal["dpaudit.certificate/1"] = Field(alias="schema")
    verifier: dict[str, Text]
    """Name and version of the program that wrote the certificate."""
    run_status: Literal["complete", "unfinished"]
    claim: ClaimField
    scope: Scope
    mechanism: Object
    """Algorithm, clipping norm, normaliser, noise source, precision and whatever else the mechanism needs."""
    ledger: LedgerModel | None
    accounting: Accounting
    audit: Audit | None
    in_run: InRun | None = None
    """The audit by who sees every noisy update, beside the one by who sees the released model."""
    beacons: Beacons | None = None
    """What shows that the attack on the released model is alive, where the plan has beacons."""
    exposure: Object | None
    findings: tuple[Object, ...]
    """Findings of white-box tests, each with name, status (a verdict or "note") and text."""
    examination: Object | None = None
    """White-box tests that ran, and those that could not."""
    provenance: Object
    """Versions, commit, dirty flag, configuration digest."""
    deviations: tuple[Text, ...]
    """Departures from the plan or from the safe defaults."""
    limits: tuple[Text, ...]
    """What the certificate does not prove."""
    reproduction: Text
    """Command that repeats the run."""
    pages: dict[Annotated[str, Field(min_length=1, max_length=1024)], Digest] | None = None
    """Path of a page to the SHA-256 of its bytes, with 64 zeros where it names this statement's digest."""
    missing: tuple[Text, ...]
    """Fields that are needed to recompute the claim and are absent."""
    verdict: VerdictModel
    level: Annotated[int, Field(strict=True, ge=0, le=3)] | None = None
    """How far the evidence reaches, 0 to 3; signatures and dates, which level 4 takes, are made over these bytes."""
    lines: Annotated[tuple[LineModel, ...], Field(min_length=4, max_length=4)] | None = None
    """Accounting, implementation, released model, origin."""
    digest: Digest
    """SHA-256 of the canonical statement without this field: finds accidents, proves no origin."""


class Statement(_Model):
    """An in-toto statement with a dpaudit certificate as its predicate."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[Subject, ...], Field(max_length=10_000)]
    predicateType: Literal["https://dpaudit.dev/certificate/v1"]
    predicate: Predicate

    @classmethod
    def from_plain(cls, value: Any) -> Statement:
        """The statement that a parsed JSON value is, checked against its schema version.

        Raises
        ------
        InvalidEvidence
            Names the first offending field.
        """
        if not isinstance(value, dict) or value.get("_type") != STATEMENT_TYPE:
            raise InvalidEvidence(
                f"the certificate is not an in-toto statement of type {STATEMENT_TYPE}; give the original."
            )
        if value.get("predicateType") != PREDICATE_TYPE:
            raise InvalidEvidence(
                f"predicateType={str(value.get('predicateType'))[:80]!r} is unknown to this dpaudit, which reads"
                f" {PREDICATE_TYPE}; a newer certificate needs a newer dpaudit."
            )
        try:
            statement = cls.model_validate_json(canonical_json(value))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:200]
            raise InvalidEvidence(
                f"certificate field {where!r} does not follow {SCHEMA} ({first['msg'][:200]}); give the original."
            ) from None
        except RecursionError:
            raise InvalidEvidence("the certificate nests too deeply; give the original.") from None
        _check_findings(statement.predicate)
        return statement

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "the certificate") -> Statement:
        """Read the bytes of ``certificate.json``; raises :class:`~dpaudit.InvalidEvidence` as the readers do."""
        return cls.from_plain(parse_json(data, name=name))

    def to_bytes(self) -> bytes:
        """Canonical bytes, ending in one newline: what is written, digested and signed."""
        return canonical_bytes(self.to_plain())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical statement without ``predicate.digest``, which states it."""
        return digest_of(self.to_plain())

    def with_digest(self) -> Statement:
        """The statement with its own digest in ``predicate.digest``."""
        return self.replaced(predicate=self.predicate.replaced(digest=self.digest))


def digest_of(plain: Mapping[str, Any]) -> str:
    """:attr:`Statement.digest` from the statement's plain JSON value."""
    undigested = {key: value for key, value in plain["predicate"].items() if key != "digest"}
    return sha256_bytes(canonical_json({**plain, "predicate": undigested}))


def canonical_bytes(plain: Mapping[str, Any]) -> bytes:
    """:meth:`Statement.to_bytes` from the statement's plain JSON value."""
    return canonical_json(plain) + b"\n"


def _check_findings(body: Predicate) -> None:
    """Every finding, wherever it stands, asks for a known verdict or for none: an unknown status is refused."""
    result = None if body.audit is None else body.audit.result
    in_run = {} if body.in_run is None else body.in_run.result
    every = (body.findings, *((part or {}).get("findings") for part in (body.examination, result, in_run)))
    for rows in every:
        if rows is not None and not isinstance(rows, (list, tuple)):
            raise InvalidEvidence("the findings of a certificate are not a list; give the original.")
        for row in rows or ():
            finding_status(row)


@functools.cache
def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the certificate, version 1.

    Returns
    -------
    dict
        Plain JSON value, equal to ``dpaudit/schemas/certificate-1.json``.
    """
    schema = Statement.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://dpaudit.dev/schemas/certificate-1.json",
        **schema,
    }
