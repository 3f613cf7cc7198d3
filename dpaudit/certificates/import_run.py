"""Certifying runs that other libraries made: a ledger, a score file and a manifest in, a release folder out.

Nothing here knows the other library: :mod:`dpaudit.accounting.events` turns its history into a ledger, and the caller
says in words what the mechanism was. What dpaudit did not see itself is written into the certificate as a deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.build import CertificateEvidence, build_certificate
from dpaudit.certificates.control_file import binding_of, foreign_control, read_control_file
from dpaudit.certificates.curve import declared_curve
from dpaudit.certificates.deviations import IMPORT_REASON, ledger_deviations
from dpaudit.certificates.group import group_epsilon
from dpaudit.certificates.in_run_loop import InRunSeen, in_run_section
from dpaudit.certificates.limits import UNITS
from dpaudit.certificates.other_relation import other_relation
from dpaudit.certificates.statement import Statement
from dpaudit.privacy import validate
from dpaudit.privacy.canaries import Canaries
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, InvalidValue, PrivacyRefusal
from dpaudit.privacy.finding import Examined, public_examination, public_findings
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.protocols import TEST_REASON
from dpaudit.privacy.scores import Scores
from dpaudit.storage.commitment import canonical_json, sha256_bytes, sha256_file
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.journal import DiskJournal, JournalRecord, read_journal
from dpaudit.storage.plain import plain
from dpaudit.storage.readers import read_json
from dpaudit.storage.scores import read_coins, scores_of

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan, Control

_STATUS = {"complete": "complete", "completed": "complete", "unfinished": "unfinished", "planned": "unfinished"}
"""What a certificate calls a run, by its own word or a trainer's."""
OWN_JOURNAL = "dpaudit's own journal, which counted every step before its release"


def read_manifest(path: str | Path) -> Canaries:
    """Read ``{"nonce": hex, "copies": k, "canaries": [[id, coin], …]}``.

    Parameters
    ----------
    path : path
        Usually ``canaries.json``, which :func:`write_manifest` wrote.

    Returns
    -------
    Canaries
        Ids, coins, copies and nonce.

    Raises
    ------
    InvalidEvidence
        When it is no manifest, or holds no nonce that could open a commitment.
    """
    path = Path(path)
    found = read_coins(path)
    if found.nonce is None:
        raise InvalidEvidence(f"{path.name} is a canary manifest without its nonce; give the one that was committed.")
    return found


def write_manifest(path: str | Path, canaries: Canaries) -> None:
    """Write a manifest that :func:`read_manifest` reads. It holds the coins: keep it secret until training ends.

    Parameters
    ----------
    path : path
        Written with mode 0600.
    canaries : Canaries
        Ids, coins, copies and nonce.
    """
    nonce = {} if canaries.nonce is None else {"nonce": canaries.nonce.hex()}
    content = canonical_json({**canaries.manifest(), **nonce}) + b"\n"
    write_atomically(Path(path), content, mode=PRIVATE_MODE)


def write_plan(path: str | Path, plan: AuditPlan) -> str:
    """Write ``audit_plan.json`` before training and return its digest; publish the digest to prove the order.

    Parameters
    ----------
    path : path
        Usually ``release/audit_plan.json``.
    plan : AuditPlan
        As :func:`dpaudit.auditing.design` makes it.

    Returns
    -------
    str
        SHA-256 of the bytes, 64 hexadecimal digits.
    """
    data = canonical_json(plan.to_dict()) + b"\n"
    write_atomically(Path(path), data)
    return sha256_bytes(data)


