import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import NoiseSource, charged_mean, noise, words
from dpaudit.trainers.noise import NoNoise, noise_statement, sample_double
from dpaudit.trainers.normals import SUPPORT
from dpaudit.trainers.secret import PerProcess
from dpaudit.trainers.step import noisy_mean


@pytest.mark.parametrize("secure", [False, True])
def test_law_of_the_noise(secure):
    drawn = NoiseSource(secure=secure).sample((200_001,), 0.3)
    assert drawn.dtype == torch.float32 and drawn.shape == (200_001,)
    assert stats.kstest(drawn.numpy(), "norm", args=(0, 0.3)).pvalue > 1e-4
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.01)
    assert abs(float(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1])) < 0.012


def test_two_sources_and_two_draws_differ():
    one, two = NoiseSource(), NoiseSource()
    draws = [one.sample((4,), 1.0), one.sample((4,), 1.0), two.sample((4,), 1.0)]
    assert len({tuple(d.tolist()) for d in draws}) == 3


def test_torch_seeds_do_not_reach_the_noise():
    torch.manual_seed(0)
    first = NoiseSource().sample((4,), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, NoiseSource().sample((4,), 1.0))


def test_every_draw_of_a_devices_generator_has_a_fresh_key():
    source, device = NoiseSource(), torch.device("cpu")
    seeds = {source._generator(device).initial_seed() for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("std", [1e-40, 1e35, 5e-324])
def test_a_scale_that_fp32_cannot_hold_is_refused(std):
    with pytest.raises(InvalidValue, match="fp32 holds no Gaussian"):
        NoiseSource().sample((3,), std)


@pytest.mark.parametrize("std", [1e-30, 1e30])
def test_the_largest_and_the_smallest_scale_are_gaussian(std):
    for source in (NoiseSource(), NoiseSource(secure=True), NoiseSource(generator=torch.Generator())):
        drawn = source.sample((20_000,), std).double() / std
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("secure", [False, True])
def test_noise_stands_on_no_grid_that_would_show_the_sums_lower_bits(secure):
    steps = NoiseSource(secure=secure).sample((50_000,), 1.0).double() * 2**16
    assert float((steps == steps.floor()).double().mean()) < 0.05


def bits_in_the_clear(released, exact):
    """Whether released minus exact are all fp32 numbers: then fp32 noise left the sum's lower bits as they were."""
    noise = np.asarray(released, dtype=np.float64) - np.asarray(exact, dtype=np.float64)
    return np.abs(noise - noise.astype(np.float32)) < 1e-13


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("secure", [False, True])
def test_noise_covers_every_bit_of_a_zeroth_order_release(mechanism, secure):
    from dpaudit.trainers.zeroth_order.step import release

    sums = torch.full((500, 1), 1 / 3, dtype=torch.float64)
    released = release(sums, noise_std=1.0, normaliser=1.0, noise=NoiseSource(secure=secure), mechanism=mechanism)
    assert bits_in_the_clear(released, 1 / 3).mean() < 0.02


def test_noise_covers_every_bit_of_a_charged_mean_and_of_fp64_sums():
    means = [
        charged_mean([1 / 3], bound=1.0, noise_multiplier=1.0, public_size=1, journal=MemoryJournal())
        for _ in range(100)
    ]
    assert bits_in_the_clear(means, 1 / 3).mean() < 0.05
    (released,) = noisy_mean(
        [torch.full((1000,), 1 / 3, dtype=torch.float64)], noise=NoiseSource(), noise_std=1.0, normaliser=1.0
    )
    assert released.dtype == torch.float64
    assert bits_in_the_clear(released.numpy(), 1 / 3).mean() < 0.02
    assert stats.kstest(released.numpy() - 1 / 3, "norm").pvalue > 1e-4


def test_finer_draws_change_neither_law_nor_scale():
    drawn = sample_double(NoiseSource(), (200_000,), 3.0)
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn.numpy(), "norm", args=(0, 3.0)).pvalue > 1e-4


def test_laplace_noise_has_its_tails():
    from dpaudit.trainers.zeroth_order.step import release

    drawn = np.abs(
        release(torch.zeros(400_000, 1), noise_std=1.0, normaliser=1.0, noise=NoiseSource(), mechanism="laplace")
    )
    assert stats.kstest(drawn, "expon").pvalue > 1e-4
    for edge in (5, 8, 10):
        assert stats.binomtest(int((drawn > edge).sum()), drawn.size, math.exp(-edge)).pvalue > 1e-5


@pytest.mark.parametrize("secure", [False, True])
def test_the_statement_names_generator_support_and_what_is_not_proven(secure):
    stated = noise_statement(secure=secure)
    assert 8.5 <= stated["noise_support_sigma"] <= SUPPORT
    assert "cryptographic" in stated["noise_generator"] and len(stated["noise_not_proven"]) == (1 if secure else 2)
    assert stated["noise_generator"].startswith("the operating system's" if secure else "OpenSSL's")


def test_the_statement_follows_the_generator_that_gave_the_bits(monkeypatch):
    def fails(count):
        raise words.ssl.SSLError("no more")

    monkeypatch.setattr(words, "openssl", PerProcess(words.OpenSSL))
    monkeypatch.setattr(noise, "openssl", words.openssl)
    source = NoiseSource()
    source.sample((3,), 1.0)
    monkeypatch.setattr(words.ssl, "RAND_bytes", fails)
    drawn = source.sample((40_000,), 1.0)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-4
    stated = noise_statement()["noise_generator"]
    assert stated.startswith("OpenSSL's") and "after it failed, the operating system's on a CPU" in stated


def test_state_is_never_written_and_tests_are_marked():
    with pytest.raises(PrivacyRefusal, match="never written"):
        pickle.dumps(NoiseSource())
    assert not NoiseSource().is_test
    assert NoiseSource(generator=torch.Generator()).is_test and NoNoise().is_test
    with pytest.raises(InvalidValue, match="std"):
        NoiseSource().sample((1,), -1.0)


def test_zero_sigma_and_empty_shapes():
    assert torch.equal(NoiseSource().sample((3,), 0.0), torch.zeros(3))
    assert NoiseSource(secure=True).sample((0,), 1.0).shape == (0,)
    assert NoiseSource(secure=True).sample((), 1.0).shape == ()


def test_noisy_mean_scales_the_sum_and_the_noise_by_the_constant():
    total = torch.full((100_000,), 6.0)
    (released,) = noisy_mean([total], noise=NoiseSource(), noise_std=0.5, normaliser=10.0)
    assert float(released.mean()) == pytest.approx(0.6, abs=0.002)
    assert float(released.std()) == pytest.approx(0.05, rel=0.02)


def test_only_the_noisy_process_draws_and_reduction_comes_before_the_division():
    def double(tensors):
        for t in tensors:
            t.mul_(2)

    (released,) = noisy_mean(
        [torch.ones(3)], noise=NoiseSource(), noise_std=9.0, normaliser=4.0, reduce=double, adds_noise=False
    )
    assert released.tolist() == [0.5] * 3
