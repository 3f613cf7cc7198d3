"""``dpaudit attack``: scores for a model and its canaries or members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.attacks.scores.needs import ATTACKS
from dpaudit.cli.common import emit_result, json_option

ATTACK = click.Choice(sorted(ATTACKS))
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(name="attack")
@click.argument("model_dir", type=FOLDER)
@click.option(
    "--canaries", "canaries_path", type=FILE, required=True, help="Secret file, or CSV, JSONL, Parquet id,text[,label]."
)
@click.option("--attack", "attack_name", type=ATTACK, help="Default: loss-drop with --base, else loss.")
@click.option("--base", type=FOLDER, help="The model before fine-tuning, for loss-drop and grad-norm.")
@click.option("--reference", "references", type=FOLDER, multiple=True, help="Model never trained on these records.")
@click.option("--reference-losses", type=FILE, help="CSV/Parquet id,loss of a reference model, instead of --base.")
@click.option("--population", type=FILE, help="Records outside the audit, for rmia-offline.")
@click.option("--masked-model", type=FOLDER, help="Masked language model that makes the neighbours, for neighbourhood.")
@click.option("--neighbours", type=click.IntRange(min=1), default=25, show_default=True, help="Neighbours per record.")
@click.option("--expect", type=FILE, help="CSV/Parquet with the ids that must all be there, and no others.")
@click.option("--max-length", type=click.IntRange(min=2), help="Record length of the training run, in tokens.")
@click.option("--k", type=float, default=0.2, show_default=True, help="Share of tokens of min-k and min-k++.")
@click.option("--offline-a", type=float, default=0.3, show_default=True, help="RMIA's a, in [0, 1].")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Records per pass.")
@click.option("--device", help="Torch device; default cuda where there is one.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Scores, .parquet or .csv.")
@json_option
def command(
    model_dir: Path, canaries_path: Path, attack_name: str | None, out: Path, as_json: bool, **options: Any
) -> None:
    """Score canaries or members under MODEL_DIR; higher = member.

    Scores from ids and texts, never from coins. Writes the columns id, score, attack, and copies member, run, copies
    and pair where a table has them, for dpaudit audit; nothing of the secret file is copied. One attack per file:
    choosing among attacks after looking at the coins is what audits must not do.

    \b
    Example:
      dpaudit attack runs/first/release/model --canaries runs/first/private/canaries.secret.parquet \\
        --base base-model --out scores.parquet
    """
    from dpaudit.runs.attack import AttackOptions, attack

    chosen = AttackOptions(**options)
    emit_result(attack(model_dir, canaries_path, out=out, attack=attack_name, options=chosen), as_json)