def certify_run(
    release: str | Path,
    *,
    source: str | None = None,
    ledger: Ledger | None = None,
    claim: Claim,
    mechanism: Mapping[str, Any],
    trust_model: str,
    release_scope: str,
    accountants: Sequence[str] = ("prv", "rdp"),
    canaries: Canaries | None = None,
    in_run: InRunSeen | None = None,
    findings: Any = (),
    provenance: Mapping[str, Any] | None = None,
    deviations: Sequence[str] = (),
    reproduction: str = "",
    run_status: str = "complete",
) -> Statement:
    """Certify a run of another library, or of a loop of one's own, into its release folder and return the certificate.

    Parameters
    ----------
    release : Path
        Folder that holds what is released: ``model/`` with the weights and, for an audit, ``audit_plan.json`` (written
        before training by :func:`write_plan`), ``scores.parquet`` (columns id, score) and, where one was made,
        ``control_scores.parquet``, the positive control from which the attack's power is measured (written by
        :func:`write_control`). ``ledger.jsonl`` and ``certificate.json`` are written into it; an existing certificate
        is never overwritten.
    source : str, optional
        Where the ledger comes from, such as "an Opacus 1.6 accountant history"; needed with an imported ledger.
    ledger : Ledger, optional
        Steps that ran; see :func:`dpaudit.accounting.from_opacus` and :func:`dpaudit.accounting.from_event`. Leave
        it out where dpaudit's own journal counted them into ``release/ledger.jsonl``: such a run, bound to its audit
        plan by the journal's ``audit_plan_sha256``, carries no deviation for its ledger.
    claim, mechanism, trust_model, release_scope, provenance, deviations, reproduction
        As in ``CertificateEvidence``; the mechanism must state algorithm, clipping_norm, normaliser and
        noise_source.
    accountants : sequence of str
        Accountants in the certificate; the smallest certified bound decides.
    canaries : Canaries, optional
        Without them nothing is known about leakage and the verdict is at most ``inconclusive``.
    in_run : InRunSeen, optional
        What in-run canaries saw, from :func:`commit_in_run` and the loop; ``in_run.json`` is written. The plan must
        have announced it, and ``canaries`` must be given.
    findings : Findings, or sequence of findings or mappings
        What :func:`dpaudit.attacks.examine` returned, or its findings; witnesses stay out of the certificate. What ran
        and what was left out enters it too, where the whole result is given, or where ``dpaudit examine --release``
        left ``examination.json`` in the folder.
    run_status : str
        "complete" or "unfinished", or the ``status`` of a trainer or of its result ("completed", "test", "planned"). A
        run whose randomness was injected is refused, also where only its ledger or ``model/privacy.json`` says so.

    Returns
    -------
    Statement
        The certificate, as written to ``release/certificate.json``.

    Raises
    ------
    InvalidEvidence
        When the coins do not open the plan's commitment, the scores do not match the canaries, the control is not one
        of this run, or the ledger is missing, still open, or bound to another plan.
    PrivacyRefusal
        When sampler or noise were injected: such a run is repeatable by design, hence not private.
    InvalidValue
        If ``certificate.json`` exists, or something that the certificate needs is missing.
    """
    from dpaudit.accounting import account

    release = Path(release)
    certificate = release / "certificate.json"
    if certificate.exists():
        raise InvalidValue(f"{certificate} exists; it is amended, never rewritten: see dpaudit.certificates.amend.")
    status = _status(run_status, release)
    plan_path = release / "audit_plan.json"
    plan_digest = sha256_file(plan_path) if canaries is not None and plan_path.exists() else None
    record = _ledger_of(release / "ledger.jsonl", ledger, source, plan_digest)
    if any(reason.startswith(TEST_REASON) for reason in record.reasons):
        raise PrivacyRefusal(_TEST_RUN.format(where=f"{release / 'ledger.jsonl'} says"))
    ledger = record.ledger if ledger is None else ledger
    guarantees = account(ledger, delta=claim.delta, accountants=tuple(accountants))
    config_sha256 = (provenance or {}).get("config_sha256")
    audited = {} if canaries is None else _audit(release, canaries, ledger, guarantees, config_sha256)
    if in_run is not None:
        plan, upper = audited.get("audit_plan", {}), smallest_upper(guarantees)
        path, rows = release / "in_run.json", ledger.merged()
        audited["in_run"] = in_run_section(path, plan.get("in_run"), in_run, rows, upper)[1]
    found, examined = _examination(release / "examination.json", findings, config_sha256)
    mechanism = {UNITS: _told_units(release, claim), **mechanism}
    evidence = CertificateEvidence(
        claim=claim,
        trust_model=trust_model,
        release_scope=release_scope,
        ledger=ledger,
        ledger_head=record.head,
        mechanism=mechanism,
        guarantees=guarantees,
        findings=found,
        examination=examined,
        subjects=_subjects(release),
        provenance={
            "ledger_source": source or OWN_JOURNAL,
            "other_relation": other_relation(ledger, delta=claim.delta, accountants=tuple(accountants)),
            **_told_processes(release),
            **(provenance or {}),
        },
        deviations=[*ledger_deviations(record.reasons), *deviations],
        reproduction=reproduction,
        run_status=status,
        **audited,
    )
    statement = build_certificate(evidence)
    write_atomically(certificate, statement.to_bytes())
    return statement


