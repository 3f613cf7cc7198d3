"""Data-free pruning for DP-ZOPO: which coordinates move, decided from weights alone.

A mask computed from public initial weights, or from weights that are already private releases, is post-processing and
costs no privacy. Nothing here takes a record: the probe of ``zo_synflow`` is one constant token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.zeroth_order.coordinates import Mask
from dpaudit.trainers.zeroth_order.directions import Directions

SCORES = ("zo_synflow", "magnitude", "random")
STRATEGIES = ("static", "dynamic", "incremental")
_RANKS = (1.2, 0.8)  # weight of the best-ranked and of the last kept coordinate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaskRule:
    """How DP-ZOPO chooses the coordinates that are perturbed and updated.

    Parameters
    ----------
    keep : float
        Fraction of the trainable coordinates that move, in (0, 1].
    score : str
        ``zo_synflow``: forward-only GraSP/SynFlow hybrid of the DP-ZOPO code: R(θ) = Σ outputs at abs(θ) for one
        constant token, Hg from two zeroth-order gradients, score = Hg ⊙ abs(θ). With one query it is abs(θ) times
        a random weight, so take several. ``magnitude``: abs(θ). ``random``: a direction's values, for comparison.
    order : str
        ``smallest`` keeps the smallest abs(score), as the published code does; ``largest`` is SynFlow's custom.
    strategy : str
        ``static``: one mask from the initial weights. ``dynamic``: recomputed from the current private iterate at
        each stage's start and every ``refresh_every`` steps. ``incremental``: at each stage's start the share is
        ``keep * growth**stage`` and the masks are nested: a growing mask keeps all earlier coordinates, a shrinking
        one drops some.
    ranked : bool
        Weight the directions from 1.2 (first rank) to 0.8 (last kept), linearly in rank.
    refresh_every : int or None
        ``dynamic`` only.
    growth : float
        ``incremental`` only: factor of the share from stage to stage.
    queries : int
        ``zo_synflow`` only: directions in each gradient estimate.
    token : int
        ``zo_synflow`` only: the probe's token id.
    """

    keep: float
    score: str = "zo_synflow"
    order: str = "smallest"
    strategy: str = "static"
    ranked: bool = False
    refresh_every: int | None = None
    growth: float = 2.0
    queries: int = 8
    token: int = 1
    stage: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InvalidValue(f"keep={self.keep} must be in (0, 1]; it is the fraction of coordinates that move.")
        validate.one_of(SCORES, score=self.score)
        validate.one_of(("smallest", "largest"), order=self.order)
        validate.one_of(STRATEGIES, strategy=self.strategy)
        validate.positive(growth=self.growth)
        validate.integer_at_least(1, queries=self.queries)
        validate.integer_at_least(0, token=self.token, stage=self.stage)
        if self.refresh_every is not None:
            validate.integer_at_least(1, refresh_every=self.refresh_every)
            if self.strategy != "dynamic":
                raise InvalidValue(
                    f"refresh_every={self.refresh_every} with strategy={self.strategy!r} must have strategy='dynamic'."
                )

    @property
    def share(self) -> float:
        """Fraction of coordinates that move in this rule's stage."""
        if self.strategy != "incremental":
            return self.keep
        return min(1.0, self.keep * self.growth**self.stage)

    def for_stage(self, stage: int) -> MaskRule:
        """The rule as it reads in another stage."""
        return dataclasses.replace(self, stage=stage)

    def to_dict(self) -> dict[str, Any]:
        """Plain value for the log."""
        return dataclasses.asdict(self)


