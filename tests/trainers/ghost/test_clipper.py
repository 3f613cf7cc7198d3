"""GhostClipping: the contract of the bare step, its bound, and its refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers.clipping import AdaptiveFlat, Automatic, Clipping, Flat, PerLayer
from dpaudit.trainers.ghost import uses as _layers
from dpaudit.trainers.ghost.clipper import GhostClipping
from tests.trainers.ghost.ghost_oracle import compare, gradients, norms_of
from tests.trainers.ghost.test_families import build, losses_of

RULES: list[type[Clipping]] = [Flat, PerLayer, Automatic, AdaptiveFlat]


class Net(nn.Module):
    """Embedding, two linears, a norm and a tied head, over (B, T) ids."""

    def __init__(self, width: int = 8, words: int = 11, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids)
        return self.head(self.norm(x + torch.tanh(self.first(x))))  # type: ignore[no-any-return]


def task(model: nn.Module, ids: Tensor, scale: Tensor | None = None) -> Callable[[slice], Tensor]:
    def losses(rows: slice) -> Tensor:
        logits = model(ids[rows])[:, :-1]
        each = nn.functional.cross_entropy(logits.mT, ids[rows][:, 1:], reduction="none").mean(1)
        return each if scale is None else each * scale[rows]

    return losses


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", ["gpt2", "bert-mlm"])
def test_every_rule_equals_the_loop(family: str, rule: type[Clipping], lean: bool) -> None:
    model = build(family, torch.float64)
    wrong, norm_wrong = compare(model, losses_of(model), 4, rule, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_the_loop_in_fp32(rule: type[Clipping]) -> None:
    model = build("gpt2", torch.float32)
    wrong, norm_wrong = compare(model, losses_of(model), 4, rule)
    assert wrong <= 1e-5 and norm_wrong <= 1e-5


def test_without_clipping_the_sum_is_autograds(net: Net, ids: Tensor) -> None:
    losses = task(net, ids)
    torch.autograd.backward(losses(slice(None)).sum())
    plain = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    with GhostClipping(net, float("inf")) as clipper:
        clipper.backward(losses(slice(None)))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-12, atol=1e-14)


def test_leaving_the_cross_term_out_is_seen(monkeypatch: pytest.MonkeyPatch, net: Net, ids: Tensor) -> None:
    def nothing(one: _layers.Use, other: _layers.Use) -> _layers.Square:
        zero = torch.zeros(6, dtype=torch.float64)
        return _layers.Square(zero, zero)

    monkeypatch.setattr("dpaudit.trainers.ghost.book.cross", nothing)
    assert compare(net, task(net, ids), 6, Flat)[1] > 1e-3


@pytest.mark.parametrize("lean", [False, True])
def test_micro_batches_add_up(net: Net, ids: Tensor, lean: bool) -> None:
    losses = task(net, ids)
    with GhostClipping(net, 0.3, lean=lean) as clipper:
        whole = clipper.backward(losses(slice(None)))
        once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        net.zero_grad()
        parts = [clipper.backward(losses(rows)) for rows in (slice(0, 1), slice(1, 3), slice(3, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    for parameter, expected in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_norms_are_float_and_factor_is_exact(net: Net, ids: Tensor) -> None:
    net.float()
    with GhostClipping(net, 1e9) as clipper:  # every norm is below C: factors are exactly one
        norms = clipper.backward(task(net, ids)(slice(0, 1)))
    assert norms.dtype is torch.float32 and norms.shape == (1,)
    ours = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    torch.autograd.backward(task(net, ids)(slice(0, 1)).sum())
    for parameter, found in zip(net.parameters(), ours, strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-7)


# -- the bound ------------------------------------------------------------------------------------------------------


def difference(model: nn.Module, losses: Callable[[slice], Tensor], size: int, leave: int, **options: object) -> float:
    """|sum(D) - sum(D without one)|, in fp64 on top of the model's own arithmetic."""
    totals = []
    for keep in (list(range(size)), [i for i in range(size) if i != leave]):
        model.zero_grad(set_to_none=True)
        with GhostClipping(model, 1.0, **options) as clipper:  # type: ignore[arg-type]
            for i in keep:
                clipper.backward(losses(slice(i, i + 1)))
        totals.append(torch.cat([p.grad.detach().double().flatten() for p in model.parameters() if p.grad is not None]))
    return float((totals[0] - totals[1]).detach().norm())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("only_tied", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_one_example_moves_the_sum_by_at_most_c(
    net: Net, ids: Tensor, rule: type[Clipping], only_tied: bool, scale: float
) -> None:
    if only_tied:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("embed" in name)
    scales = torch.ones(6, dtype=torch.float64)
    scales[2] = scale
    assert difference(net, task(net, ids, scales), 6, 2, clipping=rule(1.0)) <= 1 + 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1.0, 1e6]), tied=st.booleans(), lean=st.booleans())
