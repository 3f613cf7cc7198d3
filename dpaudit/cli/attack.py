"""``dpaudit attack``: scores for a model and its canaries or members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.attacks.scores.needs import ATTACKS
from dpaudit.cli.common import Choice, IntRange, Result, argument, option, printed

ATTACK = Choice(sorted(ATTACKS))
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@printed("attack", runs_models=True)
@argument("model", metavar="MODEL_DIR", type=FOLDER)
@option("--canaries", type=FILE, required=True, help="Secret file, or CSV, JSONL, Parquet id,text[,label].")
@option("--attack", type=ATTACK, help="Default: loss-drop with --base, else loss.")
@option("--base", type=FOLDER, help="The model before fine-tuning, for loss-drop and grad-norm.")
@option("--reference", "references", type=FOLDER, multiple=True, help="Model never trained on these records.")
@option("--reference-losses", type=FILE, help="CSV/Parquet id,loss of a reference model, instead of --base.")
@option("--population", type=FILE, help="Records outside the audit, for rmia-offline.")
@option("--masked-model", type=FOLDER, help="Masked language model that makes the neighbours, for neighbourhood.")
@option("--neighbours", type=IntRange(min=1), default=25, show_default=True, help="Neighbours per record.")
@option("--expect", type=FILE, help="CSV/Parquet with the ids that must all be there, and no others.")
@option("--max-length", type=IntRange(min=2), help="Record length of the training run, in tokens.")
@option("--k", type=float, default=0.2, show_default=True, help="Share of tokens of min-k and min-k++.")
@option("--offline-a", type=float, default=0.3, show_default=True, help="RMIA's a, in [0, 1].")
@option("--batch-size", type=IntRange(min=1), default=64, show_default=True, help="Records per pass.")
@option("--device", help="Torch device; default cuda where there is one.")
@option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Scores, .parquet or .csv.")
def command(model: Path, canaries: Path, attack: str | None, out: Path, **options: Any) -> Result:
    """Score canaries or members under MODEL_DIR; higher = member.

    Scores from ids and texts, never from coins. Writes the columns id, score, attack, and copies member, run, copies
    and pair where a table has them, for dpaudit audit; nothing of the secret file is copied. One attack per file:
    choosing among attacks after looking at the coins is what audits must not do.

    \b
    Example:
      dpaudit attack runs/first/release/model --canaries runs/first/private/canaries.secret.parquet \\
        --base base-model --out scores.parquet
    """
    from dpaudit.runs.attack import AttackOptions
    from dpaudit.runs.attack import attack as scores_of

    return scores_of(model, canaries, out=out, attack=attack, options=AttackOptions(**options))
