"""``dpaudit calibrate``: the noise multiplier, steps or sampling probability that meets a target ε."""

from __future__ import annotations

import click

from dpaudit.cli.common import Number, delta_option, emit, json_option
from dpaudit.privacy.stage import Relation, Sampling, Stage


@click.command("calibrate")
@click.option("--epsilon", type=float, required=True, help="Target ε that the certified upper bound has to meet.")
@delta_option
@click.option("--sampling-probability", "q", type=Number(), default=None, help="q of every step, also as 256/60000.")
@click.option("--steps", type=int, default=None, help="Number of steps.")
@click.option("--noise-multiplier", "sigma", type=float, default=None, help="σ, to calibrate steps or q instead.")
@click.option("--sampling", default=None, help="poisson (when omitted), truncated_poisson, none, shuffle, ...")
@click.option("--max-batch", type=int, default=None, help="Cap of truncated_poisson.")
@click.option("--public-size", type=int, default=None, help="Number of records, for truncated_poisson.")
@click.option("--directions", type=int, default=1, show_default=True, help="Releases that share one minibatch.")
@click.option("--clip", default=None, help="per_direction or joint, with several directions.")
@click.option("--mechanism", default="gaussian", show_default=True, help="gaussian or laplace.")
@click.option("--quantile-sigma", type=float, default=None, help="σ of adaptive clipping's count query.")
@click.option("--relation", default=None, help="add_or_remove_one (when omitted), replace_one or zero_out.")
@click.option("--group-size", type=int, default=1, show_default=True, help="Units that change together.")
@click.option("--assume", multiple=True, help="shuffle_fixed_schedule; see dpaudit account -h.")
@click.option("--accountant", default="prv", show_default=True, help="prv, pld or rdp.")
@json_option
def command(
    epsilon: float,
    delta: float,
    q: float | None,
    steps: int | None,
    sigma: float | None,
    sampling: str | None,
    max_batch: int | None,
    public_size: int | None,
    directions: int,
    clip: str | None,
    mechanism: str,
    quantile_sigma: float | None,
    relation: str | None,
    group_size: int,
    assume: tuple[str, ...],
    accountant: str,
    as_json: bool,
) -> None:
    """The noise multiplier (or steps, or sampling probability) that meets a target ε.

    Give two of --sampling-probability, --steps and --noise-multiplier; the third is found.

    \b
    Example:
      dpaudit calibrate --epsilon 3 --delta 1e-5 --sampling-probability 0.0152 --steps 1320 --json
    """
    from dpaudit.runs.calibrate import calibrate

    given = {"sampling_probability": q, "steps": steps, "noise_multiplier": sigma}
    wanted = [name for name, value in given.items() if value is None]
    if len(wanted) != 1:
        raise click.UsageError("Give exactly two of --sampling-probability, --steps and --noise-multiplier.")
    missing = [name for name, value in (("sampling", sampling), ("relation", relation)) if value is None]
    chosen = Relation.parse(relation or Relation.ADD_OR_REMOVE_ONE)
    stage = Stage(
        sampling_probability=1.0 if q is None else q,
        noise_multiplier=1.0 if sigma is None else sigma,
        steps=1 if steps is None else steps,
        sampling=sampling or Sampling.POISSON,
        mechanism=mechanism,
        releases_per_step=directions,
        clip=clip,
        max_batch=max_batch,
        public_size=public_size,
        quantile_sigma=quantile_sigma,
    )
    found = calibrate(
        stage,
        wanted[0],
        epsilon=epsilon,
        delta=delta,
        relation=chosen,
        accountant=accountant,
        group_size=group_size,
        assume=assume,
    )
    payload = found.to_dict()
    if missing:
        payload |= {"defaulted": True, "defaulted_fields": sorted(missing)}
    emit(payload, as_json, str(found))