def test_a_single_clipped_example_stays_within_c_in_fp32(seed: int, scale: float, tied: bool, lean: bool) -> None:
    torch.manual_seed(seed)
    model = Net(tied=tied)
    ids = torch.randint(0, 11, (1, 7))
    with GhostClipping(model, 1.0, lean=lean) as clipper:
        clipper.backward(task(model, ids, torch.tensor([scale]))(slice(None)))
    norm = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm <= 1 + 1e-6


@pytest.mark.parametrize("lean", [False, True])
def test_cancelling_gram_terms_do_not_weaken_the_bound(lean: bool) -> None:
    # The input is nearly constant over t and the output gradients nearly sum to zero: |G|² is a small difference of
    # large numbers, and fp32 Grams alone get it wrong.
    torch.manual_seed(0)
    model = nn.Linear(40, 30, bias=False)
    x = torch.randn(3, 1, 40).expand(3, 64, 40) + 1e-4 * torch.randn(3, 64, 40)
    weight = torch.randn(3, 64, 30)
    weight = weight - weight.mean(1, keepdim=True)

    def losses(rows: slice) -> Tensor:
        found: Tensor = (model(x[rows]) * weight[rows]).sum((1, 2))
        return found

    exact = torch.einsum("btd,btp->bpd", x.double(), weight.double()).flatten(1).norm(dim=1)
    with GhostClipping(model, 1e-3, lean=lean) as clipper:
        norms = clipper.backward(losses(slice(None)))
    torch.testing.assert_close(norms.double(), exact, rtol=1e-4, atol=0)
    uses = _layers.MatrixUse(x.contiguous(), weight, True, model.weight.shape)
    ghost = uses.square(_layers.Grams())
    assert (ghost.scale > 1e3 * exact**2).all()  # so the guard had something to do


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_gradient_contributes_zero(
    net: Net, ids: Tensor, bad: float, rule: type[Clipping], lean: bool
) -> None:
    scale = torch.ones(6, dtype=torch.float64)
    scale[1] = bad
    with GhostClipping(net, 0.5, clipping=rule(0.5), lean=lean) as clipper:
        norms = clipper.backward(task(net, ids, scale)(slice(None)))
        with_bad = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        net.zero_grad()
        for rows in (slice(0, 1), slice(2, 6)):
            clipper.backward(task(net, ids)(rows))
    assert not norms[1].isfinite() and norms[[0, 2, 3, 4, 5]].isfinite().all()
    for parameter, found in zip(net.parameters(), with_bad, strict=True):
        torch.testing.assert_close(found, parameter.grad)


def test_zero_gradients_give_zero(net: Net, ids: Tensor) -> None:
    with GhostClipping(net, 0.5) as clipper:
        norms = clipper.backward(task(net, ids, torch.zeros(6, dtype=torch.float64))(slice(None)))
    assert not norms.any()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


