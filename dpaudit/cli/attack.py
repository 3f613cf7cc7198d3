"""``dpaudit attack``: scores for a model and its canaries or members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.common import emit, json_option
from dpaudit.runs.progress import quiet_transformers

# Listed here so that -h does not import torch; a test keeps the list equal to the library's.
ATTACKS = (
    "grad-norm", "lira-offline", "loss", "loss-drop", "loss-residual", "min-k", "min-k++", "neighbourhood",
    "rmia-offline", "zlib",
)  # fmt: skip
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(name="attack")
@click.argument("model_dir", type=FOLDER)
@click.option(
    "--canaries", "canaries_path", type=FILE, required=True, help="Secret file, or CSV, JSONL, Parquet id,text[,label]."
)
@click.option("--attack", "attack_name", type=click.Choice(ATTACKS), help="Default: loss-drop with --base, else loss.")
@click.option("--base", "base_dir", type=FOLDER, help="The model before fine-tuning, for loss-drop and grad-norm.")
@click.option("--reference", "reference_dirs", type=FOLDER, multiple=True, help="Model never trained on these records.")
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
    model_dir: Path,
    canaries_path: Path,
    attack_name: str | None,
    base_dir: Path | None,
    reference_dirs: tuple[Path, ...],
    reference_losses: Path | None,
    population: Path | None,
    masked_model: Path | None,
    neighbours: int,
    expect: Path | None,
    max_length: int | None,
    k: float,
    offline_a: float,
    batch_size: int,
    device: str | None,
    out: Path,
    as_json: bool,
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
    quiet_transformers()
    from dpaudit.attacks.records import join
    from dpaudit.attacks.scores.functions import loss_drop_scores, residual_scores
    from dpaudit.attacks.scores.models import is_causal, load_model, load_tokenizer, longest_record, perturb
    from dpaudit.attacks.scores.score_model import score_model
    from dpaudit.privacy.errors import InvalidValue
    from dpaudit.runs.attack import holds_secret, kept_columns, load_canaries, refuse_overlap
    from dpaudit.storage.records import check_out, read_ids, read_values, write_scores

    check_out(out)
    if base_dir is not None and reference_losses is not None:
        raise InvalidValue("base and reference-losses both name what losses are compared with; give one.")
    compared = base_dir is not None or reference_losses is not None
    name = attack_name or ("loss-drop" if compared else "loss")
    if reference_losses is not None and name not in ("loss-drop", "loss-residual"):
        raise InvalidValue(f"attack={name} does not use reference-losses; leave it out or take loss-drop.")
    if name == "neighbourhood" and masked_model is None:
        raise InvalidValue("attack=neighbourhood perturbs texts with a masked language model; give --masked-model.")

    for folder in (model_dir, *([base_dir] if base_dir else []), *reference_dirs):
        is_causal(folder)  # a folder of another kind, or none, is refused before anything is loaded
    tokenizer = load_tokenizer(
        model_dir, needed=population is not None or masked_model is not None or not holds_secret(canaries_path)
    )
    limit = longest_record(model_dir, tokenizer, max_length)
    canaries, ids = load_canaries(canaries_path, tokenizer, model=model_dir, max_length=limit)
    if expect is not None:
        join(ids, dict.fromkeys(read_ids(expect), 0.0), str(expect))
    model = load_model(model_dir, device=device)
    if reference_losses is not None:
        drop = join(ids, read_values(reference_losses, "loss"), str(reference_losses))
        own = -score_model(model, canaries, attack="loss", batch_size=batch_size)
        scores = loss_drop_scores(own, drop) if name == "loss-drop" else residual_scores(own, drop)
    else:
        others: Any = None
        if population is not None:
            others, _ = load_canaries(population, tokenizer, model=model_dir, max_length=limit)
            refuse_overlap(others, canaries, population.name)
        around: list[list[list[int]]] = []
        if name == "neighbourhood" and masked_model is not None:
            filled = perturb(masked_model, canaries.texts, n=neighbours, device=device)
            around = [tokenizer(row, truncation=limit is not None, max_length=limit)["input_ids"] for row in filled]
        scores = score_model(
            model,
            canaries,
            attack=name,
            base=None if base_dir is None else load_model(base_dir, device=device),
            references=[load_model(path, device=device) for path in reference_dirs],
            population=others,
            neighbours=around,
            k=k,
            offline_a=offline_a,
            batch_size=batch_size,
        )
    kept = kept_columns(canaries_path, ids)
    write_scores(out, ids, scores, name, kept)
    distinct = len(set(scores.tolist()))
    payload = {
        "schema": "dpaudit.attack/1",
        "attack": name,
        "m": len(ids),
        "kind": canaries.kind,
        "tied": len(ids) - distinct,
        "score": {"min": float(scores.min()), "mean": float(scores.mean()), "max": float(scores.max())},
        "kept": list(kept),
        "out": str(out),
    }
    emit(
        payload,
        as_json,
        f"{len(ids)} scores by {name} (higher = member), {scores.min():.4g} to {scores.max():.4g}, "
        f"{len(ids) - distinct} tied; written to {out}" + (f" with {', '.join(kept)}" if kept else ""),
    )
