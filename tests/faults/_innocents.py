"""Correct training steps of both families and of Opacus' hooks: an examination of any of them must find nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.faults._case import Case
from tests.faults._field import SlicedWhole
from tests.faults._plain import PlainLoop, TokenLoop
from tests.faults._problems import WORDS, first_order, zeroth_order


class Deeper(nn.Module):
    """Two layers with a gain, no bias, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.head = nn.Linear(6, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(self.embedding(tokens)))
        return self.head(torch.tanh(self.second(hidden)))


def _loop(kind: type[PlainLoop]) -> Callable[[int], Case]:
    return lambda seed: Case((made := kind(seed)).adapter(), made.plan())


def _deeper(seed: int) -> Case:
    torch.manual_seed(seed + 1000)
    return Case(*first_order(seed, model=Deeper(), noise_multiplier=2.0))


def _opacus(seed: int) -> Case:
    from tests.faults._opacus import opacus_case

    return opacus_case(seed, entropy=True, known_faults=False)


INNOCENTS: dict[str, Callable[[int], Case]] = {
    "plain loop": _loop(PlainLoop),
    "plain loop with embedding": _loop(TokenLoop),
    "noise drawn whole and sliced": _loop(SlicedWhole),
    "first order": lambda seed: Case(*first_order(seed)),
    "first order, tied": lambda seed: Case(*first_order(seed, tied=True)),
    "first order, deeper": _deeper,
    "first order, per-layer clipping": lambda seed: Case(*first_order(seed, clipping="per_layer")),
    "zeroth order": lambda seed: Case(*zeroth_order(seed)),
    "zeroth order, 4 directions": lambda seed: Case(*zeroth_order(seed, directions=4)),
    "zeroth order, 4 joint": lambda seed: Case(*zeroth_order(seed, directions=4, clip="joint", proximal=1.0)),
    "Opacus hooks": _opacus,
}