# -- life cycle and refusals ----------------------------------------------------------------------------------------


def traces(model: nn.Module) -> int:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks + sum(len(p._backward_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "t5", "opt", "gemma"])
def test_closing_leaves_nothing_behind(family: str) -> None:
    model = build(family, torch.float32)
    before = {id(m): dict(m.__dict__) for m in model.modules()}
    with GhostClipping(model, 1.0) as clipper:
        assert traces(model) > 0
        clipper.backward(losses_of(model)(slice(None)))
    assert traces(model) == 0
    for module in model.modules():
        assert module.__dict__.keys() == before[id(module)].keys()
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(InvalidValue, match="closed"):
        clipper.backward(torch.zeros(1))


def test_an_exception_in_forward_leaves_the_model_usable(net: Net, ids: Tensor) -> None:
    with GhostClipping(net, 0.3) as clipper:
        expected = clipper.backward(task(net, ids)(slice(None)))
        net.zero_grad()
        with pytest.raises(IndexError):
            net(ids + 100)
        with pytest.raises(RuntimeError):
            net.first(torch.zeros(6, 5, 3, dtype=torch.float64))
        assert torch.is_grad_enabled() and all(p.requires_grad for p in net.parameters())
        torch.testing.assert_close(clipper.backward(task(net, ids)(slice(None))), expected)


@pytest.mark.parametrize("inside", ["embed", "first", "norm"])
def test_an_interrupt_in_forward_is_mended_by_closing(net: Net, ids: Tensor, inside: str) -> None:
    def interrupt(module: nn.Module, args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), GhostClipping(net, 0.3):
        net.get_submodule(inside).register_forward_pre_hook(interrupt)
        net(ids)
    assert torch.is_grad_enabled() and all(p.requires_grad for p in net.parameters())


def test_an_exception_in_backward_leaves_gradients_alone(net: Net, ids: Tensor) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            raise MemoryError("simulated")

    with GhostClipping(net, 0.3) as clipper:
        losses = task(net, ids)
        expected = clipper.backward(losses(slice(None)))
        before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        hook = net.embed.register_forward_hook(lambda module, args, output: Fails.apply(output))  # type: ignore[no-untyped-call]
        with pytest.raises(MemoryError):
            clipper.backward(losses(slice(None)))
        hook.remove()
        assert all(torch.equal(b, p.grad) for b, p in zip(before, net.parameters(), strict=True) if p.grad is not None)
        torch.testing.assert_close(clipper.backward(losses(slice(None))), expected)


def test_no_grad_and_eval(net: Net, ids: Tensor) -> None:
    with GhostClipping(net, 0.3) as clipper:
        with torch.no_grad():
            unhooked = task(net, ids)(slice(None))
        with pytest.raises(InvalidValue, match="gradients enabled"):
            clipper.backward(unhooked)
        net.eval()
        assert clipper.backward(task(net, ids)(slice(None))).shape == (6,)


def test_wrong_losses_are_refused(net: Net, ids: Tensor) -> None:
    with GhostClipping(net, 0.3) as clipper:
        with pytest.raises(InvalidValue, match="one loss per example"):
            clipper.backward(task(net, ids)(slice(None)).mean())
        with pytest.raises(InvalidValue, match="6 examples"):
            clipper.backward(task(net, ids)(slice(None))[:5])
        assert clipper.backward(torch.zeros(0)).shape == (0,)


def test_backward_past_the_clipper_is_refused(net: Net, ids: Tensor) -> None:
    with GhostClipping(net, 0.3), pytest.raises(PrivacyRefusal, match=r"GhostClipping\.backward"):
        torch.autograd.backward(task(net, ids)(slice(None)).sum())
    assert all(p.grad is None for p in net.parameters())


