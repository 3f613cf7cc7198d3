"""Linear layers that multiply by the faster routine while a clipper is open."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpaudit.trainers.ghost import products
from dpaudit.trainers.ghost.clipper import GhostClipping


@pytest.fixture(autouse=True)
def _onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DPAUDIT_PRODUCTS", "onednn")
    products.has_onednn.cache_clear()
    if not products.has_onednn():
        products.has_onednn.cache_clear()
        pytest.skip("this processor or this torch has no oneDNN with AVX-512")
    yield
    products.has_onednn.cache_clear()


class Net(nn.Module):
    """A frozen layer between two trained ones, of sizes that the faster routine takes."""

    def __init__(self, frozen: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 64), Conv1D(40, 96)
        self.middle = Conv1D(96, 64) if frozen is Conv1D else nn.Linear(64, 96, bias=False)
        for parameter in self.middle.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return found


def make(frozen: type[nn.Module] = nn.Linear) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    net = Net(frozen)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.2)
    return net, torch.randn(6, 30, 48)


def losses(net: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = net(x).square().mean((1, 2))
    return found


@pytest.mark.parametrize("frozen", [nn.Linear, Conv1D])
def test_sums_and_norms_are_those_of_single_gradients(frozen: type[nn.Module]) -> None:
    net, x = make(frozen)
    wanted = [p for p in net.parameters() if p.requires_grad]
    exact = copy.deepcopy(net).double()
    each = [
        torch.autograd.grad(
            losses(exact, x[i : i + 1].double()).sum(), [p for p in exact.parameters() if p.requires_grad]
        )
        for i in range(6)
    ]
    sizes = torch.stack([torch.cat([g.flatten() for g in grads]).norm() for grads in each])
    bound = float(sizes.median())
    with GhostClipping(net, bound) as clipper:
        assert {"first", "middle", "last"} == {n for n, m in net.named_modules() if "forward" in vars(m)}
        norms = clipper.backward(losses(net, x))
    torch.testing.assert_close(norms.double(), sizes, rtol=1e-5, atol=0)
    for k, parameter in enumerate(wanted):
        total = sum(min(1.0, bound / float(n)) * grads[k] for n, grads in zip(sizes, each))
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), total, rtol=1e-4, atol=1e-6)


def test_the_layers_own_forward_runs_without_gradients_and_under_autocast() -> None:
    net, x = make()
    with torch.no_grad():
        before = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = net(x)
    with GhostClipping(net, 1.0):
        with torch.no_grad():
            assert torch.equal(net(x), before)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(net(x), narrow)
        torch.testing.assert_close(net(x).detach(), before, rtol=1e-4, atol=1e-5)
        with products.plain():
            assert torch.equal(net(x).detach(), before)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_copy_of_the_model_multiplies_by_its_own_weights() -> None:
    net, x = make()
    with GhostClipping(net, 1.0):
        other = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(2.0)
        plain = Net()
        plain.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(x), plain(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(x), make()[0](x), rtol=1e-4, atol=1e-4)


def test_a_layer_unfrozen_later_is_refused_and_not_trained_unclipped() -> None:
    net, x = make()
    with GhostClipping(net, 1.0) as clipper:
        net.middle.requires_grad_(True)
        with pytest.raises(Exception, match=r"middle\.weight was unfrozen"):
            clipper.backward(losses(net, x))


def test_compiled_frozen_parts_keep_their_forward() -> None:
    from torch._functorch import config

    net, _ = make()
    net.middle.compile()
    with config.patch(donated_buffer=False), GhostClipping(net, 1.0):
        assert {"first", "last"} == {n for n, m in net.named_modules() if "forward" in vars(m)}


def test_forwards_that_others_put_on_a_layer_stay() -> None:
    net, x = make()
    calls = []
    own = net.middle.forward

    def watched(x: Tensor) -> Tensor:
        calls.append(len(x))
        found: Tensor = own(x)
        return found

    net.middle.forward = watched  # type: ignore[method-assign, assignment]
    with GhostClipping(net, 1.0) as clipper:
        clipper.backward(losses(net, x))
    assert calls == [6] and net.middle.forward is watched
