"""``dpaudit audit``: scores in; lower bounds on ε, ceiling, power and verdict out."""

from __future__ import annotations

from typing import Any

from dpaudit.cli.common import PATH, Choice, Result, argument, delta_option, option, printed

RELATIONS = Choice(["add_or_remove_one", "replace_one", "zero_out"])


@printed("audit")
@argument("scores", type=PATH)
@option("--claimed-epsilon", type=float, required=True, help="The claimed ε, for one unit of privacy.")
@delta_option
@option("--manifest", type=PATH, help="Manifest or secret canary file: the coins, and what they commit to.")
@option("--commitment", help="Digest published before training, which the manifest must open.")
@option("--plan", type=PATH, help="audit_plan.json frozen before training; fixes the design.")
@option("--coins", type=Choice(["fair", "none"]), default="fair", show_default=True, help="none: any split.")
@option("--design", type=Choice(["one_run", "many_runs"]), help="Default: one_run.")
@option("--relation", type=RELATIONS, help="Default: add_or_remove_one, echoed as defaulted.")
@option("--unit", default="record", show_default=True, help="Unit of privacy of the claim.")
@option("--guesses", type=int, help="Guesses per side, instead of the rule; fix it before looking.")
@option("--alpha", type=float, default=0.05, show_default=True, help="Total failure probability.")
@option("--attack", help="The pre-registered attack, where the file holds several.")
@option("--copies", type=int, help="Copies of each inserted canary; default: column copies, or 1.")
@option("--group-claim", type=float, help="ε for groups of that many records (dpaudit account --group-size).")
@option("--ledger", type=PATH, help="Ledger or run folder: accounted ε, group ε, declared curve.")
@option("--accounted-upper", type=float, help="The accountant's certified ε; the bound is tested against it too.")
@option("--control", type=PATH, help="Scores of a positive control, column run for several.")
@option("--fault", default="unspecified", help="The control's planted fault, in words.")
def command(**options: Any) -> Result:
    """Audit a claim from SCORES: CSV or Parquet with id,member,score[,run][,copies][,pair]; higher score = member.

    A bare file means that you assert independent fair coins; --manifest makes them verified when they open the
    commitment; --coins none (any train/holdout split) gives AUC and TPR only. Real records that fair coins held out
    before training are audited the same way. replace_one needs a column pair: two canaries, exactly one inserted.

    Exit code: 0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage.

    \b
    Example:
      dpaudit audit scores.csv --claimed-epsilon 4 --delta 1e-5
      dpaudit audit scores.parquet --claimed-epsilon 4 --delta 1e-5 --manifest canaries.json --control leaky.csv --json
      dpaudit audit scores.csv --claimed-epsilon 4 --delta 1e-5 --ledger runs/first
    """
    from dpaudit.runs.audit import audit_defaulting

    return audit_defaulting(**options)
