"""Forging certificates as their owner or a stranger would: everything around the forged value is made to fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit import Ledger
from dpaudit.certificates.control_file import ControlBinding, binding_of, control_columns
from dpaudit.certificates.faults import missing_fields
from dpaudit.certificates.lines import assess
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import Statement
from dpaudit.certificates.verify.report import VerificationReport
from dpaudit.certificates.verify.verify import verify_here
from dpaudit.storage.commitment import canonical_json, commitment, manifest, sha256_bytes, sha256_file
from tests.certificates.certificate_run import rewrite

if TYPE_CHECKING:
    from dpaudit.auditing import Scores


class Forgery:
    """A copy of a release folder that can be changed; :meth:`seal` makes verdict and digests fit the change."""

    def __init__(self, release: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(release, folder))
        self.statement: dict[str, Any] = json.loads((folder / "certificate.json").read_bytes())

    @property
    def body(self) -> dict[str, Any]:
        """The predicate."""
        body: dict[str, Any] = self.statement["predicate"]
        return body

    @property
    def result(self) -> dict[str, Any]:
        """The audit's result."""
        result: dict[str, Any] = self.body["audit"]["result"]
        return result

    def ledger(self) -> Ledger:
        """The embedded ledger."""
        return Ledger.from_dict({k: v for k, v in self.body["ledger"].items() if k != "head"})

    def account(self, accountants: tuple[str, ...] = ("rdp",)) -> None:
        """Account the embedded ledger again."""
        from dpaudit.accounting import account

        rows = []
        for g in account(self.ledger(), delta=self.body["claim"]["delta"], accountants=accountants):
            row = g.to_dict()
            del row["seconds"]
            rows.append({**row, "delta": g.delta, "relation": str(g.relation), "group_size": g.group_size})
        self.body["accounting"] = {"guarantees": plain_json(rows)}

    def write_plan(self) -> None:
        """Write the embedded plan, with its commitment made anew from the embedded canaries."""
        audit = self.body["audit"]
        ids, coins = [row[0] for row in audit["canaries"]], [row[1] for row in audit["canaries"]]
        digest = commitment(bytes.fromhex(audit["nonce"]), manifest(ids, coins, audit["copies"]))
        audit["commitment"] = audit["plan"]["coin_commitment"] = digest
        data = canonical_json(audit["plan"]) + b"\n"
        (self.folder / "audit_plan.json").write_bytes(data)
        audit["plan_digest"] = sha256_bytes(data)

    def write_ledger(self, reason: str = "completed") -> None:
        """Write ``ledger.jsonl`` with a chain that fits the embedded ledger and plan."""
        ledger = self.body["ledger"]
        header = {
            "kind": "header",
            "version": 1,
            "previous": "0" * 64,
            **{name: ledger[name] for name in ("relation", "unit", "max_records_per_unit")},
            "audit_plan_sha256": None if self.body["audit"] is None else self.body["audit"]["plan_digest"],
        }
        lines = [canonical_json(header)]
        for stage in ledger["stages"]:
            previous = sha256_bytes(lines[-1])
            lines.append(canonical_json({"kind": "segment", "previous": previous, "stage": stage, "reason": reason}))
        (self.folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        ledger["head"] = sha256_bytes(lines[-1])

    def write_scores(self, scores: np.ndarray, attack: str | None = None) -> None:
        """Write scores in the order of the embedded canaries."""
        import pandas as pd

        audit = self.body["audit"]
        name = audit["plan"]["attack"] if attack is None else attack
        frame = pd.DataFrame({"id": [row[0] for row in audit["canaries"]], "score": scores, "attack": name})
        frame.to_parquet(self.folder / "scores.parquet", index=False)
        audit["scores_digest"] = sha256_file(self.folder / "scores.parquet")

    def write_control(self, n: int, mu: float, *, seed: int = 0, runs: int = 1, **changes: Any) -> ControlBinding:
        """Write a control of ``runs`` times n canaries that separate by ``mu``; ``changes`` alter what it names."""
        import pandas as pd

        rng, audit = np.random.default_rng(seed), self.body["audit"]
        config = self.body["provenance"].get("config_sha256")
        binding = binding_of(audit["plan"], plan_sha256=audit["plan_digest"], config_sha256=config)
        member = rng.integers(0, 2, n * runs)
        frame = {
            "id": [f"control-{i}" for i in range(n * runs)],
            "score": rng.normal(size=n * runs) + mu * member,
            "member": member,
            "run": [str(i // n) for i in range(n * runs)],
            **control_columns(binding, fault="no noise", rows=n * runs),
            **{name: [value] * (n * runs) for name, value in changes.items()},
        }
        pd.DataFrame(frame).to_parquet(self.folder / "control_scores.parquet", index=False)
        audit["control_digest"] = sha256_file(self.folder / "control_scores.parquet")
        return binding

    def write_beacons(self, shift: float, *, count: int = 40, copies: int = 16, seed: int = 3) -> None:
        """Plan beacons, and hold scores of them that coins move by ``shift``."""
        from dpaudit.certificates.group import group_epsilon

        audit, rng, nonce = self.body["audit"], np.random.default_rng(seed), bytes(range(1, 33))
        ids = sorted(f"{i:032x}" for i in rng.integers(0, 2**62, count))
        coins = [int(c) for c in rng.permutation([i % 2 for i in range(count)])]
        scores = rng.normal(size=count) + shift * np.array(coins)
        names = [row["accountant"] for row in self.body["accounting"]["guarantees"]]
        group = group_epsilon(self.ledger(), delta=audit["plan"]["delta"], accountants=names, copies=copies)
        audit["plan"]["beacons"] = {
            "count": count,
            "copies": copies,
            "group_size": copies,
            "group_epsilon": group,
            "commitment": commitment(nonce, manifest(ids, coins, copies)),
            "level": 1e-6,
        }
        rows = [[i, c, float(s)] for i, c, s in zip(ids, coins, scores, strict=True)]
        self.body["beacons"] = {"nonce": nonce.hex(), "copies": copies, "canaries": rows}
        self.write_plan()
        self.write_ledger()

    def beacons(self) -> Scores | None:
        """Scores and coins of the embedded beacons."""
        from dpaudit.auditing import Scores

        rows = (self.body.get("beacons") or {}).get("canaries")
        return Scores(*zip(*[(i, s, c) for i, c, s in rows], strict=True)) if rows else None

    def audit_again(self) -> None:
        """Make the audit that the evidence gives: guesses, result, power."""
        import pandas as pd

        from dpaudit.auditing import AuditPlan, Scores, audit, guess
        from dpaudit.certificates.control_file import read_control_file
        from dpaudit.certificates.curve import declared_curve
        from dpaudit.certificates.group import group_epsilon
        from dpaudit.privacy.guarantee import smallest_upper

        section = self.body["audit"]
        table = pd.read_parquet(self.folder / "scores.parquet").set_index("id")["score"]
        ids = [row[0] for row in section["canaries"]]
        scores = [float(table[i]) for i in ids]
        plan = AuditPlan.from_dict(section["plan"])
        rows = self.body["accounting"]["guarantees"]
        control = self.folder / "control_scores.parquet"
        result = audit(
            Scores(ids, scores, [row[1] for row in section["canaries"]]),
            plan,
            coins="verified",
            accounted_upper=smallest_upper(rows),
            group_claim=group_epsilon(
                self.ledger(),
                delta=plan.delta,
                accountants=[row["accountant"] for row in rows],
                copies=plan.copies,
            ),
            control=read_control_file(control).control if section["control_digest"] else None,
            curve=declared_curve(self.ledger(), plan.delta, plan.copies),
            beacons=self.beacons(),
            secondary=False,
        )
        guesses = guess(ids, scores, plan)
        section["canaries"] = [[row[0], row[1], int(g)] for row, g in zip(section["canaries"], guesses, strict=True)]
        section["result"] = plain_json(result.to_dict())

    def claim_consistent(self) -> None:
        """Type in what a forger wants to be read."""
        self.result.update(findings=[], power=0.99, power_lower=0.95, verdict="consistent")
        self.result["power_source"] = "positive_control: no noise"

    def seal(self, *, verdict: bool = True) -> Forgery:
        """Make missing fields, verdict and digest fit, and write the certificate."""
        if verdict:
            statement = Statement.from_plain(self.statement)
            body = statement.predicate.replaced(missing=missing_fields(statement.predicate, statement.subject))
            self.body["missing"] = list(body.missing)
            found = assess(body)
            self.body["verdict"] = found.to_verdict().to_plain()
            self.body["level"] = int(found.level)
            self.body["lines"] = [line.to_plain() for line in found.to_lines()]
        rewrite(self.folder / "certificate.json", self.statement)
        return self

    def verify(self, policy: str | None = None) -> VerificationReport:
        """Verify in this process."""
        path = None
        if policy is not None:
            path = self.folder / "policy.toml"
            path.write_text(policy)
        return verify_here(self.folder / "certificate.json", policy=path)

    def different(self, policy: str | None = None) -> dict[str, str]:
        """Details of the steps that differ."""
        report = self.verify(policy)
        return {step.name: step.detail for step in report.steps if step.outcome == "recomputed and different"}


def scores_of(forgery: Forgery, shift: float, seed: int = 5) -> np.ndarray:
    coins = np.array([row[1] for row in forgery.body["audit"]["canaries"]])
    return np.random.default_rng(seed).normal(size=len(coins)) + shift * coins