_TEST_RUN = (
    "{where} that randomness was injected into this run: its steps can be repeated; run it without sampler, noise."
)


def _status(given: str, release: Path) -> str:
    """Status of the run for its certificate, from its trainer's word and from the record that a trainer left."""
    validate.one_of([*_STATUS, "test"], run_status=given)
    stated, record = given, release / "model" / "privacy.json"
    if record.exists():
        written = read_json(record)
        if isinstance(written, dict) and written.get("schema") == "dpaudit.trainer/1":
            stated = "test" if written.get("status") == "test" else given
    if stated == "test":
        raise PrivacyRefusal(_TEST_RUN.format(where="run_status says" if given == "test" else f"{record} says"))
    return _STATUS[stated]


def _examination(path: Path, given: Any, config: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
    """Findings for the certificate, and what it says of the tests behind them: as given, or as a file beside it has."""
    if isinstance(given, Examined):
        bound = {} if config is None else {"config_sha256": config}
        return public_findings(given), plain({**public_examination(given), **bound})
    found = public_findings(given)
    if not path.exists():
        return found, None
    recorded = read_json(path)
    own = public_findings(recorded.get("findings") or ())
    return [*own, *(row for row in found if row not in own)], recorded


def _told_units(release: Path, claim: Claim) -> dict[str, Any]:
    """How a trainer of this package says that it told the units of privacy; without its record nothing told them."""
    units = _trainers_record(release).get("units")
    if isinstance(units, dict):
        return units
    return {"column": None, "drawn": "record", "max_records": claim.max_records_per_unit, "rule": "assumed"}


def _trainers_record(release: Path) -> dict[str, Any]:
    """What a trainer of this package wrote beside the model; empty without it."""
    path = release / "model" / "privacy.json"
    written = read_json(path) if path.exists() else None
    return written if isinstance(written, dict) and written.get("schema") == "dpaudit.trainer/1" else {}


def _told_processes(release: Path) -> dict[str, int]:
    """How many processes the trainer says it ran in, where they were several."""
    told = _trainers_record(release).get("processes", 1)
    return {"processes": told} if isinstance(told, int) and told > 1 else {}


def _ledger_of(path: Path, ledger: Ledger | None, source: str | None, plan_digest: str | None) -> JournalRecord:
    """The ledger that dpaudit's own journal counted, or the one given, written down as imported."""
    if path.exists():
        record = read_journal(path)
        if record.open_steps is not None:
            raise InvalidEvidence(
                f"{path} has an open segment of {record.open_steps} steps: the run goes on or was killed; resume it, or"
                " open its journal once to seal what was counted."
            )
        if ledger is not None and record.ledger.merged() != ledger.merged():
            raise InvalidEvidence(f"{path} holds another ledger than the one given; remove one of them.")
        if record.audit_plan_sha256 != plan_digest:
            raise InvalidEvidence(_not_bound(path, record, plan_digest))
        return record
    if ledger is None or source is None:
        raise InvalidValue(
            f"{path} does not exist, so ledger and source are needed; give both, or the ledger.jsonl that dpaudit's"
            " journal wrote."
        )
    journal = DiskJournal(
        path,
        relation=str(ledger.relation),
        unit=ledger.unit,
        max_records_per_unit=ledger.max_records_per_unit,
        audit_plan_sha256=plan_digest,
    )
    for stage in ledger.stages:
        journal.append(stage, f"{IMPORT_REASON}{source}")
    journal.close()
    return read_journal(path)


def _not_bound(path: Path, record: JournalRecord, plan_digest: str | None) -> str:
    if plan_digest is None:
        return (
            f"{path} opens with the digest of an audit plan ({str(record.audit_plan_sha256)[:12]}…); give its canaries,"
            " with audit_plan.json beside it."
        )
    opened = f"{record.audit_plan_sha256[:12]}…" if record.audit_plan_sha256 else "no plan"
    return (
        f"{path} opens with {opened} and audit_plan.json has {plan_digest[:12]}…: the ledger must be opened with the"
        " plan before the first step (audit_plan_sha256 of the journal or trainer)."
    )


def _control(release: Path, plan: Mapping[str, Any], config_sha256: Any, audited: Sequence[str]) -> Control | None:
    """The positive control beside the scores, where there is one; a control of another run is refused."""
    path = release / "control_scores.parquet"
    if not path.exists():
        return None
    found = read_control_file(path)
    bound = binding_of(plan, plan_sha256=sha256_file(release / "audit_plan.json"), config_sha256=config_sha256)
    if why := foreign_control(found, bound, audited):
        raise InvalidEvidence(
            f"{path} is not a control of this run ({why}); remove it, or write it with"
            " dpaudit.certificates.write_control."
        )
    return found.control


def _audit(
    release: Path, canaries: Canaries, ledger: Ledger, guarantees: Sequence[Guarantee], config_sha256: Any
) -> dict[str, Any]:
    from dpaudit.auditing import AuditPlan, audit, guess

    plan_path, scores_path = release / "audit_plan.json", release / "scores.parquet"
    stated = read_json(plan_path)
    plan = AuditPlan.from_dict(stated)
    if canaries.nonce is None or canaries.commitment != plan.coin_commitment:
        raise InvalidEvidence(
            f"the manifest does not open the commitment in {plan_path.name}; give the manifest that was committed."
        )
    scored = Scores(canaries.ids, scores_of(scores_path, canaries.ids, attack=plan.attack), canaries.coins)
    control = _control(release, stated, config_sha256, canaries.ids)
    try:
        curve = declared_curve(ledger, plan.delta, canaries.copies)
    except DpauditError:  # no certified profile for this ledger, such as a shuffled one
        curve = None
    names = [guarantee.accountant for guarantee in guarantees]
    result = audit(
        scored,
        plan,
        coins="verified",
        accounted_upper=smallest_upper(guarantees),
        group_claim=group_epsilon(ledger, delta=plan.delta, accountants=names, copies=canaries.copies),
        curve=curve,
        control=control,
    )
    rows = zip(canaries.ids, canaries.coins, guess(scored.ids, scored.values, plan), strict=True)
    return {
        "audit_plan": plan.to_dict(),
        "audit_plan_digest": sha256_file(plan_path),
        "canaries": [{"id": i, "coin": c, "guess": int(g)} for i, c, g in rows],
        "copies": canaries.copies,
        "scores_digest": sha256_file(scores_path),
        "control_digest": None if control is None else sha256_file(release / "control_scores.parquet"),
        "nonce": canaries.nonce.hex(),
        "audit_result": result.to_dict(),
    }


def _subjects(release: Path) -> dict[str, str]:
    folder = release / "model"
    if not folder.is_dir():
        raise InvalidValue(f"{folder} does not exist; save the weights there before certifying them.")
    return {
        path.relative_to(release).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "privacy.json"
    }
