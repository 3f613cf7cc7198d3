import math
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from dpaudit.trainers.normals import SUPPORT, KeyedWords, Normals, SystemWords, on_device

TORCH_EDGE = math.sqrt(2 * 24 * math.log(2))  # 5.7684, where torch's fp32 normals end on a CPU


class Fixed:
    """Words of one value."""

    def __init__(self, uniform, integer):
        self.uniform, self.integer = uniform, integer

    def uniforms(self, out):
        out[:] = self.uniform

    def integers(self, count):
        return np.full(count, self.integer, np.int32)


class OnlyTails(KeyedWords):
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


@pytest.mark.parametrize("words", [KeyedWords, SystemWords])
def test_uniforms_are_multiples_of_two_to_the_minus_53_and_never_zero(words):
    out = np.empty(1 << 13)
    words().uniforms(out)
    assert out.min() > 0 and out.max() <= 1
    assert np.array_equal(out * 2.0**53, np.rint(out * 2.0**53))
    assert (out * 2.0**52 != np.rint(out * 2.0**52)).mean() > 0.4  # the last bit is used
    assert stats.kstest(out, "uniform").pvalue > 1e-4
    integers = words().integers(1 << 13)
    assert stats.kstest(integers / 2.0**32 + 0.5, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("words", [KeyedWords, SystemWords])
def test_law_moments_and_independence(words):
    x = drawn(words()).astype(np.float64)
    assert stats.kstest(x, "norm").pvalue > 1e-4
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / len(x))
        assert abs((x**power).mean() - moment) < 5 * spread
    for lag in (1, 1 << 13, 1 << 14):  # a pair's two values stand half a block apart
        for f in (lambda v: v, np.abs, lambda v: np.abs(v) > 2):
            assert abs(np.corrcoef(f(x[:-lag]), f(x[lag:]))[0, 1]) < 5 / math.sqrt(len(x))


def test_beyond_torchs_edge_the_radius_is_still_exponential():
    pairs = drawn(OnlyTails()).reshape(-1, 2, 1 << 13).astype(np.float64)
    energies = (pairs**2).sum(1).ravel() / 2 - 24 * math.log(2)  # r²/2 given that it exceeds torch's last one
    assert energies.min() > -1e-4
    assert stats.kstest(energies, "expon").pvalue > 1e-4
    assert np.abs(pairs).max() > TORCH_EDGE


def test_far_values_come_as_often_as_a_gaussians():
    x = np.abs(drawn(KeyedWords(), 20_000_000))
    for edge in (3.0, 4.0, 4.5, 5.0):
        assert stats.binomtest(int((x > edge).sum()), x.size, math.erfc(edge / math.sqrt(2))).pvalue > 1e-5


@pytest.mark.slow
def test_two_billion_values_reach_beyond_torchs_edge_as_often_as_a_gaussian():
    normals, out, size = Normals(KeyedWords()), np.empty(1 << 24, np.float32), 0
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
    whole = Normals(KeyedWords())
    for shape in ((), (0,), (1,), (3, 5), (1 << 14,), ((1 << 14) + 1,), (5, 1 << 14)):
        x = whole.sample(shape, 0.25)
        assert x.shape == shape and x.dtype == np.float32 and np.isfinite(x).all()
        if x.size > 1000:
            assert float(x.std()) == pytest.approx(0.25, rel=0.05)
            assert len(np.unique(x)) > 0.999 * x.size


def test_threads_never_get_the_same_value():
    normals, found = Normals(KeyedWords()), []

    def take():
        mine = [normals.sample((50,), 1.0) for _ in range(400)]
        found.append(np.concatenate(mine))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(np.unique(np.concatenate(found))) > 0.999 * 80_000


def test_the_key_is_exchanged(monkeypatch):
    from dpaudit.trainers import normals

    made, real = [], normals._sfc64
    monkeypatch.setattr(normals, "_sfc64", lambda: made.append(1) or real())
    drawn(KeyedWords(), 1 << 22)
    assert len(made) == 4


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
