"""The zeroth-order estimator: slopes, clipping, noise, perturbation. T1, T2, T8, T9, T10, T13 of the reference."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpaudit import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.privacy.stage import Clip, Mechanism
from dpaudit.trainers.noise import NoiseSource, NoNoise
from dpaudit.trainers.zeroth_order.coordinates import Mask, trainable_parameters
from dpaudit.trainers.zeroth_order.directions import DirectionAt, DirectionKind, Directions
from dpaudit.trainers.zeroth_order.perturb import BitCache, PerLayer, perturbation
from dpaudit.trainers.zeroth_order.step import (
    Pull,
    apply_update,
    clip_differences,
    loss_differences,
    refuse_data_dependent,
    release,
)
from tests.trainers.zeroth_order.zo_helpers import Quadratic, Slope, gpt_losses, own_losses, tiny_gpt, token_records

V = Directions(run="estimator")


def slopes(
    model: nn.Module, batch: Any, directions: Any, scale: float, loss: Any = own_losses, **options: Any
) -> Tensor:
    perturb = perturbation(model, trainable_parameters(model), V, **options)
    found, _ = loss_differences(
        model, [(batch, len(batch))], loss, perturb, step=options.pop("step", 0), directions=directions, scale=scale
    )
    return found


def direction(model: nn.Module, number: int, kind: Directions = V) -> dict[str, Tensor]:
    return {
        name: kind.values(step=0, direction=number, tensor=name, size=p.numel()).view(p.shape)
        for name, p in trainable_parameters(model).items()
    }


# T1: sensitivity


@pytest.mark.parametrize(("clip", "one", "nine"), [(Clip.PER_DIRECTION, 30.0, 90.0), (Clip.JOINT, 30.0, 30.0)])
def test_sensitivity_is_attained_and_never_passed(clip: Clip, one: float, nine: float) -> None:
    for directions, bound in ((1, one), (9, nine)):
        huge = torch.tensor([1e3, -1e3] * 4, dtype=torch.float64).expand(directions, 8)
        contributions = clip_differences(huge, 30.0, clip)
        moved = contributions.norm(dim=0)  # removing record i moves the sum by its own column
        assert torch.allclose(moved, torch.full((8,), bound, dtype=torch.float64), rtol=1e-12)
        replaced = (contributions[:, 0] - contributions[:, 1]).norm().item()
        assert replaced == pytest.approx(2 * bound)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=12, max_size=12),
    norm=st.floats(1e-6, 1e6),
    clip=st.sampled_from(list(Clip)),
)
def test_no_record_ever_adds_more_than_its_bound(values: list[float], norm: float, clip: Clip) -> None:
    clipped = clip_differences(torch.tensor(values, dtype=torch.float64).view(4, 3), norm, clip)
    assert bool(torch.isfinite(clipped).all())
    bound = norm * (2.0 if clip is Clip.PER_DIRECTION else 1.0)
    assert bool((clipped.norm(dim=0) <= bound * (1 + 1e-12)).all())


# T2: values


def test_clip_values_and_the_non_finite_policy() -> None:
    given_ = torch.tensor([[-45.0, 12.0, 0.0, math.nan, math.inf, -math.inf]], dtype=torch.float64)
    assert clip_differences(given_, 30.0, Clip.PER_DIRECTION).tolist() == [[-30.0, 12.0, 0.0, 0.0, 0.0, 0.0]]
    assert clip_differences(given_, 30.0, Clip.JOINT).tolist() == [[-30.0, 12.0, 0.0, 0.0, 0.0, 0.0]]


def test_one_poisoned_record_leaves_the_sum_finite() -> None:
    model = Slope()
    x = torch.ones(4, 6, dtype=torch.float64)
    x[2] = math.nan
    found = slopes(model, x, [0, 1], 1e-3)
    sums = release(clip_differences(found, 1.0, Clip.PER_DIRECTION), noise_std=0.0, normaliser=1.0, noise=NoNoise())
    assert all(math.isfinite(g) and abs(g) <= 3.0 for g in sums)


# T8: noise


def test_noise_is_normal_independent_and_not_of_the_public_seeds() -> None:
    from scipy import stats

    source, count, sigma, norm, batch = NoiseSource(), 10_000, 1.7, 30.0, 64.0
    sums = torch.full((2, 1), 5.0, dtype=torch.float64)
    rows = torch.tensor(
        [release(sums, noise_std=sigma * norm, normaliser=batch, noise=source) for _ in range(count)],
        dtype=torch.float64,
    )
    residual = (rows * batch - 5.0) / norm / sigma
    assert stats.kstest(residual.flatten().numpy(), "norm").pvalue > 0.001
    assert abs(torch.corrcoef(residual.T)[0, 1]) < 0.05
    assert abs(torch.corrcoef(torch.stack([residual[:-1, 0], residual[1:, 0]]))[0, 1]) < 0.05
    firsts = torch.stack([V.values(step=t, direction=0, tensor="theta", size=1)[0] for t in range(count // 5)]).double()
    assert abs(torch.corrcoef(torch.stack([residual[: count // 5, 0], firsts]))[0, 1]) < 0.1


def test_global_seeds_do_not_reproduce_the_noise() -> None:
    sums = torch.zeros(3, 0, dtype=torch.float64)
    found = []
    for _ in range(2):
        torch.manual_seed(42)  # the planted fault of two public codes: noise follows the directions' seed
        found.append(release(sums, noise_std=1.0, normaliser=1.0, noise=NoiseSource()))
    assert found[0] != found[1]


def test_laplace_noise_has_the_laplace_law() -> None:
    from scipy import stats

    sums = torch.zeros(20_000, 1, dtype=torch.float64)
    drawn = release(sums, noise_std=2.5, normaliser=1.0, noise=NoiseSource(), mechanism=Mechanism.LAPLACE)
    assert stats.kstest(drawn, stats.laplace(scale=2.5).cdf).pvalue > 0.001


# T9: estimator against exact answers and autograd


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
def test_slope_of_a_quadratic_is_exact_for_any_scale(scale: float) -> None:
    root = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, theta = root @ root.T, torch.linspace(-1, 1, 8, dtype=torch.float64)
    model = Quadratic(matrix, theta)
    found = slopes(model, torch.zeros(3), [0, 1], scale)
    for p in range(2):
        v = direction(model, p)["theta"].double()
        exact = (v @ matrix @ theta).item()
        assert found[p].tolist() == pytest.approx([exact] * 3, abs=1e-10 * max(1.0, 1e-3 / scale))


@pytest.mark.parametrize("kind", list(DirectionKind))
def test_mean_of_the_estimator_is_the_gradient(kind: DirectionKind) -> None:
    root = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, theta = root @ root.T, torch.linspace(-1, 1, 8, dtype=torch.float64)
    v = Directions(run="mean", kind=kind).values(step=0, direction=0, tensor="w", size=8 * 100_000)
    v = v.view(-1, 8).double()
    estimate = ((v @ matrix @ theta)[:, None] * v).mean(dim=0)
    exact = matrix @ theta
    assert (estimate - exact).norm() / exact.norm() < 0.05


def exact_losses(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(dim=1)


def test_slopes_of_a_transformer_match_autograd() -> None:
    """Directional derivative of every example in fp64, against one backward pass per example."""
    model = tiny_gpt().double().eval()
    batch = torch.stack(token_records(2))
    parameters = trainable_parameters(model)
    found = slopes(model, batch, range(2), 1e-5, exact_losses)
    for i, row in enumerate(batch):
        gradient = torch.autograd.grad(exact_losses(model, row[None])[0], list(parameters.values()))
        for p in range(2):
            v = direction(model, p)
            exact = sum((g * v[name]).sum() for g, name in zip(gradient, parameters, strict=True))
            assert found[p, i].item() == pytest.approx(float(exact), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_mean_over_many_directions_approaches_the_transformers_gradient() -> None:
    model = tiny_gpt(n_inner=8).double()
    for name, p in model.named_parameters():
        p.requires_grad_("ln_f" in name)
    batch = torch.stack(token_records(2))
    parameters = trainable_parameters(model)
    exact = torch.cat(
        [g.flatten() for g in torch.autograd.grad(gpt_losses(model.eval(), batch).sum(), list(parameters.values()))]
    )
    count = 2000
    found = slopes(model, batch, range(count), 1e-4, gpt_losses).sum(dim=1)
    total = torch.zeros_like(exact)
    for p in range(count):
        total += found[p] * torch.cat([v.double().flatten() for v in direction(model, p).values()])
    # relative error of a Gaussian estimator of d = 32 coordinates: sqrt((d + 1) / count) = 0.13
    assert (total / count - exact).norm() / exact.norm() < 0.25


# T10: perturbation leaves nothing behind, and equals the whole perturbed model


@pytest.mark.parametrize("mode", ["per_layer", "sparse"])
def test_weights_are_bitwise_unchanged_by_evaluation(mode: str) -> None:
    model = tiny_gpt().eval()
    before = copy.deepcopy(model.state_dict())
    masks = {"transformer.wte.weight": Mask(torch.tensor([3, 40, 41]))} if mode == "sparse" else None
    for _ in range(20):
        slopes(model, torch.stack(token_records(2)), range(2), 1e-3, gpt_losses, masks=masks)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert model.lm_head.weight is model.transformer.wte.weight  # type: ignore[union-attr]


def test_in_place_drift_in_fp32_stays_below_1e_7_a_step() -> None:
    model = tiny_gpt().eval()
    before = copy.deepcopy(model.state_dict())
    slopes(model, torch.stack(token_records(2)), [0], 1e-3, gpt_losses, mode="in_place")
    drift = max((before[n] - p).abs().max().item() for n, p in model.state_dict().items() if "ln" not in n)
    assert drift <= 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_by_name(dtype: torch.dtype) -> None:
    model = tiny_gpt()
    model.transformer.h[1].mlp.c_fc.to(dtype)  # type: ignore[union-attr, index]
    with pytest.raises(UnsupportedModel, match=r"transformer\.h\.1\.mlp\.c_fc\.weight.*fp32 masters"):
        trainable_parameters(model)


def test_why_half_precision_is_refused() -> None:
    """The planted fault: bf16 in place walks away by a fifth of β a cycle, without any update."""
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.05
    z = V.values(step=0, direction=0, tensor="w", size=w.numel())
    half = w.bfloat16()
    start = half.clone()
    for scale in (1e-3, -2e-3, 1e-3):
        half += (scale * z).bfloat16()
    assert 1e-4 < (half.float() - start.float()).square().mean().sqrt().item() < 4e-4


@pytest.mark.parametrize("kind", list(DirectionKind))
@pytest.mark.parametrize("mode", ["per_layer", "in_place"])
@pytest.mark.parametrize("cache", [0, 10**9])
def test_a_perturbed_pass_equals_the_functionally_perturbed_model(mode: str, kind: DirectionKind, cache: int) -> None:
    """Oracle: torch.func with every weight moved at once, tied embeddings moved together."""
    model = tiny_gpt().eval()
    directions = Directions(run="oracle", kind=kind)
    batch = torch.stack(token_records(3))
    parameters = trainable_parameters(model)
    perturb = perturbation(model, parameters, directions, mode=mode, cache=BitCache(cache))
    with torch.no_grad(), perturb.at(step=0, direction=2, scale=0.05):
        found = gpt_losses(model, batch)
    z = direction(model, 2, directions)
    moved = {name: p.detach() + 0.05 * z[name] for name, p in parameters.items()}
    moved["lm_head.weight"] = moved["transformer.wte.weight"]

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tokens: Tensor) -> Tensor:
            return gpt_losses(self.inner, tokens)

    expected = torch.func.functional_call(Wrapped(), {f"inner.{n}": p for n, p in moved.items()}, (batch,))
    assert torch.allclose(found, expected.detach(), rtol=2e-5, atol=2e-6)
    assert not torch.allclose(found, gpt_losses(model, batch).detach(), rtol=1e-3)


@pytest.mark.parametrize("kind", list(DirectionKind))
def test_a_cache_forgets_the_direction_before(kind: DirectionKind) -> None:
    directions, cache = Directions(run="cache", kind=kind), BitCache(10**9)
    for step, direction in ((0, 0), (0, 1), (1, 0), (0, 0)):
        fresh = directions.stream(step=step, direction=direction, tensor="w")
        for _ in range(2):  # drawn, then remembered
            words = cache.words(DirectionAt(directions, step, direction), "w", 300)
            assert words is not None and (words == fresh.words(300)).all()


class OuterScale(nn.Module):
    """A weight of its own around modules with weights, and a layer that returns its weight."""

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.linspace(-1, 1, 4))

        def forward(self) -> Tensor:
            return self.row

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.first, self.second, self.row = nn.Linear(4, 4), nn.Linear(4, 4), self.Row()

    def forward(self, x: Tensor) -> Tensor:
        row = self.row()
        return (self.second(self.first(x) * self.scale) + row).sum(dim=-1)


def test_nested_weights_and_returned_weights_are_perturbed_once() -> None:
    model, x = OuterScale(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    perturb = perturbation(model, trainable_parameters(model), V)
    with torch.no_grad(), perturb.at(step=0, direction=0, scale=0.1):
        found = model(x)
    moved = {name: p.detach() + 0.1 * direction(model, 0)[name] for name, p in trainable_parameters(model).items()}
    assert torch.allclose(found, torch.func.functional_call(model, moved, (x,)), rtol=1e-5)


class ReadsOutside(nn.Module):
    """A head computed from the embedding's weight, outside the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.embedding(x), self.embedding.weight).sum(dim=(1, 2))


class NeverCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)[:, 0]


class Wandering(nn.Module):
    """Two passes run the layers in different orders, the last one twice, with a weight that two of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
        self.layers[3].weight = self.layers[0].weight
        self.order = [0, 1, 2, 3]

    def forward(self, x: Tensor) -> Tensor:
        for number in self.order:
            x = torch.tanh(self.layers[number](x))
        return x


@pytest.mark.parametrize("group", [0, 80, 1 << 19])
def test_layers_perturbed_ahead_serve_any_order_of_calls(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpaudit.trainers.zeroth_order.perturb.GROUP", group)
    model, x = Wandering(), torch.randn(3, 5)
    parameters = trainable_parameters(model)
    perturb = perturbation(model, parameters, V)
    orders = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 3, 1], [1, 3], [0, 1, 2, 3])
    for direction, order in enumerate(orders):
        model.order = list(order)
        for scale in (0.3, -0.3):
            moved = {
                name: p + scale * V.values(step=1, direction=direction, tensor=name, size=p.numel()).view(p.shape)
                for name, p in parameters.items()
            }
            with perturb.at(step=1, direction=direction, scale=scale), torch.no_grad():
                found = [model(x), model(x)]  # two physical batches at one point
            expected = torch.func.functional_call(model, moved, (x,))
            assert all(torch.allclose(one, expected, atol=1e-6) for one in found)


def test_a_shared_weight_is_held_only_until_its_last_module_has_run() -> None:
    model, batch = tiny_gpt().eval(), torch.stack(token_records(2))
    perturb = perturbation(model, trainable_parameters(model), V)
    assert isinstance(perturb, PerLayer)
    held: list[Tensor | None] = []
    model.lm_head.register_forward_pre_hook(lambda *_: held.extend(perturb._shared.values()))
    for number in range(2):
        with torch.no_grad(), perturb.at(step=0, direction=number, scale=0.1):
            model(input_ids=batch)
            assert perturb._shared == {"transformer.wte.weight": None}
    assert len(held) == 2 and all(weight is not None for weight in held)


def test_weights_out_of_a_hooks_reach_are_refused_by_name() -> None:
    outside = ReadsOutside()
    with pytest.raises(UnsupportedModel, match=r"'embedding\.weight' is read outside its own module.*in_place"):
        slopes(outside, torch.tensor([[1, 2], [3, 4]]), [0], 1e-3)
    slopes(outside, torch.tensor([[1, 2], [3, 4]]), [0], 1e-3, mode="in_place")
    with pytest.raises(UnsupportedModel, match=r"'unused\.weight'"):
        slopes(NeverCalled(), torch.ones(2, 4), [0], 1e-3)


def test_hooks_are_gone_and_weights_back_after_an_error() -> None:
    model = tiny_gpt()
    parameters = trainable_parameters(model)
    with (
        pytest.raises(RuntimeError, match="stop"),
        perturbation(model, parameters, V).at(step=0, direction=0, scale=1.0),
    ):
        raise RuntimeError("stop")
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    assert all(trainable_parameters(model)[name] is p for name, p in parameters.items())


# the update


def test_update_is_the_mean_over_directions_with_one_proximal_pull() -> None:
    model = Slope(1000, torch.float32)
    with torch.no_grad():
        model.theta.copy_(torch.linspace(-1, 1, 1000))
    anchor = {"theta": torch.zeros(1000)}
    before = model.theta.detach().double().clone()
    apply_update(trainable_parameters(model), V, [2.0, -1.0, 0.5], step=7, learning_rate=0.1, pull=Pull(0.25, anchor))
    v = torch.stack([V.values(step=7, direction=p, tensor="theta", size=1000) for p in range(3)]).double()
    expected = before - 0.1 * ((2 * v[0] - v[1] + 0.5 * v[2]) / 3 + 0.25 * before)
    assert torch.allclose(model.theta.detach().double(), expected, atol=1e-6)


# T13 and data dependence


def test_a_records_slope_does_not_depend_on_its_company() -> None:
    model = tiny_gpt().eval()
    rows = token_records(9)
    whole = slopes(model, torch.stack(rows[:8]), range(2), 1e-3, gpt_losses)
    without = slopes(model, torch.stack([*rows[:7], rows[8]]), range(2), 1e-3, gpt_losses)
    assert torch.equal(whole[:, :7], without[:, :7])


def test_a_mean_over_the_batch_is_no_loss_per_example() -> None:
    model, rows = tiny_gpt(), token_records(4)
    with pytest.raises(InvalidValue, match=r"one loss per example"):
        slopes(model, torch.stack(rows), [0], 1e-3, lambda m, b: gpt_losses(m, b).mean())


def test_half_precision_losses_are_refused() -> None:
    with pytest.raises(InvalidValue, match="float32 or float64"):
        slopes(Slope(), torch.ones(2, 6).double(), [0], 1e-3, lambda m, b: own_losses(m, b).half())


@pytest.mark.parametrize("method", ["agzo", "p-gap", "FZOO", "grzo", "mezo-gv", "loss_selected_layers"])
def test_data_dependent_directions_are_refused_by_name(method: str) -> None:
    with pytest.raises(PrivacyRefusal, match="ledger does not charge"):
        refuse_data_dependent(method)


def test_directions_of_ones_own_are_refused() -> None:
    class FromActivations(Directions):
        pass

    with pytest.raises(PrivacyRefusal, match="FromActivations may depend on private data"):
        refuse_data_dependent(FromActivations(run="r"))
    refuse_data_dependent(V)
