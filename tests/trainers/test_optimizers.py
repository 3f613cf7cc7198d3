import copy

import pytest
import torch

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import OptimizerSettings
from dpaudit.trainers.optimizers import DPOptimizer


def pair(dtype=torch.float64):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 3, dtype=dtype)), torch.nn.Parameter(torch.randn(5, dtype=dtype))]
    return ours, [torch.nn.Parameter(p.detach().clone()) for p in ours]


def run(settings, theirs_class, steps=12, **kwargs):
    ours, theirs = pair()
    mine = DPOptimizer(ours, settings)
    other = theirs_class(theirs, **kwargs)
    for _ in range(steps):
        gradients = [torch.randn_like(p) for p in ours]
        mine.receive(gradients, 0.1)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        mine.step()
        other.step()
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_agrees_with_torch(decay):
    rate = 3e-2
    common = {"learning_rate": rate, "weight_decay": decay}
    theirs = {"lr": rate, "weight_decay": decay}
    assert run(OptimizerSettings(algorithm="adam", **common), torch.optim.Adam, **theirs) < 1e-12
    assert run(OptimizerSettings(algorithm="adamw", **common), torch.optim.AdamW, **theirs) < 1e-12
    assert run(OptimizerSettings(algorithm="sgd", **common), torch.optim.SGD, **theirs) < 1e-12
    settings = OptimizerSettings(algorithm="sgd", momentum=0.9, **common)
    assert run(settings, torch.optim.SGD, momentum=0.9, **theirs) < 1e-12


def test_a_step_without_a_release_is_refused():
    (p, _), _ = pair()
    optimizer = DPOptimizer([p], OptimizerSettings())
    p.grad = torch.ones_like(p)  # a clipped sum without noise must not be taken for a release
    with pytest.raises(PrivacyRefusal, match="no noisy release"):
        optimizer.step()
    optimizer.receive([torch.ones_like(p)], 0.0)
    optimizer.step()
    with pytest.raises(PrivacyRefusal):
        optimizer.step()
    with pytest.raises(InvalidValue, match="one for each"):
        optimizer.receive([], 0.0)
    with pytest.raises(InvalidValue, match="fp32"):
        optimizer.receive([torch.ones_like(p).bfloat16()], 0.0)


def test_bf16_weights_have_fp32_moments_that_survive_a_checkpoint():
    p = torch.nn.Parameter(torch.randn(64).bfloat16())
    settings = OptimizerSettings(algorithm="adamw", learning_rate=1e-2)
    optimizer = DPOptimizer([p], settings)
    optimizer.receive([torch.randn(64) * 1e-3], 0.0)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float32
    saved = copy.deepcopy(optimizer.state_dict())
    q = torch.nn.Parameter(p.detach().clone())
    other = DPOptimizer([q], settings)
    other.load_state_dict(saved)
    assert torch.equal(other.state[q]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
    assert other.state[q]["exp_avg_sq"].dtype == torch.float32
    g = torch.randn(64)
    for o in (optimizer, other):
        o.receive([g.clone()], 0.0)
        o.step()
    assert torch.equal(p, q)


def test_noise_bias_correction_recovers_the_signal_variance():
    # Pure noise of known variance: the corrected second moment falls to the floor, the plain one to the variance.
    torch.manual_seed(1)
    std, p = 0.1, torch.nn.Parameter(torch.zeros(20_000))
    settings = OptimizerSettings(noise_bias_correction=True, noise_bias_floor=1e-6, betas=(0.9, 0.99))
    optimizer = DPOptimizer([p], settings)
    for _ in range(50):
        optimizer.receive([torch.randn(20_000) * std + 0.2], std)
        optimizer.step()
    state = optimizer.state[p]
    second = 1 - 0.99 ** state["step"]
    assert float(state["exp_avg_sq"].mean() / second) == pytest.approx(std**2 + 0.04, rel=0.01)
    assert float((state["exp_avg_sq"] - state["noise_sq"]).mean() / second) == pytest.approx(0.04, rel=0.01)
    assert state["noise_sq"] / second == pytest.approx(std**2)
    with pytest.raises(InvalidValue, match="second moment"):
        OptimizerSettings(algorithm="sgd", noise_bias_correction=True)


def test_noise_bias_correction_changes_the_step_as_published():
    # One step from zero: m/(1-b1) = g, v/(1-b2) = g², so the update is g / sqrt(max(g² - s², floor)).
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = DPOptimizer(
        [p], OptimizerSettings(learning_rate=1.0, noise_bias_correction=True, noise_bias_floor=0.25)
    )
    optimizer.receive([torch.tensor([5.0, 0.1], dtype=torch.float64)], 3.0)
    optimizer.step()
    assert p.tolist() == pytest.approx([-5.0 / 4.0, -0.1 / 0.5])


def test_schedules():
    linear = OptimizerSettings(learning_rate=1.0, schedule="linear", warmup_steps=2)
    assert [round(linear.rate(s, 6), 3) for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert OptimizerSettings(learning_rate=0.5).rate(99, 100) == 0.5
    with pytest.raises(InvalidValue, match="algorithm='lion'"):
        OptimizerSettings(algorithm="lion")
