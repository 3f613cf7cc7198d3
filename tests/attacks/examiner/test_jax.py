"""A step of JAX Privacy's own parts, examined through numpy; needs jax_privacy, which nothing else here does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpaudit import Stage
from dpaudit.attacks import ArrayAdapter, ExamPlan, examine

pytest.importorskip("jax_privacy", reason="pip install jax-privacy")
pytestmark = pytest.mark.slow

N, D, C, SIGMA, Q = 40, 12, 1.0, 1.5, 0.2
STAGE = Stage(sampling_probability=Q, noise_multiplier=SIGMA, steps=10, sampling="poisson", clipping_norm=C)
PLAN = ExamPlan(stage=STAGE, normaliser=Q * N, size=N)


def adapter(*, noise: float = SIGMA * C, clip: float = C, unit: bool = False, mean_first: bool = False) -> ArrayAdapter:
    """One private step of linear regression: clipped_grad, then gaussian_privatizer, divided by the expected batch."""
    import jax
    from jax_privacy import clipping, noise_addition

    generator = np.random.default_rng(3)
    rows = np.asarray(generator.normal(size=(N, D)) * 4, np.float32)
    targets = np.asarray(generator.normal(size=N) * 4, np.float32)

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        return ((x @ parameters["w"] + parameters["b"] - y) ** 2).mean()

    options: dict[str, Any] = {"l2_clip_norm": clip, "batch_argnums": (1, 2), "rescale_to_unit_norm": unit}
    summed = clipping.clipped_grad(loss, **options)
    secret = np.random.default_rng()

    @jax.jit
    def gradient(parameters: Any, x: Any, y: Any, padding: Any) -> Any:
        if mean_first:  # a gradient of the mean, clipped once: it bounds the minibatch, and no record
            weights = 1.0 - padding
            error = (x @ parameters["w"] + parameters["b"] - y) * weights / jax.numpy.maximum(weights.sum(), 1.0)
            whole = {"w": 2 * error @ x, "b": 2 * error.sum()}
            norm = sum((g**2).sum() for g in jax.tree.leaves(whole)) ** 0.5
            return jax.tree.map(
                lambda g: g * Q * N * jax.numpy.minimum(1.0, clip / jax.numpy.maximum(norm, 1e-9)), whole
            )
        return summed(parameters, x, y, is_padding_example=padding)

    @jax.jit
    def noisy_sum(total: Any, key: Any) -> Any:
        privatizer = noise_addition.gaussian_privatizer(stddev=noise, prng_key=key)
        return privatizer.update(total, privatizer.init(total))[0]

    def step(state: Any, indices: Any, noisy: bool) -> tuple[Any, Any]:
        chosen = [*indices, *[0] * (2 * N - len(indices))]
        padding = np.arange(2 * N) >= len(indices)
        total = gradient(state, rows[chosen], targets[chosen], padding)
        if noisy:
            total = noisy_sum(total, jax.random.key(int(secret.integers(2**32))))
        released = jax.tree.map(lambda g: np.asarray(g) / np.float32(Q * N), total)
        return jax.tree.map(lambda p, r: np.asarray(p - 0.01 * r), state, released), released

    def draw() -> Any:
        return np.flatnonzero(secret.random(N) < Q)

    return ArrayAdapter(step, {"w": np.zeros(D, np.float32), "b": np.float32(0.0)}, draw, size=N)


def test_a_step_of_jax_privacy_goes_free() -> None:
    result = examine(adapter(), PLAN, budget="400 steps")
    assert not result.findings and not result.violated, [f.text for f in result.findings]
    assert {test.group for test in result.tests} >= {"replay", "noise", "sampler"}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"noise": 0.5 * SIGMA * C}, "noise_scale"),
        ({"noise": 1e-12}, "noise_missing"),
        ({"clip": 2 * C}, "norm_underestimated"),
        ({"mean_first": True}, "clipped_after_averaging"),
        ({"clip": 0.25 * C, "unit": True, "noise": 0.25 * SIGMA * C}, "noise_scale"),
    ],
    ids=["half the noise", "no noise", "twice the bound", "the mean is clipped", "unit norm, noise of the bound"],
)
def test_a_fault_in_its_use_is_named(fault: dict[str, Any], name: str) -> None:
    result = examine(adapter(**fault), PLAN, budget="400 steps")
    assert result.names[:1] == (name,), [f.text for f in result.findings]
