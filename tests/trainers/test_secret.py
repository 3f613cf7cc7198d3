"""No secret stream is shared by two processes."""

import copy
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from dpaudit.attacks import flip_coins
from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers import NoiseSource, PoissonSampler, words
from dpaudit.trainers.sampling import TruncatedPoissonSampler
from dpaudit.trainers.secret import PerProcess


def streams():
    """Every secret stream, as a function without arguments that draws from it, used once already."""
    noise, secure, large = NoiseSource(), NoiseSource(secure=True), NoiseSource()
    poisson, cut = PoissonSampler(10_000, 0.05), TruncatedPoissonSampler(10_000, 0.05, 50)
    found = {
        "OpenSSL's words": lambda: np.frombuffer(words.openssl_bytes(40), np.int16).tolist(),
        "noise": lambda: noise.sample((20,), 1.0).tolist(),
        "secure noise": lambda: secure.sample((20,), 1.0).tolist(),
        "large noise": lambda: large.sample((40_000,), 1.0)[-20:].tolist(),
        "draws": lambda: poisson.draw().tolist(),
        "truncated draws": lambda: cut.draw().tolist(),
        "coins": lambda: list(flip_coins(100)),
    }
    for draw in found.values():
        draw()
    return found


def in_child(function):
    """What a function returns in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            with os.fdopen(writer, "wb") as out:
                pickle.dump(function(), out)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as source:
        value = pickle.load(source)
    os.waitpid(child, 0)
    return value


@pytest.mark.parametrize("name", streams())
def test_a_forked_child_and_its_parent_draw_differently(name):
    draw = streams()[name]
    one, two = in_child(draw), in_child(draw)
    nested = in_child(lambda: in_child(draw))
    mine = draw()
    drawn = [tuple(map(float, part)) for part in (one, two, nested, mine)]
    assert len(set(drawn)) == 4


def test_the_parent_keeps_its_stream_and_a_child_continues_its_own():
    noise = NoiseSource()
    noise.sample((3,), 1.0)
    pair = in_child(lambda: (noise.sample((5,), 1.0).tolist(), noise.sample((5,), 1.0).tolist()))
    assert pair[0] != pair[1]


def test_a_child_shares_no_bits_with_its_parent_even_if_openssl_does_not_see_the_fork(monkeypatch):
    states = {}

    def take(count):  # a library whose state a fork copies, and which only added entropy changes
        states["drawn"] = states.get("drawn", 0) + 1
        seed = [states["drawn"], *states.get("added", b"")]
        return np.random.default_rng(seed).bytes(count)

    monkeypatch.setattr(words.ssl, "RAND_bytes", take)
    monkeypatch.setattr(words.ssl, "RAND_add", lambda fresh, entropy: states.update(added=fresh))
    noise = NoiseSource()
    noise.sample((5,), 1.0)  # leaves values made ahead
    one, two = (in_child(lambda: noise.sample((5,), 1.0).tolist()) for _ in range(2))
    assert len({tuple(one), tuple(two), tuple(noise.sample((5,), 1.0).tolist())}) == 3


class Noisy(torch.utils.data.Dataset):
    """Draws noise and a minibatch wherever an item is made."""

    def __init__(self):
        self.noise, self.sampler = NoiseSource(), PoissonSampler(10_000, 0.05)
        self.noise.sample((3,), 1.0), self.sampler.draw()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.cat([self.noise.sample((5,), 1.0), torch.from_numpy(self.sampler.draw()[:5]).float()])


def test_workers_of_a_loader_draw_differently():
    data = Noisy()
    loader = torch.utils.data.DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context="fork")
    rows = {tuple(row.flatten().tolist()) for row in loader} | {tuple(data[0].tolist())}
    assert len(rows) == 5


def test_a_pool_of_forked_processes_draws_differently():
    draw = streams()["noise"]

    with multiprocessing.get_context("fork").Pool(2, initializer=_keep, initargs=(draw,)) as pool:
        rows = {tuple(row) for row in pool.map(_kept, range(4), chunksize=1)} | {tuple(draw())}
    assert len(rows) == 5


def _keep(draw):
    global _draw
    _draw = draw


def _kept(_):
    return _draw()


def test_copies_are_refused():
    for secret in (NoiseSource(), PoissonSampler(10, 0.5), TruncatedPoissonSampler(10, 0.5, 3)):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(PrivacyRefusal, match="never written"):
                copied(secret)


def test_injected_generators_continue_in_a_child():
    sampler = PoissonSampler(1000, 0.1, generator=np.random.default_rng(1))
    assert in_child(lambda: sampler.draw().tolist()) == sampler.draw().tolist()
    assert sampler.is_test


def test_a_value_is_made_once_in_a_process():
    made = []
    value = PerProcess(lambda: made.append(1) or object())
    assert value.get() is value.get() and len(made) == 1