def pruning_mask(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    rule: MaskRule,
    directions: Directions,
    *,
    key: int = 0,
    previous: Mapping[str, Mask] | None = None,
) -> dict[str, Mask]:
    """The mask of a rule at the model's current weights.

    Parameters
    ----------
    directions : Directions
        Supplies the score's public random directions.
    key : int
        Separates the draws of one recomputation from those of the next.
    previous : mapping or None
        The mask to nest with (``incremental``).
    """
    scores = _scores(model, parameters, rule, directions, key)
    names = sorted(parameters)
    flat = torch.cat([scores[name].reshape(-1) for name in names]).abs_()
    if not bool(torch.isfinite(flat).all()):
        raise InvalidValue(
            f"score={rule.score!r} is not finite on this model, whose outputs overflow at |θ|; use score='magnitude'."
        )
    wanted = max(1, round(rule.share * flat.numel()))
    if rule.order == "largest":
        flat.neg_()
    if previous is not None and rule.strategy == "incremental":
        _nest(flat, previous, names, parameters, wanted)
    # A stable sort breaks ties by position, so that every machine keeps the same coordinates.
    kept = torch.sort(flat, stable=True).indices[:wanted]
    weight = None
    if rule.ranked:
        weight = torch.empty(flat.numel(), dtype=torch.float32)
        weight[kept] = torch.linspace(*_RANKS, steps=wanted, dtype=torch.float64).float()
    chosen = torch.zeros(flat.numel(), dtype=torch.bool)
    chosen[kept] = True
    masks, start = {}, 0
    for name in names:
        stop = start + parameters[name].numel()
        index = chosen[start:stop].nonzero().view(-1)
        if index.numel():
            own = None if weight is None else weight[start:stop][index].to(parameters[name].device)
            masks[name] = Mask(index=index.to(parameters[name].device), weight=own)
        start = stop
    return masks


def _nest(
    flat: Tensor,
    previous: Mapping[str, Mask],
    names: list[str],
    parameters: Mapping[str, nn.Parameter],
    wanted: int,
) -> None:
    """Shift the scores so that earlier coordinates rank first (a growing mask) or alone (a shrinking one)."""
    start = 0
    spread = float(flat.max() - flat.min()) + 1.0
    for name in names:
        if name in previous:
            flat[start + previous[name].index.cpu()] -= spread
        start += parameters[name].numel()


@torch.no_grad()
def _scores(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], rule: MaskRule, directions: Directions, key: int
) -> dict[str, Tensor]:
    weights = {name: p.detach().float().cpu() for name, p in parameters.items()}
    if rule.score == "magnitude":
        return {name: w.abs() for name, w in weights.items()}
    if rule.score == "random":
        return {
            name: directions.values(step=key, direction=0, tensor=f"prune/{name}", size=w.numel())
            for name, w in weights.items()
        }
    return _zo_synflow(model, parameters, rule, directions, key)


def _zo_synflow(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], rule: MaskRule, directions: Directions, key: int
) -> dict[str, Tensor]:
    """Hg ⊙ |θ| with the Hessian-gradient product from two forward-only gradients at |θ| and |θ| + εĝ."""
    device = next(iter(parameters.values())).device
    probe = torch.full((1, 1), rule.token, dtype=torch.long, device=device)
    absolute = {name: p.detach().abs() for name, p in model.named_parameters()}
    epsilon = 1e-3

    def response(weights: Mapping[str, Tensor]) -> float:
        output = torch.func.functional_call(model, dict(weights), (), {"input_ids": probe})
        value = output.logits if hasattr(output, "logits") else output[0] if isinstance(output, tuple) else output
        return float(value.double().sum())

    def shifted(base: Mapping[str, Tensor], query: int, scale: float) -> dict[str, Tensor]:
        moved = dict(base)
        for name in parameters:
            z = directions.values(
                step=key, direction=query, tensor=f"prune/{name}", size=base[name].numel(), device=device
            )
            moved[name] = base[name] + scale * z.view(base[name].shape)
        return moved

    def slopes(base: Mapping[str, Tensor]) -> list[float]:
        return [
            (response(shifted(base, q, epsilon)) - response(shifted(base, q, -epsilon))) / (2 * epsilon)
            for q in range(rule.queries)
        ]

    def combine(coefficients: list[float]) -> dict[str, Tensor]:
        total = {name: torch.zeros(p.numel(), device=device) for name, p in parameters.items()}
        for q, c in enumerate(coefficients):
            for name, sum_ in total.items():
                z = directions.values(step=key, direction=q, tensor=f"prune/{name}", size=sum_.numel(), device=device)
                sum_.add_(z, alpha=c / rule.queries)
        return total

    before = slopes(absolute)
    gradient = combine(before)
    ahead = dict(absolute)
    for name in parameters:
        ahead[name] = absolute[name] + epsilon * gradient[name].view(absolute[name].shape)
    after = slopes(ahead)
    curvature = combine([(b - a) / epsilon for a, b in zip(before, after, strict=True)])
    return {name: (curvature[name] * absolute[name].view(-1)).cpu() for name in parameters}
