"""All of it: train (for a configuration), account, attack, audit, certify and report."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.observers import observer_rows
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.level import LineName, headline
from dpaudit.privacy.rounding import exact_text, lower_text, nearest_text
from dpaudit.privacy.text import printable
from dpaudit.privacy.verdict import Verdict
from dpaudit.runs.config import read_config, with_device
from dpaudit.runs.follower import follow_the_first
from dpaudit.runs.publish import Published
from dpaudit.runs.run import Job, begin, certify_phase, control_phase, examine_phase, reopen, train_phase
from dpaudit.storage.run_folder import read_json

if TYPE_CHECKING:
    from dpaudit.auditing.result import AuditResult
    from dpaudit.certificates.statement import LineModel


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedRun:
    """What :func:`dpaudit.certify` made: where the certificate lies, and the numbers that it states.

    Attributes
    ----------
    verdict : Verdict
        ``consistent``, ``violated``, ``accounting_mismatch``, ``inconclusive`` or ``invalid_audit``.
    certificate, report : Path
        The statement, and the page for people.
    claimed_epsilon, delta : float
    epsilon_upper : float or None
        Smallest certified upper bound on ε of the steps that were counted; None where no accountant proves one.
    epsilon_lower : float or None
        Lower bound on ε that the attack showed, with confidence 0.95.
    ceiling : float
        Largest lower bound that a perfect attack could have shown.
    power, power_lower : float or None
        Power of the attack against the control's fault, and the lower end of its 95 % interval; None if not measured.
    in_run_epsilon_lower : float or None
        Lower bound on ε, with confidence 0.95, that who sees every noisy update can show; None without an in-run audit.
    in_run_power_lower : float or None
        Lower end of the 95 % interval of that observer's power against its control's fault.
    level : int
        How far the evidence reaches, 0 to 3; level 4 takes signatures, which ``dpaudit verify`` looks at.
    text : str
        A few lines for people.
    """

    verdict: Verdict
    certificate: Path
    report: Path
    claimed_epsilon: float
    delta: float
    epsilon_upper: float | None
    epsilon_lower: float | None
    ceiling: float | None
    power: float | None
    power_lower: float | None
    in_run_epsilon_lower: float | None
    in_run_power_lower: float | None
    level: int
    text: str = dataclasses.field(repr=False)

    @property
    def exit_code(self) -> int:
        """What a command line returns for the verdict."""
        return self.verdict.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.certify/1``."""
        values: dict[str, Any] = {"schema": "dpaudit.certify/1"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = str(value) if isinstance(value, Path) else value
        del values["text"]
        return values

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


def certify(
    source: str | Path,
    out: str | Path | None = None,
    *,
    controls: int = 0,
    examine: bool = False,
    examine_budget: str | None = None,
    signing_key: bytes | None = None,
    device: str | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> CertifiedRun:
    """Certify a training run: from a configuration (it trains first) or from a trained run folder.

    A run that was stopped goes on where it stopped: steps that were counted stay charged. A certificate that was issued
    is never rewritten. Where a launcher started several processes, the first alone returns: the others end their
    program with the training phase.

    Parameters
    ----------
    source : path
        TOML configuration, or a run folder.
    out : path, optional
        Run folder to create or resume; required with a configuration.
    controls : int, default=0
        Positive controls to train on public records; the power of the attack is measured on them together.
    examine : bool, default=False
        Also examine the training step white-box, on synthetic records.
    examine_budget : str, optional
        What the examination may spend ("1min" where it is left out); it implies ``examine``. Level 2 takes one in full,
        and a budget that cuts it short is told in its line.
    signing_key : bytes, optional
        Ed25519 private key (PEM) to sign the certificate with.
    device : str, optional
        Torch device to train on, in place of the configuration's ``optimizer.device``.
    tell : callable, optional
        Receives what is worth knowing before the first step, one sentence at a time.

    Returns
    -------
    CertifiedRun

    Raises
    ------
    InvalidValue
        If an argument or the configuration cannot be used; nothing has run then.
    InvalidEvidence
        If the folder's evidence is incomplete or contradicts itself.

    Examples
    --------
    ::

        run = dpaudit.certify("examples/certify.toml", out="runs/first")
        print(run)
        report = dpaudit.verify(run.certificate)
    """
    job = _job(Path(source), None if out is None else Path(out), device, tell)
    if controls:
        job = control_phase(job, runs=controls, tell=tell)
    if examine or examine_budget is not None:
        job = examine_phase(job, budget=examine_budget or "1min", tell=tell)
    published = certify_phase(job, signing_key=signing_key)
    result, body = published.result, published.certificate.predicate
    inside = {} if body.in_run is None else body.in_run.result
    return CertifiedRun(
        verdict=body.verdict.name,
        certificate=job.folder.certificate,
        report=job.folder.report,
        claimed_epsilon=job.config.claim.epsilon,
        delta=job.config.claim.delta,
        epsilon_upper=smallest_upper(published.guarantees),
        epsilon_lower=result.epsilon_lower,
        ceiling=result.ceiling,
        power=result.power,
        power_lower=result.power_lower,
        in_run_epsilon_lower=(inside.get("primary") or {}).get("epsilon_lower"),
        in_run_power_lower=inside.get("power_lower"),
        level=body.level or 0,
        text=summary(job, published),
    )


def _job(source: Path, out: Path | None, device: str | None, tell: Callable[[str], None]) -> Job:
    if not source.exists():
        raise InvalidValue(
            f"{source} does not exist; give a configuration ('dpaudit init' writes one) or a run folder."
        )
    if source.is_dir():
        follow_the_first(None)
        if out is not None and out.resolve() != source.resolve():
            raise InvalidValue(f"--out {out} has no meaning with the run folder {source}; leave it out.")
        return reopen(source)
    if out is None:
        raise InvalidValue(f"--out is missing; name the run folder, as in: dpaudit certify {source} --out runs/first.")
    config = with_device(read_config(source), device)
    follow_the_first(config)
    return train_phase(begin(config, source.resolve().parent, out), tell=tell)


def summary(job: Job, published: Published) -> str:
    """Claim, the four lines of evidence, attack, exposure, utility, level and verdict, files: a line each."""
    config, result, body = job.config, published.result, published.certificate.predicate
    claim, facts, exposure, verdict = config.claim, job.record.facts, published.exposure, body.verdict
    what = "perplexity" if config.model.task == "causal-lm" else "accuracy"
    before, after = facts.get("heldout_before"), facts.get("heldout_after")
    level = body.level or 0
    lines = [
        f"claim           ε ≤ {exact_text(claim.epsilon)} at δ = {exact_text(claim.delta)}, {claim.relation},"
        f" unit: {claim.unit}",
        *(row for line in body.lines or () for row in _evidence_rows(line)),
        f"attack          {result.correct} of {result.guesses} guesses right among {config.canaries.count} canaries;"
        f" a perfect one could have shown ε ≥ {lower_text(result.ceiling)}",
        f"power           {_power(result, job, decides=body.in_run is None)}",
        *(
            f"{row.observer}: ε ≥ {row.lower} ({row.guesses} guesses right); power: {row.power}; smallest shortfall of"
            f" noise seen with probability 0.95: {row.visible}"
            for row in observer_rows(body)
            if body.in_run is not None
        ),
        f"exposure        median {nearest_text(exposure.get('median'))} bits of at most"
        f" {nearest_text(exposure.get('largest_possible'))}; its mean is"
        f" {nearest_text(exposure.get('mean_without_leakage'))} without leakage",
        f"public text     {what} {nearest_text(before)} before, {nearest_text(after)} after private fine-tuning",
        f"verdict         {verdict.name.upper()}, level {level} of 4. {headline(verdict.name, level, verdict.reasons)}"
        f" {verdict.meaning}",
        f"files           {job.folder.certificate} and {job.folder.report}",
    ]
    if not job.folder.examination.exists():
        lines.append(
            f"next            level 2 and above take an examination: unless somebody has this certificate, remove"
            f" {job.folder.certificate} and run dpaudit certify {job.folder.root} --examine"
        )
    return "\n".join(map(printable, lines))


def _evidence_rows(line: LineModel) -> Iterator[str]:
    """One line of evidence, and below it each reason why it is not shown."""
    name = LineName(line.name)
    yield f"{name.title.lower().ljust(15)} {line.standing}: {line.text}"
    if name is not LineName.ORIGIN:
        yield from (f"{'':15} - {reason}" for reason in line.reasons)


def _power(result: AuditResult, job: Job, *, decides: bool) -> str:
    """Power of the model attack; ``decides`` where no observer of every update stands beside it."""
    from dpaudit.auditing import AuditPlan

    needed = AuditPlan.from_dict(read_json(job.folder.audit_plan)).control_canaries if decides else None
    least = "" if needed is None else f"; a verdict takes a control of at least {needed} canaries"
    if result.power is None or result.power_lower is None:
        return f"unknown (no positive control was run{least})"
    return f"{lower_text(result.power, 2)}, at least {lower_text(result.power_lower, 2)} with 95 % confidence{least}"
