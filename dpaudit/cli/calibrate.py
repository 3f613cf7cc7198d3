"""``dpaudit calibrate``: the noise multiplier, steps or sampling probability that meets a target ε."""

from __future__ import annotations

from typing import Any

import click

from dpaudit.cli.common import Number, delta_option, emit_result, group_option, json_option, relation_option


@click.command("calibrate")
@click.option("--epsilon", type=float, required=True, help="Target ε that the certified upper bound has to meet.")
@delta_option
@click.option("--sampling-probability", type=Number(), help="q of every step, also as 256/60000.")
@click.option("--steps", type=int, help="Number of steps.")
@click.option("--noise-multiplier", type=float, help="σ, to calibrate steps or q instead.")
@click.option("--sampling", help="poisson (when omitted), truncated_poisson, none, shuffle, ...")
@click.option("--max-batch", type=int, help="Cap of truncated_poisson.")
@click.option("--public-size", type=int, help="Number of records, for truncated_poisson.")
@click.option(
    "--directions",
    "releases_per_step",
    type=int,
    default=1,
    show_default=True,
    help="Releases that share one minibatch.",
)
@click.option("--clip", help="per_direction or joint, with several directions.")
@click.option("--mechanism", default="gaussian", show_default=True, help="gaussian or laplace.")
@click.option("--quantile-sigma", type=float, help="σ of adaptive clipping's count query.")
@relation_option
@group_option
@click.option("--assume", multiple=True, help="shuffle_fixed_schedule; see dpaudit account -h.")
@click.option("--accountant", default="prv", show_default=True, help="prv, pld or rdp.")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """The noise multiplier (or steps, or sampling probability) that meets a target ε.

    Give two of --sampling-probability, --steps and --noise-multiplier; the third is found.

    \b
    Example:
      dpaudit calibrate --epsilon 3 --delta 1e-5 --sampling-probability 0.0152 --steps 1320 --json
    """
    from dpaudit.runs.calibrate import calibrate_missing

    emit_result(calibrate_missing(**options), as_json)
