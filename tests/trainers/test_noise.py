import pickle

import pytest
import torch
from scipy import stats

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import NoiseSource, NoNoise, noisy_mean


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


def test_the_whole_generator_state_is_entropy_not_32_bits():
    # Two generators with the same 32-bit seed word must still differ: the state itself was replaced.
    from dpaudit.trainers.noise import _entropy_generator

    state = _entropy_generator(torch.device("cpu")).get_state()
    seeded = torch.Generator().manual_seed(int.from_bytes(state[:8].numpy().tobytes(), "little"))
    assert not torch.equal(state[24:5016], seeded.get_state()[24:5016])


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
