"""Adapters over a quantised, frozen base (QLoRA): the adapters alone are clipped, exactly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dpaudit.trainers import GhostClipping
from tests.trainers.reference_clipper import LoopClipper


class Quantised(nn.Module):
    """A linear layer whose weights are whole numbers with a scale, as 4-bit layers hold them: nothing to train."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs)
        self.scale = nn.Parameter(weight.abs().amax() / 7, requires_grad=False)
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Adapted(nn.Module):
    """A quantised layer with a low-rank adapter beside it, as peft builds it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = Quantised(inputs, outputs)
        self.lora_a, self.lora_b = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 2.0 * self.lora_b(self.lora_a(x))
        return out


def test_clipped_sum_over_a_quantised_base_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(6, 8), nn.Tanh(), Adapted(8, 3))
    other = copy.deepcopy(model)
    x = torch.randn(5, 4, 6)

    def losses(net: nn.Module) -> Tensor:
        found: Tensor = net(x).square().mean(dim=(1, 2))
        return found

    with GhostClipping(model, max_grad_norm=0.05) as clipper:
        norms = clipper.backward(losses(model))
    expected = LoopClipper(other, 0.05).backward(losses(other))
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=1e-7, check_dtype=False)
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == ("lora" not in name)
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)