def test_a_fused_loss_is_detected(net: Net, ids: Tensor) -> None:
    def fused() -> Tensor:
        x = net.norm(net.embed(ids))
        found: Tensor = (x @ net.embed.weight.T).logsumexp(2).mean(1)
        return found

    with GhostClipping(net, 0.3) as clipper:
        losses = fused()
        with pytest.raises(UnsupportedModel, match=r"parameter embed\.weight received a gradient past its module"):
            clipper.backward(losses)
    assert all(p.grad is None for p in net.parameters())


def test_losses_that_reach_no_site_are_refused(net: Net) -> None:
    with GhostClipping(net, 0.3) as clipper, pytest.raises(PrivacyRefusal, match="reach no trainable"):
        clipper.backward(torch.zeros(3, requires_grad=True) * 1)


def test_frozen_all_and_unfrozen_later_are_refused(net: Net, ids: Tensor) -> None:
    net.first.requires_grad_(False)
    with GhostClipping(net, 0.3) as clipper:
        net.first.requires_grad_(True)
        losses = task(net, ids)(slice(None))
        with pytest.raises(PrivacyRefusal, match=r"first\.weight was unfrozen"):
            clipper.backward(losses)
    net.requires_grad_(False)
    with pytest.raises(UnsupportedModel, match="no trainable parameter"):
        GhostClipping(net, 0.3)


@pytest.mark.slow
def test_compiled_models_are_refused(net: Net) -> None:
    with pytest.raises(UnsupportedModel, match=r"torch\.compile"):
        GhostClipping(torch.compile(net), 0.3)  # type: ignore[arg-type]
    net.compile()
    with pytest.raises(UnsupportedModel, match=r"torch\.compile"):
        GhostClipping(net, 0.3)


def test_the_rule_and_the_bound_must_agree(net: Net) -> None:
    with pytest.raises(InvalidValue, match="same C"):
        GhostClipping(net, 0.3, clipping=Flat(0.4))
    with pytest.raises(InvalidValue, match="max_grad_norm=-1"):
        GhostClipping(net, -1)


def test_norms_match_the_loop_whatever_the_sequence_length() -> None:
    torch.manual_seed(0)
    model = Net(width=12).double()
    with GhostClipping(model, 0.1) as clipper:
        for length in (2, 17, 130, 300):
            ids = torch.randint(0, 11, (3, length))
            found = clipper.backward(task(model, ids)(slice(None)))
            clipper.model.zero_grad()
            clipper.close()
            torch.testing.assert_close(found, norms_of(gradients(model, task(model, ids), 3)), rtol=1e-10, atol=0)
            clipper = GhostClipping(model, 0.1)
    clipper.close()


@pytest.mark.parametrize("lean", [False, True])
def test_sums_and_norms_keep_no_graph(net: Net, ids: Tensor, lean: bool) -> None:
    with GhostClipping(net, 0.5, lean=lean) as clipper:
        norms = clipper.backward(task(net, ids)(slice(None)))
    assert not norms.requires_grad
    assert all(p.grad is not None and not p.grad.requires_grad for p in net.parameters())


class Sum(nn.Linear):
    """A linear layer written out, as Falcon's is."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class Scaled(nn.Linear):
    """A linear layer whose output is scaled: no rule of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * (input @ self.weight.T)


class InPlace(nn.Module):
    """Adds to the output of a layer in place."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(11, 8), layer, nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids)
        y = self.layer(x)
        y += x
        return self.head(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("layer", "rule"), [(Sum, "LinearSite"), (Scaled, "InstanceSite")])
def test_an_output_that_is_added_to_in_place_is_recorded_as_it_was(layer: type[nn.Linear], rule: str) -> None:
    torch.manual_seed(3)
    model = InPlace(layer(8, 8)).double()
    ids = torch.randint(0, 11, (4, 5))
    wrong, norm_wrong = compare(model, task(model, ids), 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11
    with GhostClipping(model, 1.0) as clipper:
        assert type(next(site for site in clipper._sites if site.name == "layer")).__name__ == rule
