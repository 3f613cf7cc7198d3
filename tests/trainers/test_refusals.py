"""Wrapped, compiled and computed weights are refused by name on every road, before anything runs."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import PrivacyRefusal, UnsupportedModel
from dpaudit.trainers import GhostClipping, PrivacyPlan, preflight, train
from dpaudit.trainers.preflight.check import preflight_losses
from dpaudit.trainers.refusals import refuse_model
from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
from dpaudit.trainers.zeroth_order.train import zo_train


class Half(nn.Module):
    def forward(self, w):
        return w * 0.5


class PlainTensor(nn.Linear):
    """A weight made from another parameter by hand, before every forward pass."""

    def __init__(self):
        super().__init__(8, 6)
        raw = self.weight
        del self.weight
        self.raw, self.weight = raw, raw * 2
        self.register_forward_pre_hook(lambda m, args: setattr(m, "weight", m.raw * 2))


WAYS = {
    "weight norm": (lambda m: parametrizations.weight_norm(m), "remove_parametrizations"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(m), "remove_parametrizations"),
    "orthogonal": (lambda m: parametrizations.orthogonal(m), "remove_parametrizations"),
    "own": (lambda m: parametrize.register_parametrization(m, "weight", Half()), "remove_parametrizations"),
    "own, bias": (lambda m: parametrize.register_parametrization(m, "bias", Half()), "remove_parametrizations"),
    "old weight norm": (nn.utils.weight_norm, "remove_weight_norm"),
    "old spectral norm": (nn.utils.spectral_norm, "remove_spectral_norm"),
    "pruned": (lambda m: prune.random_unstructured(m, "weight", 0.3), "prune.remove"),
    "pruned in rows": (lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0), "prune.remove"),
    "pruned twice": (
        lambda m: prune.l1_unstructured(prune.random_unstructured(m, "weight", 0.3), "weight", 0.3),
        "prune.remove",
    ),
}
LAYERS = {
    "linear": lambda: nn.Linear(8, 6),
    "conv": lambda: nn.Conv1d(1, 2, 3, padding=1),
    "embedding": lambda: nn.Embedding(16, 8),
}


def network(layer, way):
    """A model whose first layer is that one, and how its inputs look."""
    first = LAYERS[layer]() if layer != "plain" else PlainTensor()
    if way is not None:
        WAYS[way][0](first)
    width = {"linear": 6, "plain": 6, "conv": 16, "embedding": 8}[layer]
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)), layer


def batch_of(layer):
    x = torch.randint(0, 16, (4,)) if layer == "embedding" else torch.randn(4, 8)
    return {"x": x[:, None] if layer == "conv" else x, "labels": torch.tensor([0, 1, 2, 0])}


def losses(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def collate(rows):
    return {"x": torch.stack([r["x"] for r in rows]), "labels": torch.stack([r["labels"] for r in rows])}


def plan(**changes):
    values = dict(
        delta=1e-5, relation="add_or_remove_one", sampling="poisson", unit="row", public_size=40,
        expected_batch_size=8, steps=2, clipping_norm=1.0, noise_multiplier=1.0,
    )  # fmt: skip
    return PrivacyPlan(**{**values, **changes})


def roads(model, layer):
    """Every public way to train or check a model, each as a function."""
    from dpaudit.trainers.zeroth_order.directions import Directions
    from dpaudit.trainers.zeroth_order.stages import dpzero

    batch = batch_of(layer)
    rows = [{"x": batch["x"][i % 4], "labels": batch["labels"][i % 4]} for i in range(40)]
    zeroth = dpzero(plan(), learning_rate=0.1, scale=0.1)
    return {
        "clipper": lambda: GhostClipping(model, max_grad_norm=1.0),
        "preflight": lambda: preflight(model, batch, loss_fn=losses),
        "preflight_losses": lambda: preflight_losses(model, batch, loss_fn=losses),
        "train": lambda: train(model, rows, plan(), collate=collate, loss_fn=losses, journal=MemoryJournal()),
        "zo_train": lambda: zo_train(
            model, rows, zeroth, collate=collate, loss_fn=losses, journal=MemoryJournal(),
            directions=Directions(run="refused"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("road", ["clipper", "preflight", "preflight_losses", "train", "zo_train"])
@pytest.mark.parametrize("way", WAYS)
def test_a_computed_weight_is_refused_by_name_with_the_remedy(way, road):
    model, layer = network("linear", way)
    with pytest.raises(
        UnsupportedModel, match=r"parameter '0\.\S+' belongs to a Linear whose (weight|bias) is computed"
    ) as e:
        roads(model, layer)[road]()
    assert ("bias" if "bias" in way else "weight") in str(e.value).split("'")[1]
    assert WAYS[way][1] in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("layer", ["conv", "embedding"])
def test_other_layers_and_plain_tensors_too(layer):
    model, _ = network(layer, "weight norm")
    with pytest.raises(UnsupportedModel, match="weight is computed"):
        GhostClipping(model, max_grad_norm=1.0)


def test_a_weight_set_by_a_hook_of_ones_own_is_refused():
    model, _ = network("plain", None)
    with pytest.raises(UnsupportedModel, match=r"weight is computed \(a plain tensor\)"):
        GhostClipping(model, max_grad_norm=1.0)


def test_class_weights_and_other_plain_tensors_are_no_computed_weight():
    model, _ = network("linear", None)
    model.weight = torch.tensor([1.0, 2.0, 3.0])
    model[0].weights = torch.ones(3, requires_grad=True)
    refuse_model(model)


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_computed_weight_trains(way):
    model, layer = network("linear", way)
    model[0].requires_grad_(False)
    with GhostClipping(model, max_grad_norm=1.0) as clipper:
        assert clipper.backward(losses(model, batch_of(layer))).shape == (4,)
    assert set(trainable_parameters(model)) == {"3.weight", "3.bias"}


def test_the_remedy_works():
    for way in WAYS:
        model, layer = network("linear", way)
        with pytest.raises(UnsupportedModel) as error:
            refuse_model(model)
        call = re.search(r"torch\.nn\.utils\.\S+\(module, '\w+'\)", str(error.value)).group()
        eval(call, {"torch": torch, "module": model[0]})
        with GhostClipping(model, max_grad_norm=1.0) as clipper:
            clipper.backward(losses(model, batch_of(layer)))


def forward_compiled(model):
    model[0].forward = torch.compile(model[0].forward)
    return model


def in_place(model):
    model.compile()
    return model


def part(model):
    model[0] = torch.compile(model[0])
    return model


COMPILED = {"whole": torch.compile, "in place": in_place, "a part": part, "a part's forward": forward_compiled}


@pytest.mark.parametrize("road", ["clipper", "preflight", "preflight_losses", "train", "zo_train"])
@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_refused_before_anything_is_compiled(way, road, monkeypatch):
    model = COMPILED[way](network("linear", None)[0])

    def compiled(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr("torch._dynamo.convert_frame.compile_frame", compiled, raising=False)
    with pytest.raises(UnsupportedModel, match=r"compiled by torch\.compile.*pass the eager model"):
        roads(model, "linear")[road]()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("road", ["clipper", "preflight", "preflight_losses", "train", "zo_train"])
@pytest.mark.parametrize("way", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(4, 8))])
def test_torchscript_is_refused_on_every_road(way, road):
    with pytest.raises(UnsupportedModel, match=r"TorchScript.*pass the eager model"):
        roads(way(network("linear", None)[0]), "linear")[road]()


@pytest.mark.parametrize("road", ["clipper", "preflight", "preflight_losses", "train", "zo_train"])
def test_data_parallel_is_refused_on_every_road(road):
    with pytest.raises(PrivacyRefusal, match="wrapped by DataParallel"):
        roads(nn.DataParallel(network("linear", None)[0]), "linear")[road]()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("road", ["preflight", "preflight_losses"])
def test_weights_that_are_not_finite_are_named_and_the_loss_is_not_blamed(road, frozen, value):
    model, layer = network("linear", None)
    model[0].requires_grad_(not frozen)
    with torch.no_grad():
        model[0].weight[2, 3] = value
    with pytest.raises(UnsupportedModel, match=r"parameter '0\.weight' holds values that are NaN or infinite"):
        roads(model, layer)[road]()


def half_precision():
    return network("linear", None)[0].half()


@pytest.mark.parametrize("road", ["train", "zo_train"])
def test_fp16_weights_are_refused_with_the_argument_that_loads_fp32(road):
    with pytest.raises(UnsupportedModel, match=r"dtype=torch\.float32"):
        roads(half_precision(), "linear")[road]()


def half_frozen() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()), nn.Linear(8, 3))
    model[1].requires_grad_(False)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("lean", [False, True])
def test_a_frozen_part_may_be_compiled(lean):
    from torch._functorch import config

    rows = {"x": torch.randn(4, 6), "y": torch.tensor([0, 1, 2, 1])}

    def losses(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    eager, model = half_frozen(), half_frozen()
    model[1] = torch.compile(model[1], backend="aot_eager")
    with pytest.raises(UnsupportedModel, match="donated_buffer = False before its first call"):
        GhostClipping(model, 0.5)
    sums = []
    with config.patch(donated_buffer=False):
        preflight(model, rows, loss_fn=losses)
        for net in (eager, model):
            with GhostClipping(net, 0.5, lean=lean) as clipper:
                found = clipper.clipped_sum(losses(net, rows))
                sums.append([found.norms, *found.sums.values()])
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*sums, strict=True))
    model[1].requires_grad_(True)
    with pytest.raises(UnsupportedModel, match="pass the eager model"):
        GhostClipping(model, 0.5)


def test_weights_that_do_not_exist_yet_are_refused_by_name():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    for refuses in (lambda: GhostClipping(model, 1.0), lambda: refuse_model(model)):
        with pytest.raises(UnsupportedModel, match=r"'0\.weight' \(LazyLinear\) has no shape yet; call the model once"):
            refuses()
