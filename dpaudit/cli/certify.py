"""``dpaudit certify``: all of it, from a TOML file or a trained run folder to certificate and report."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import emit, json_option, tell
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.verdict import EXIT_CODES


@click.command("certify")
@click.argument("source", metavar="CONFIG.toml|RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Run folder; required with a TOML file.")
@click.option("--control", is_flag=True, help="Also train a positive control, which measures the attack's power.")
@click.option("--controls", type=click.IntRange(min=1), help="Train that many controls and count them together.")
@click.option("--examine", is_flag=True, help="Also examine the training step white-box, on synthetic records.")
@click.option(
    "--sign-key", type=click.Path(path_type=Path), help="Ed25519 private key (PEM) to sign the certificate with."
)
@json_option
def command(
    source: Path,
    out: Path | None,
    control: bool,
    controls: int | None,
    examine: bool,
    sign_key: Path | None,
    as_json: bool,
) -> None:
    """Train (for a TOML file), account, attack, audit, certify and report.

    Exit code: 0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage.

    \b
    Example:
      dpaudit certify examples/certify.toml --out runs/first
      dpaudit certify runs/first
    """
    from dpaudit.runs.config import read_config
    from dpaudit.runs.run import begin, certify_phase, control_phase, examine_phase, reopen, summary, train_phase

    key = sign_key.read_bytes() if sign_key is not None else None
    if source.is_dir():
        if out is not None and out.resolve() != source.resolve():
            raise InvalidValue(f"--out {out} has no meaning with the run folder {source}; leave it out.")
        job = reopen(source)
    else:
        if out is None:
            raise InvalidValue(
                f"--out is missing; name the run folder, as in: dpaudit certify {source} --out runs/first."
            )
        config = read_config(source)
        job = train_phase(begin(config, source.resolve().parent, out), tell=tell)
    if control or controls is not None:
        control_phase(job, runs=controls or 1, tell=tell)
    if examine:
        examine_phase(job)
    published = certify_phase(job, signing_key=key)
    verdict = published.certificate["predicate"]["verdict"]["name"]
    payload = {
        "schema": "dpaudit.certify/1",
        "verdict": verdict,
        "certificate": str(job.folder.certificate),
        "report": str(job.folder.report),
        "claimed_epsilon": job.config.claim.epsilon,
        "delta": job.config.claim.delta,
        "epsilon_upper": smallest_upper(published.guarantees),
        "epsilon_lower": published.result.epsilon_lower,
        "ceiling": published.result.ceiling,
        "power": published.result.power,
        "power_lower": published.result.power_lower,
    }
    emit(payload, as_json, summary(job, published))
    raise SystemExit(EXIT_CODES[verdict])
