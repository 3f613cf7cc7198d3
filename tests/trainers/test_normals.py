import math
import os
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from dpaudit.trainers.normals import SUPPORT, Normals, on_device
from dpaudit.trainers.words import BytesWords, openssl_bytes

TORCH_EDGE = math.sqrt(2 * 24 * math.log(2))  # 5.7684, where torch's fp32 normals end on a CPU


class Fixed:
    """Words of one value."""

    def __init__(self, uniform, integer):
        self.uniform, self.integer = uniform, integer

    def uniforms(self, out):
        out[:] = self.uniform

    def integers(self, count):
        return np.full(count, self.integer, np.int32)


def default_words():
    return BytesWords(openssl_bytes)


class OnlyTails(BytesWords):
    """Uniforms whose first 24 bits are zero: what torch's fp32 transform cannot tell from its last radius."""

    def uniforms(self, out):
        super().uniforms(out)
        out *= 2.0**-24


def drawn(words, size=1 << 20, std=1.0):
    out = np.empty(size, np.float32)
    Normals(words).fill(out, std)
    return out


@pytest.mark.parametrize("integer", [0, 1, -1, 2**31 - 1, -(2**31), 2**30, 12345])
def test_the_extreme_words_give_the_stated_support_and_no_special_value(integer):
    last = drawn(Fixed(2.0**-53, integer), 1 << 14)
    assert np.isfinite(last).all()
    pairs = last.reshape(2, -1)
    assert np.hypot(*pairs).max() == pytest.approx(SUPPORT, rel=1e-6)
    assert SUPPORT > 8.5
    assert not drawn(Fixed(1.0, integer), 1 << 14).any()  # u = 1 is the radius 0


@pytest.mark.parametrize("take", [openssl_bytes, os.urandom])
def test_law_moments_and_independence(take):
    x = drawn(BytesWords(take)).astype(np.float64)
    assert stats.kstest(x, "norm").pvalue > 1e-4
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / len(x))
        assert abs((x**power).mean() - moment) < 5 * spread
    for lag in (1, 1 << 13, 3 << 13, 1 << 14):  # a pair's two values stand half a block apart
        for f in (lambda v: v, np.abs, lambda v: np.abs(v) > 2):
            assert abs(np.corrcoef(f(x[:-lag]), f(x[lag:]))[0, 1]) < 5 / math.sqrt(len(x))


def test_beyond_torchs_edge_the_radius_is_still_exponential():
    pairs = drawn(OnlyTails(openssl_bytes), 60 << 14).reshape(-1, 2, 3 << 13).astype(np.float64)
    energies = (pairs**2).sum(1).ravel() / 2 - 24 * math.log(2)  # r²/2 given that it exceeds torch's last one
    assert energies.min() > -1e-4
    assert stats.kstest(energies, "expon").pvalue > 1e-4
    assert np.abs(pairs).max() > TORCH_EDGE


def test_far_values_come_as_often_as_a_gaussians():
    x = np.abs(drawn(default_words(), 20_000_000))
    for edge in (3.0, 4.0, 4.5, 5.0):
        assert stats.binomtest(int((x > edge).sum()), x.size, math.erfc(edge / math.sqrt(2))).pvalue > 1e-5


@pytest.mark.slow
def test_two_billion_values_reach_beyond_torchs_edge_as_often_as_a_gaussian():
    normals, out, size = Normals(default_words()), np.empty(1 << 24, np.float32), 0
    edges = (4.0, 4.5, 5.0, 5.5, TORCH_EDGE, 6.0)
    found = dict.fromkeys(edges, 0)
    while size < 2e9:
        normals.fill(out, 1.0)
        np.abs(out, out=out)
        far = out[out > edges[0]]
        for edge in edges:
            found[edge] += int((far > edge).sum())
        size += out.size
    for edge in edges:
        expected = size * math.erfc(edge / math.sqrt(2))
        assert 1e-5 < stats.poisson.cdf(found[edge], expected) and stats.poisson.sf(found[edge] - 1, expected) > 1e-5
    assert found[TORCH_EDGE] > 0  # 16 expected, P(0) = 1e-7


def test_scale_and_block_edges():
    whole = Normals(default_words())
    for shape in ((), (0,), (1,), (3, 5), (1 << 14,), ((1 << 14) + 1,), (3 << 14,), ((3 << 14) + 1,), (5, 1 << 14)):
        x = whole.sample(shape, 0.25)
        assert x.shape == shape and x.dtype == np.float32 and np.isfinite(x).all()
        if x.size > 1000:
            assert float(x.std()) == pytest.approx(0.25, rel=0.05)
            assert len(np.unique(x)) > 0.999 * x.size


def test_threads_never_get_the_same_value():
    normals, found = Normals(default_words()), []

    def take():
        mine = [normals.sample((50,), 1.0) for _ in range(400)]
        found.append(np.concatenate(mine))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(np.unique(np.concatenate(found))) > 0.999 * 80_000


def test_a_fill_leaves_no_value_out_and_repeats_none():
    normals = Normals(default_words())
    for size in (5, 1 << 14, (1 << 14) + 7, (3 << 14) - 1, (3 << 14) + 3, (4 << 14) + 1):
        out = np.full(size, np.nan, np.float32)
        normals.fill(out, 1.0)
        assert np.isfinite(out).all() and len(np.unique(out)) > 0.999 * size


def test_values_are_those_of_the_transform_in_double_precision():
    class Kept(BytesWords):
        def uniforms(self, out):
            super().uniforms(out)
            self.u = out.copy()

        def integers(self, count):
            self.a = super().integers(count)
            return self.a

    words = Kept(openssl_bytes)
    found = drawn(words, 3 << 14, std=0.5).reshape(2, -1).astype(np.float64)
    radius, angle = 0.5 * np.sqrt(-2 * np.log(words.u)), words.a * (math.pi / 2**31)
    for half, function in zip(found, (np.cos, np.sin), strict=True):
        assert np.abs(half - radius * function(angle)).max() < 2e-6


def test_noise_made_under_inference_mode_is_made_outside_of_it_too():
    normals = Normals(default_words())
    with torch.inference_mode():
        normals.sample((1 << 15,), 1.0)
    assert np.isfinite(normals.sample((1 << 15,), 1.0)).all()


def test_accelerators_draw_in_double(monkeypatch):
    kinds, real = [], torch.Tensor.normal_

    def normal_(self, *args, **kwargs):
        kinds.append(self.dtype)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    monkeypatch.setattr("dpaudit.trainers.normals._DEVICE_BLOCK", 1000)
    x = on_device((3, 1001), 0.5, torch.device("cpu"), torch.Generator().manual_seed(1))
    assert kinds == [torch.float64] * 4 and x.dtype == torch.float32 and x.shape == (3, 1001)
    assert stats.kstest(x.flatten().numpy() / 0.5, "norm").pvalue > 1e-3
    again = on_device((3, 1001), 0.5, torch.device("cpu"), torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


@pytest.mark.slow
def test_torchs_own_doubles_reach_beyond_its_single_edge():
    generator, beyond, size = torch.Generator().manual_seed(0), 0, 0
    while size < 1.5e9:
        beyond += int((on_device((1 << 24,), 1.0, torch.device("cpu"), generator).abs() > TORCH_EDGE).sum())
        size += 1 << 24
    expected = size * math.erfc(TORCH_EDGE / math.sqrt(2))  # 12
    assert stats.poisson.sf(beyond - 1, expected) > 1e-4 and stats.poisson.cdf(beyond, expected) > 1e-4
    assert beyond > 0
