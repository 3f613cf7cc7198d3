"""A model whose forward pass keeps something of the records is refused by name, and left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers import CollatedRecords, Directions, preflight, train, zo_train
from dpaudit.trainers.preflight.check import preflight_losses
from dpaudit.trainers.zeroth_order.stages import ZOStage
from tests.trainers.test_state import PLACES, PLAN, RECORDS, Writes, collate, content, losses

SOURCE = CollatedRecords(RECORDS, collate)


@pytest.mark.parametrize("where", PLACES)
def test_whatever_a_forward_pass_writes_is_refused_by_name(where: str) -> None:
    model = Writes(where)
    before = content(model)
    name = "stats" if where == "weights" else where.split()[0]
    for check in (preflight, preflight_losses):
        with pytest.raises(PrivacyRefusal, match=rf"state '{name}' \(Writes\) is written by the forward pass"):
            check(model, SOURCE, loss_fn=losses)
        assert content(model) == before
    with pytest.raises(PrivacyRefusal, match="is written by the forward pass"):
        train(model, RECORDS, PLAN, collate=collate, loss_fn=losses, journal=MemoryJournal())
    with pytest.raises(PrivacyRefusal, match="is written by the forward pass"):
        stage = ZOStage(plan=PLAN, learning_rate=1e-2, scale=1e-3)
        options: dict[str, Any] = {"collate": collate, "loss_fn": losses, "journal": MemoryJournal()}
        zo_train(model, RECORDS, stage, directions=Directions(run="written"), **options)
    assert content(model) == before


class Initialised(Writes):
    """Sets its scale from the first batch, once."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.mean.any():
            self.mean.copy_(x.detach().mean(0))
        return self.head(x)  # type: ignore[no-any-return]


class Cached(Writes):
    """Keeps a table that depends on no content."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or len(self.kept) < len(x):
            self.kept = torch.arange(8.0)
        return self.head(x)  # type: ignore[no-any-return]


class Average(Writes):
    """Keeps a moving average of a frozen copy of its weights."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.teacher = nn.Linear(2, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.data.mul_(0.9).add_(x.mean())
        return self.head(x)  # type: ignore[no-any-return]


def test_a_first_batch_that_is_kept_is_refused_and_a_constant_cache_is_not() -> None:
    with pytest.raises(PrivacyRefusal, match=r"state 'mean' \(Initialised\)"):
        preflight(Initialised("nowhere"), SOURCE, loss_fn=losses)
    model = Cached("nowhere")
    assert preflight(model, SOURCE, loss_fn=losses).collator and model.kept is None
    averaging = Average("nowhere")
    before = averaging.teacher.weight.clone()
    with pytest.raises(PrivacyRefusal, match=r"parameter 'teacher\.weight' \(Linear\)"):
        preflight(averaging, SOURCE, loss_fn=losses)
    assert torch.equal(before, averaging.teacher.weight)


class Exchanges(Writes):
    """Goes over to another module, for good, when a batch is small; or makes its weight anew at every call."""

    def __init__(self, what: str) -> None:
        super().__init__("nowhere")
        self.what, self.form, self.body = what, "sparse", nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "module" and self.form == "sparse" and len(x) < 4:
            other = nn.Linear(2, 2)
            other.weight, other.bias = self.body.weight, self.body.bias
            self.body, self.form = other, "full"
        if self.what == "parameter":
            self.body.weight = nn.Parameter(self.body.weight.detach())
        return self.head(self.body(x) * (1.0 if self.form == "sparse" else 2.0))  # type: ignore[no-any-return]


def test_a_forward_pass_that_exchanges_a_module_or_parameter_is_refused_by_name() -> None:
    model = Exchanges("module")
    body, before = model.body, content(model)
    for check in (preflight, preflight_losses):
        with pytest.raises(PrivacyRefusal, match="another module in the place of 'body'"):
            check(model, SOURCE, loss_fn=losses)
        assert model.body is body and model.form == "sparse" and content(model) == before
    with pytest.raises(PrivacyRefusal, match="another module in the place of 'body'"):
        train(model, RECORDS, PLAN, collate=collate, loss_fn=losses, journal=MemoryJournal())
    with pytest.raises(PrivacyRefusal, match=r"parameter 'body\.weight' \(Linear\) is written by the forward pass"):
        preflight(Exchanges("parameter"), SOURCE, loss_fn=losses)


def test_a_loss_that_keeps_something_is_refused() -> None:
    seen: list[Tensor] = []

    def queue(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found = losses(model, batch)
        seen.append(found.detach().mean())
        return found + torch.stack(seen).sum()

    with pytest.raises(PrivacyRefusal, match="another loss at every call"):
        preflight(Writes("nowhere"), SOURCE, loss_fn=queue)

    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(()))

        def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            found = losses(model, batch)
            self.centre += found.detach().mean()
            return found

    with pytest.raises(PrivacyRefusal, match=r"state 'centre' \(Centre\)"):
        preflight(Writes("nowhere"), SOURCE, loss_fn=Centre())


def test_norms_with_running_statistics_are_named() -> None:
    class Normed(Writes):
        def __init__(self) -> None:
            super().__init__("nowhere")
            self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x[:, None])[:, 0])  # type: ignore[no-any-return]

    model = Normed()
    for check in (preflight, preflight_losses):
        with pytest.raises(PrivacyRefusal, match=r"'norm' \(InstanceNorm1d\) keeps running statistics"):
            check(model, SOURCE, loss_fn=losses)
    model.norm.eval()
    assert preflight(model, SOURCE, loss_fn=losses).collator
    assert model.norm.num_batches_tracked == 0 and not model.norm.training


def test_experts_that_choose_over_the_batch_are_refused() -> None:
    class Experts(Writes):
        """Each expert takes the half of the batch that wants it most."""

        def __init__(self, auxiliary: float) -> None:
            super().__init__("nowhere")
            self.router, self.expert, self.auxiliary = nn.Linear(2, 1), nn.Linear(2, 2), auxiliary

        def forward(self, x: Tensor) -> Tensor:
            score = self.router(x)[:, 0]
            if not self.auxiliary:
                chosen = score >= score.median()
                return self.head(x + chosen[:, None] * self.expert(x))  # type: ignore[no-any-return]
            return self.head(x) + self.auxiliary * score.sigmoid().mean()  # type: ignore[no-any-return]

    def with_auxiliary(model: Any, batch: dict[str, Tensor]) -> Tensor:
        share = model.router(batch["x"]).sigmoid().mean()
        return F.cross_entropy(model.head(batch["x"]), batch["labels"], reduction="none") + 0.01 * share

    with pytest.raises(PrivacyRefusal, match="of the other examples changes"):
        preflight(Experts(0.0), SOURCE, loss_fn=losses)
    with pytest.raises(PrivacyRefusal, match="of the other examples changes"):
        preflight(Experts(0.01), SOURCE, loss_fn=with_auxiliary)


def test_weights_that_are_not_finite_are_named() -> None:
    model = Writes("nowhere")
    with torch.no_grad():
        model.head.weight[1, 1] = torch.nan
    with pytest.raises(UnsupportedModel, match=r"'head\.weight'"):
        preflight(model, SOURCE, loss_fn=losses)
    with pytest.raises(InvalidValue, match="not finite although every weight is"):
        preflight(Writes("nowhere"), SOURCE, loss_fn=lambda m, b: losses(m, b).log() * 0 / 0)


def test_records_that_move_nothing_show_nothing() -> None:
    with pytest.raises(InvalidValue, match="nothing could be checked"):
        preflight(Writes("nowhere"), SOURCE, loss_fn=lambda m, b: losses(m, b) * 0)
