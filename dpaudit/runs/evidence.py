"""What a run folder holds, read once, and everything that its certificate states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpaudit import Guarantee, Ledger
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.scores import Scores
from dpaudit.runs.beacons import OpenedBeacons, opened_beacons
from dpaudit.runs.config import Config
from dpaudit.runs.records import limit_of
from dpaudit.runs.stated import owners_words
from dpaudit.runs.units import draws_units, units_statement
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.journal import JournalRecord, read_journal
from dpaudit.storage.run_folder import RunFolder, RunRecord, folder_digests, read_json
from dpaudit.storage.scores import scores_of

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.result import AuditResult


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """What a run's folder records, read once and checked against the commitment."""

    folder: RunFolder
    config: Config
    record: RunRecord
    journal: JournalRecord
    plan: AuditPlan
    scores: Scores
    nonce: bytes
    inserted: int
    """Canaries that stand in the data."""
    beacons: OpenedBeacons | None = None
    """Those of the plan, opened."""

    @classmethod
    def read(cls, folder: RunFolder, config: Config, record: RunRecord) -> Recorded:
        """Read the folder of a run whose scores are written.

        Raises
        ------
        InvalidEvidence
            When the canaries do not open the commitment, or the scores are not theirs.
        """
        from dpaudit.attacks import read_secret
        from dpaudit.auditing import AuditPlan

        plan, secret = AuditPlan.from_dict(read_json(folder.audit_plan)), read_secret(folder.canaries)
        if secret.commitment != plan.coin_commitment:
            raise InvalidEvidence(
                f"{folder.canaries} does not open the commitment in audit_plan.json; restore the file."
            )
        values = scores_of(folder.scores, secret.ids, attack=plan.attack)
        scores = Scores(secret.ids, values, secret.coins)
        journal = read_journal(folder.ledger)
        return cls(
            folder=folder,
            config=config,
            record=record,
            journal=journal,
            plan=plan,
            scores=scores,
            nonce=secret.nonce,
            inserted=len(secret.canaries.present(secret.coins)),
            beacons=opened_beacons(folder, plan),
        )

    @property
    def ledger(self) -> Ledger:
        """The steps that were counted, equal stages merged."""
        return self.journal.ledger.merged()

    def audited(self, guarantees: tuple[Guarantee, ...]) -> AuditResult:
        """The audit by the scores of the released model, with the control of this run if there is one."""
        from dpaudit.auditing import audit
        from dpaudit.certificates.curve import declared_curve
        from dpaudit.certificates.group import group_epsilon
        from dpaudit.runs.control import binding_of_run, read_control

        plan, ledger, names = self.plan, self.ledger, self.config.privacy.accountants
        binding = binding_of_run(self.folder, self.record.config_sha256)
        return audit(
            self.scores,
            plan,
            coins="verified",
            accounted_upper=smallest_upper(guarantees),
            group_claim=group_epsilon(ledger, delta=plan.delta, accountants=names, copies=plan.copies),
            control=read_control(self.folder.control_scores, binding, self.scores.ids),
            curve=declared_curve(ledger, plan.delta, plan.copies),
            beacons=None if self.beacons is None else self.beacons.scores,
        )

    def guessed(self) -> list[dict[str, Any]]:
        """Opaque id, coin and guess of every canary."""
        from dpaudit.auditing import guess

        guesses = guess(self.scores.ids, self.scores.values, self.plan)
        rows = zip(self.scores.ids, self.scores.members, guesses, strict=True)
        return [{"id": i, "coin": int(c), "guess": int(g)} for i, c, g in rows]


