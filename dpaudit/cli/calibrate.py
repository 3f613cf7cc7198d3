"""``dpaudit calibrate``: the noise multiplier, steps or sampling probability that meets a target ε."""

from __future__ import annotations

from typing import Any

import click

from dpaudit.cli.common import Result, delta_option, group_option, option, printed, relation_option
from dpaudit.privacy.stage_text import number


class Number(click.ParamType[float]):
    """A command-line number that may be written as a fraction."""

    name = "float or fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read :func:`number`."""
        try:
            return number(value) if isinstance(value, str) else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or a fraction such as 256/60000.", param, ctx)


@printed("calibrate")
@option("--epsilon", type=float, required=True, help="Target ε that the certified upper bound has to meet.")
@delta_option
@option("--sampling-probability", type=Number(), help="q of every step, also as 256/60000.")
@option("--steps", type=int, help="Number of steps.")
@option("--noise-multiplier", type=float, help="σ, to calibrate steps or q instead.")
@option("--sampling", help="poisson (when omitted), truncated_poisson, none, shuffle, ...")
@option("--max-batch", type=int, help="Cap of truncated_poisson.")
@option("--public-size", type=int, help="Number of records, for truncated_poisson.")
@option("--directions", "releases_per_step", default=1, show_default=True, help="Releases that share one minibatch.")
@option("--clip", help="per_direction or joint, with several directions.")
@option("--mechanism", default="gaussian", show_default=True, help="gaussian or laplace.")
@option("--quantile-sigma", type=float, help="σ of adaptive clipping's count query.")
@relation_option
@group_option
@option("--assume", multiple=True, help="shuffle_fixed_schedule; see dpaudit account -h.")
@option("--accountant", default="prv", show_default=True, help="prv, pld or rdp.")
def command(**options: Any) -> Result:
    """The noise multiplier (or steps, or sampling probability) that meets a target ε.

    Give two of --sampling-probability, --steps and --noise-multiplier; the third is found.

    \b
    Example:
      dpaudit calibrate --epsilon 3 --delta 1e-5 --sampling-probability 0.0152 --steps 1320 --json
    """
    from dpaudit.runs.calibrate import calibrate_missing

    return calibrate_missing(**options)
