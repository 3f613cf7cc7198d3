import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers import causal_lm_losses, pad_tokens, preflight, sequence_classification_losses
from dpaudit.trainers.preflight.check import preflight_losses
from dpaudit.trainers.preflight.made import ranges_to_try
from dpaudit.trainers.preflight.schema import Schema, generated
from tests.trainers.reference_clipper import LoopClipper

SCHEMA = pad_tokens([[1, 2, 3, 4, 5, 6, 7], [4, 5]])


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=32))


def lm_losses(model, batch):
    return causal_lm_losses(model, batch["input_ids"], batch["attention_mask"], batch["labels"])


def check(model, loss_fn, schema=SCHEMA, clipper=LoopClipper, **kwargs):
    return preflight(model, schema, loss_fn=loss_fn, clipper=clipper, **kwargs)


def test_a_right_model_and_loss_pass_and_stay_untouched():
    model = gpt2().train()  # dropout at 0.1, also inside the attention kernel
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    report = check(model, lm_losses)
    follow = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(follow, torch.rand(1))
    assert report.independence < 1e-4 and report.agreement < 1e-4 and report.sensitivity_over_bound < 1 + 1e-4
    assert report.sensitivity_over_bound > 0.5 and report.unused == () and not report.private_records
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.transformer.drop.p == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_clipper_passes_on_a_tied_model(dtype):
    model = gpt2().to(dtype)
    report = check(model, lm_losses, clipper=None)
    assert report.agreement < (1e-4 if dtype == torch.float32 else 0.1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_batch_token_mean_is_refused():
    def hugging_face(model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        return losses.sum(1) / (labels != -100).sum()  # normalised over the whole batch

    with pytest.raises(PrivacyRefusal, match=r"loss_fn divides.*causal_lm_losses"):
        check(gpt2(), hugging_face)


def test_a_scalar_loss_is_refused_with_the_shape():
    with pytest.raises(InvalidValue, match=r"shape \(\).*must return \(4,\)"):
        check(gpt2(), lambda model, batch: lm_losses(model, batch).mean())


class Body(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), middle, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


VECTORS = {"x": torch.randn(3, 5), "labels": torch.zeros(3, dtype=torch.long)}


def vector_losses(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def test_batch_norm_is_named():
    with pytest.raises(PrivacyRefusal, match=r"'middle' \(BatchNorm1d\).*LayerNorm"):
        check(Body(nn.BatchNorm1d(6)), vector_losses, VECTORS)
    assert check(Body(nn.BatchNorm1d(6)).eval(), vector_losses, VECTORS).independence < 1e-4


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True) if self.training else x


def test_a_module_that_mixes_examples_is_named_also_where_it_does_so_in_train_mode_alone():
    with pytest.raises(PrivacyRefusal, match=r"first in module 'middle' \(Centre\)"):
        check(Body(Centre()).train(), vector_losses, VECTORS)


def test_a_router_loss_is_named():
    class Router(Body):
        config = type("Config", (), {"output_router_logits": True, "num_labels": 2})

    def with_auxiliary(model, batch):
        losses = vector_losses(model, batch)
        return losses + model.first(batch["x"]).softmax(-1).mean(0).square().sum()

    with pytest.raises(PrivacyRefusal, match="output_router_logits=False"):
        check(Router(nn.Identity()), with_auxiliary, VECTORS)


class Broken(LoopClipper):
    """Leaves one parameter unclipped, as a missing cross term or a wrong norm would."""

    def backward(self, losses):
        norms = super().backward(losses)
        self.parameters[0].grad = torch.autograd.grad(losses.sum(), self.parameters[0], retain_graph=True)[0]
        return norms


def test_a_clipper_that_is_wrong_for_one_parameter_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"'first.weight'.*Linear"):
        check(Body(nn.Identity()), vector_losses, VECTORS, clipper=Broken)


def test_a_clipper_that_does_not_clip_is_refused():
    with pytest.raises(UnsupportedModel):
        check(Body(nn.Identity()), vector_losses, VECTORS, clipper=lambda m, c: LoopClipper(m, math.inf))


def test_unused_parameters_are_reported():
    model = Body(nn.Identity())
    model.spare = nn.Linear(2, 2)
    assert check(model, vector_losses, VECTORS).unused == ("spare.weight", "spare.bias")


def test_classification_passes_and_private_records_are_marked():
    torch.manual_seed(0)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=60)
    model = BertForSequenceClassification(BertConfig(**size, num_labels=3)).train()
    batch = {**pad_tokens([[5, 6, 7, 8], [9, 10]]), "labels": torch.tensor([2, 0])}
    assert check(model, sequence_classification_losses, batch).examples == 4
    report = check(model, sequence_classification_losses, batch, private_records=True)
    assert report.private_records and report.examples == 2


def test_generated_batches_hold_the_schema_and_none_of_its_content():
    model = gpt2()
    schema = pad_tokens([[49] * 9, [49] * 9])
    schema["position_ids"] = torch.arange(9)[None]
    ranges = ranges_to_try(model)[0]
    made = generated(Schema.of(schema), ranges, size=5, rng=torch.Generator().manual_seed(0))
    assert {k: v.dtype for k, v in made.items()} == {k: v.dtype for k, v in schema.items()}
    assert made["input_ids"].shape == (5, 9) and made["position_ids"].shape == (1, 9)
    assert (made["input_ids"] == 49).float().mean() < 0.2 and int(made["input_ids"].max()) < 50
    assert ((made["labels"] == -100) == (made["attention_mask"] == 0)).all()
    with pytest.raises(InvalidValue, match="mapping of tensors"):
        Schema.of(7)


def test_losses_alone_tell_a_forward_only_step_whether_examples_are_independent():
    model = gpt2().train()
    assert preflight_losses(model, SCHEMA, loss_fn=lm_losses) < 1e-5
    assert model.training and all(p.grad is None for p in model.parameters())

    def token_mean(model, batch):
        return lm_losses(model, batch) * (batch["labels"] != -100).sum(1) / (batch["labels"] != -100).sum()

    with pytest.raises(PrivacyRefusal, match=r"example's loss moves.*loss_fn divides"):
        preflight_losses(model, SCHEMA, loss_fn=token_mean)
    with pytest.raises(PrivacyRefusal, match=r"first in module 'middle' \(Centre\)"):
        preflight_losses(Body(Centre()).train(), VECTORS, loss_fn=vector_losses)
    with pytest.raises(PrivacyRefusal, match="BatchNorm1d"):
        preflight_losses(Body(nn.BatchNorm1d(6)), VECTORS, loss_fn=vector_losses)