def evidence_of(
    recorded: Recorded, guarantees: tuple[Guarantee, ...], result: AuditResult, exposure: Mapping[str, Any]
) -> Any:
    """Everything that a certificate of this run states."""
    from dpaudit.certificates.build import CertificateEvidence
    from dpaudit.certificates.other_relation import other_relation
    from dpaudit.runs.attempts import attempts_of

    folder, config, record = recorded.folder, recorded.config, recorded.record
    plan, ledger = recorded.plan, recorded.ledger
    facts, told = record.facts, mechanism(config, ledger)
    examined = read_json(folder.examination)["findings"] if folder.examination.exists() else ()
    status = {"test": "test", "completed": "complete"}.get(str(facts.get("training_status")), "unfinished")
    return CertificateEvidence(
        claim=config.claim,
        trust_model="central: the trainer sees the private records in the clear",
        release_scope="the last iterate (model weights) and the files of release/",
        ledger=ledger,
        ledger_head=recorded.journal.head,
        mechanism=told,
        guarantees=guarantees,
        audit_plan=plan.to_dict(),
        audit_plan_digest=sha256_file(folder.audit_plan),
        canaries=recorded.guessed(),
        copies=plan.copies,
        scores_digest=sha256_file(folder.scores),
        control_digest=sha256_file(folder.control_scores) if folder.control_scores.exists() else None,
        nonce=recorded.nonce.hex(),
        audit_result=result.to_dict(),
        beacons=None if recorded.beacons is None else recorded.beacons.section(),
        exposure=exposure,
        findings=examined,
        examination=read_json(folder.examination) if folder.examination.exists() else None,
        subjects={f"model/{n}": d for n, d in folder_digests(folder.model).items() if n != "privacy.json"},
        provenance={
            **record.provenance,
            **owners_words(config, record),
            "config_sha256": record.config_sha256,
            "attempts": attempts_of(facts),
            **({"processes": facts["processes"]} if facts.get("processes", 1) != 1 else {}),
            "data_hmac_sha256": read_json(folder.private / "data_commitment.json")["hmac_sha256"],
            "records": {
                "declared": config.privacy.public_size,
                **limit_of(config.data),
                "canaries": plan.m,
                "inserted": recorded.inserted,
                "copies": plan.copies,
                **_beacon_counts(recorded.beacons),
            },
            "other_relation": other_relation(ledger, delta=config.claim.delta, accountants=config.privacy.accountants),
            "public_evaluation": {
                "what": "perplexity per token" if config.model.task == "causal-lm" else "accuracy",
                "before": facts.get("heldout_before"),
                "after": facts.get("heldout_after"),
            },
        },
        deviations=_deviations(recorded),
        reproduction=reproduction(folder),
        run_status=status,
    )


def _beacon_counts(beacons: OpenedBeacons | None) -> dict[str, int]:
    """How many records of the data set are copies of beacons; nothing for a run without any."""
    if beacons is None:
        return {}
    return {
        "beacons": len(beacons.scores),
        "beacons_inserted": beacons.inserted,
        "beacon_copies": beacons.copies,
    }


def _deviations(recorded: Recorded) -> list[str]:
    """What departed from the plan, in sentences."""
    from dpaudit.certificates.deviations import ledger_deviations
    from dpaudit.runs.attempts import attempt_deviations

    facts, found = recorded.record.facts, []
    if facts.get("steps_lost"):
        found.append(f"{facts['steps_lost']} steps were charged whose update a crash lost.")
    if "public_size" not in recorded.record.config.get("privacy", {}):
        found.append("q, σ and the normaliser derive from the exact number of private records, which they tell.")
    return [*found, *ledger_deviations(recorded.journal.reasons), *attempt_deviations(facts)]


def reproduction(folder: RunFolder) -> str:
    """Command that repeats the run from its configuration (its digest is in the provenance), wherever that lies."""
    options = {"--control": folder.control_scores, "--examine": folder.examination}
    return " ".join([*"dpaudit certify CONFIG.toml --out RUN".split(), *(o for o, p in options.items() if p.exists())])


def mechanism(config: Config, ledger: Ledger) -> dict[str, Any]:
    """What was done to the private records, in words and numbers."""
    from dpaudit.certificates.limits import UNITS
    from dpaudit.trainers import noise_statement

    stage = ledger.stages[0]
    algorithm = (
        "ghost-clipped DP-AdamW (Li et al., 2110.05679)"
        if config.privacy.method == "dp-adam"
        else "stagewise zeroth-order DP-ZOSO (Liu et al., 2402.07818)"
    )
    return {
        "algorithm": algorithm,
        "clipping_norm": stage.clipping_norm,
        "clipping_rule": f"flat, factor min(1, C/norm) per {'unit' if draws_units(config) else 'record'}"
        if config.privacy.method == "dp-adam"
        else str(stage.clip),
        "normaliser": f"constant {stage.expected_batch_size:g} (q times the public size), never the realised batch",
        **noise_statement(secure=config.privacy.secure_noise),
        "sampler": f"Poisson: every {'unit' if draws_units(config) else 'record'} independently with probability q at"
        " every step",
        UNITS: units_statement(config),
        "precision": "fp32 sums, noise and moments"
        if config.privacy.method == "dp-adam"
        else "fp64 sums and noise, fp32 weights",
        "world_size": 1,
        "hyperparameter_tuning": "none on private records inside this run",
    }
