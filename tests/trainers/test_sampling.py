import copy
import pickle

import numpy as np
import pytest
from scipy import stats

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import PoissonSampler
from dpaudit.trainers.sampling import FullSampler, ScriptedSampler, TruncatedPoissonSampler, countable, sampler_for
from tests.trainers.test_plan import plan

RNG = np.random.default_rng


def test_counts_follow_the_binomial_law():
    # Mean AND variance: a shuffled loader has the right mean and no variance.
    n, q, draws = 500, 0.04, 4000
    sampler = PoissonSampler(n, q, generator=RNG(7))
    sizes = np.array([sampler.draw().size for _ in range(draws)])
    edges = [0, 14, 17, 19, 21, 23, 26, n + 1]
    observed = np.histogram(sizes, bins=edges)[0]
    law = stats.binom(n, q)
    expected = draws * np.diff([law.cdf(e - 1) for e in edges])
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    assert sizes.var() == pytest.approx(n * q * (1 - q), rel=0.1)


def test_records_are_included_independently():
    n, q, draws = 30, 0.3, 6000
    sampler = PoissonSampler(n, q, generator=RNG(8))
    seen = np.zeros((draws, n))
    for row in seen:
        row[sampler.draw()] = 1
    assert np.abs(seen.mean(0) - q).max() < 5 * np.sqrt(q * (1 - q) / draws)
    correlation = np.corrcoef(seen.T) - np.eye(n)
    assert np.abs(correlation).max() < 5 / np.sqrt(draws)


def test_draws_are_distinct_sorted_and_in_range_and_may_be_empty():
    sampler = PoissonSampler(1000, 0.5, generator=RNG(1))
    for _ in range(20):
        drawn = sampler.draw()
        assert drawn.dtype == np.int64 and (np.diff(drawn) > 0).all() and 0 <= drawn[0] and drawn[-1] < 1000
    assert PoissonSampler(1000, 0.0).draw().size == 0
    assert PoissonSampler(0, 0.5).draw().size == 0
    assert PoissonSampler(10, 1.0).draw().tolist() == list(range(10))


def test_a_billion_records_cost_a_batch():
    sampler = PoissonSampler(10**9, 1e-6)  # expected batch 1,000
    sizes = [sampler.draw().size for _ in range(50)]
    assert abs(np.mean(sizes) - 1000) < 6 * np.sqrt(1000 / 50)


def test_two_fresh_samplers_differ_and_state_cannot_be_written():
    first, second = (PoissonSampler(10_000, 0.01).draw().tolist() for _ in range(2))
    assert first != second
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(PrivacyRefusal, match="never written"):
            write(PoissonSampler(10, 0.1))
    assert not PoissonSampler(10, 0.1).is_test
    assert PoissonSampler(10, 0.1, generator=RNG(0)).is_test


def test_truncation_keeps_a_uniform_subset():
    sampler = TruncatedPoissonSampler(20, 0.9, 5, generator=RNG(3))
    counts = np.zeros(20)
    for _ in range(4000):
        drawn = sampler.draw()
        assert drawn.size <= 5
        counts[drawn] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.04


def test_the_plan_names_the_sampler():
    assert isinstance(sampler_for(plan(), 10), PoissonSampler)
    assert isinstance(sampler_for(plan(sampling="truncated_poisson", max_batch=300), 10), TruncatedPoissonSampler)
    full = sampler_for(plan(sampling="none", expected_batch_size=4000), 3)
    assert isinstance(full, FullSampler) and full.draw().tolist() == [0, 1, 2]
    # q follows the plan's public size, not the number of records at hand
    assert sampler_for(plan(), 10).sampling_probability == 0.05
    with pytest.raises(PrivacyRefusal, match="shuffle"):
        sampler_for(plan(sampling="shuffle"), 10)


def test_streams_are_refused_with_the_remedy():
    with pytest.raises(PrivacyRefusal, match="materialise"):
        countable(iter([1, 2]))
    assert countable([1, 2]) == 2


def test_a_script_runs_out_loudly():
    sampler = ScriptedSampler([[1], []])
    assert [sampler.draw().tolist() for _ in range(2)] == [[1], []]
    with pytest.raises(InvalidValue, match="used up"):
        sampler.draw()
