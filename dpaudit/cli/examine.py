"""``dpaudit examine``: white-box tests of a training step against the plan it claims to follow."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, Choice, Result, Said, argument, option, printed, tell

ACCOUNTANT = Choice(["prv", "pld", "rdp"])


@printed("examine", runs_models=True)
@argument("source", metavar="CONFIG.toml|MODULE:FUNCTION", required=False)
@option("--budget", default="1min", show_default=True, help="What to spend, such as 30s, 2min or '2000 steps'.")
@option("--accountant", default="pld", show_default=True, type=ACCOUNTANT, help="Recomputes the claimed ε.")
@option(
    "--release",
    type=PATH,
    help="Folder of an imported run: findings and tests, without witnesses, are left there for certify_run.",
)
@option("--explain", metavar="NAME", help="What a finding's name means, how to mend it, where it is known from.")
def command(source: str | None, release: Path | None, explain: str | None, **options: str) -> Result:
    """Test a training step from inside: sensitivity, noise, sampler, ledger, and one canary a step.

    With a configuration, dpaudit's own trainer is examined as that file sets it up, every stage of it, on synthetic
    records of the same form; no private record is read but for their number. MODULE:FUNCTION names a function without
    arguments that returns (adapter, plan), for a step of any library.

    Exit code: 0 nothing found that convicts (which proves no more than the tests listed exclude), 1 violated, 64 bad
    usage, or a step that could not be examined.

    \b
    Example:
      dpaudit examine examples/certify.toml --budget 2min
      dpaudit examine mypackage.training:step_adapter --json
      dpaudit examine --explain clipped_after_averaging
    """
    if explain is not None:
        from dpaudit.attacks import explain as explained

        text = explained(explain)
        return Said({"schema": "dpaudit.explain/1", "name": explain, "text": text}, text)
    if source is None:
        raise click.UsageError("Give CONFIG.toml or MODULE:FUNCTION, or --explain NAME.")
    from dpaudit.runs.examine import examined

    return examined(source, release=release, tell=tell, **options)
