"""Bits: their law, that none is used twice, and which generator gives them."""

import builtins
import importlib.util
import os
import threading

import numpy as np
import pytest
from scipy import stats

from dpaudit.trainers import words
from dpaudit.trainers.words import BytesWords, OpenSSL, openssl_bytes


@pytest.mark.parametrize("take", [openssl_bytes, os.urandom])
def test_uniforms_are_multiples_of_two_to_the_minus_53_and_never_zero(take):
    out = np.empty(1 << 13)
    BytesWords(take).uniforms(out)
    assert out.min() > 0 and out.max() <= 1
    assert np.array_equal(out * 2.0**53, np.rint(out * 2.0**53))
    assert (out * 2.0**52 != np.rint(out * 2.0**52)).mean() > 0.4  # the last bit is used
    assert stats.kstest(out, "uniform").pvalue > 1e-4
    integers = BytesWords(take).integers(1 << 13)
    assert stats.kstest(integers / 2.0**32 + 0.5, "uniform").pvalue > 1e-4


def test_the_53_upper_bits_of_a_word_number_the_multiples_one_to_one():
    out = np.empty(5)
    numbers = np.array([-(2**52), -(2**52) + 1, 0, 2**52 - 2, 2**52 - 1])
    for low in (0, 2047):  # the eleven bits that are left out
        drawn = (numbers * 2048 + low).tobytes()
        BytesWords(lambda count, drawn=drawn: drawn).uniforms(out)
        assert (out * 2.0**53).tolist() == [1, 2, 2**52 + 1, 2**53 - 1, 2**53]


def test_no_byte_is_used_twice():
    asked = []

    def take(count):
        asked.append(count)
        return os.urandom(count)

    source = BytesWords(take)
    source.uniforms(np.empty(100)), source.integers(100)
    assert asked == [800, 400]


def refused(count):
    raise words.ssl.SSLError("no entropy")


def test_openssl_gives_the_bits_and_is_named(monkeypatch):
    monkeypatch.setattr(words.os, "urandom", lambda count: bytes(count))
    source = OpenSSL()
    assert len(source.take(7)) == 7 and source.take(32) != bytes(32) and source.take(0) == b""
    assert source.statement().startswith("OpenSSL's") and "failed" not in source.statement()


def test_an_unseeded_openssl_is_never_asked(monkeypatch):
    monkeypatch.setattr(words.ssl, "RAND_status", lambda: False)
    monkeypatch.setattr(words.ssl, "RAND_bytes", lambda count: bytes(count))
    source = OpenSSL()
    assert any(source.take(64)) and source.statement().startswith("the operating system's")


def test_after_a_failure_the_operating_system_gives_every_bit(monkeypatch):
    source = OpenSSL()
    source.take(8)
    with monkeypatch.context() as patch:
        patch.setattr(words.ssl, "RAND_bytes", refused)
        assert len(source.take(64)) == 64 and any(source.take(64))
    monkeypatch.setattr(words.ssl, "RAND_bytes", lambda count: bytes(count))
    assert any(source.take(64))  # OpenSSL is not trusted again
    assert (
        source.statement().startswith("OpenSSL's") and "after it failed, the operating system's" in source.statement()
    )


def test_an_openssl_that_fails_at_once_is_not_named_as_the_source(monkeypatch):
    monkeypatch.setattr(words.ssl, "RAND_bytes", refused)
    source = OpenSSL()
    assert any(source.take(64)) and source.statement().startswith("the operating system's")


def test_a_python_without_openssl_takes_the_operating_systems(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ssl":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    spec = importlib.util.spec_from_file_location("words_without_ssl", words.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.ssl is None and any(module.openssl_bytes(64))
    assert module.openssl.get().statement().startswith("the operating system's cryptographic generator")


def test_fresh_entropy_is_added_at_first_and_after_a_million_values(monkeypatch):
    added = []
    monkeypatch.setattr(words.ssl, "RAND_add", lambda fresh, entropy: added.append((fresh, entropy)))
    source = OpenSSL()
    for _ in range(12):  # of one MiB each
        source.take(1 << 20)
    assert len(added) == 2 and added[0][0] != added[1][0]
    assert {(len(fresh), entropy) for fresh, entropy in added} == {(32, 32.0)}
    source.take(1 << 23)  # more than an interval at once
    source.take(1)
    assert len(added) == 4


def test_threads_never_get_the_same_bytes():
    source, found = OpenSSL(), []
    threads = [threading.Thread(target=lambda: found.extend(source.take(8) for _ in range(5000))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 20_000
