"""A table as long as the batch is not taken for the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers import GhostClipping
from dpaudit.trainers.huggingface.losses import per_example_losses
from tests.trainers.ghost.ghost_oracle import gradients, norms_of
from tests.trainers.ghost.test_families import GPT2, build


class Described(nn.Module):
    """Class descriptions, a buffer or an embedding, through a trained projection."""

    def __init__(self, classes: int, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.register_buffer("table", torch.randn(classes, 4))
        self.names = nn.Embedding(classes, 4)
        self.project, self.query = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = {
            "buffer": lambda: self.table,
            "computed": lambda: self.table * 2,
            "embedding": lambda: self.names(torch.arange(len(self.table))),
        }[self.kind]()
        return self.query(x) @ self.project(rows).T  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["buffer", "computed", "embedding"])
@pytest.mark.parametrize("lean", [False, True])
def test_a_table_of_as_many_rows_as_examples_is_refused_by_name(kind: str, lean: bool) -> None:
    model, x = Described(5, kind), torch.randn(5, 4)
    with GhostClipping(model, 1.0, lean=lean) as clipper:
        losses = F.cross_entropy(model(x), torch.arange(5), reduction="none")
        with pytest.raises(
            UnsupportedModel, match=r"(project|names)\.weight .* first axis of 5 that is not the batch's"
        ):
            clipper.backward(losses)
    assert all(p.grad is None for p in model.parameters())


def test_positions_as_many_as_examples_are_refused_too() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head((self.tokens(ids) + self.places(torch.arange(ids.shape[1]))).mean(1))  # type: ignore[no-any-return]

    model, ids = Positions(), torch.randint(0, 9, (6, 6))
    with GhostClipping(model, 1.0) as clipper:
        losses = F.cross_entropy(model(ids), torch.zeros(6, dtype=torch.long), reduction="none")
        with pytest.raises(UnsupportedModel, match=r"places\.weight"):
            clipper.backward(losses)


def test_what_the_model_makes_itself_for_every_example_stays_right() -> None:
    model = build("bert", torch.float64).train()  # token types, made inside, one row an example
    ids, labels = torch.randint(3, 29, (4, 6)), torch.tensor([0, 1, 1, 0])

    def losses(rows: slice) -> Tensor:
        return per_example_losses(model, {"input_ids": ids[rows], "labels": labels[rows]})

    expected = norms_of(gradients(model, losses, 4))
    before = torch.get_rng_state()
    with GhostClipping(model, 0.1) as clipper:
        for _ in range(2):
            torch.testing.assert_close(clipper.backward(losses(slice(None))), expected)
        assert not clipper._axis._handles
    assert torch.equal(before, torch.get_rng_state())


def test_dora_gets_one_sentence_at_every_batch_size() -> None:
    peft = pytest.importorskip("peft")
    import transformers

    for size in (3, 16):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
        settings = dict(r=2, use_dora=True, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        model = peft.get_peft_model(model, peft.LoraConfig(**settings))
        ids = torch.randint(3, 29, (size, 7))
        with GhostClipping(model, 1.0) as clipper, pytest.raises(UnsupportedModel, match=r"lora_A.* first axis of 16"):
            clipper.backward(per_example_losses(model, {"input_ids": ids, "labels": ids}))
