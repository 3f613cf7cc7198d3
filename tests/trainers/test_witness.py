"""The record of releases: what it adds up, what it keeps over a resume, and that the energy test reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.auditing.energy import ReleaseEnergy, energy_test
from dpaudit.trainers.witness import ReleaseRecorder

SIZES = {"a": 4000, "b": 600, "c": 1400}


def releases(steps: int, *, seed: int = 0, deviation: float = 0.3) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(n, generator=generator) * deviation for n in SIZES.values()] for _ in range(steps)]


def energy_of(recorder: ReleaseRecorder) -> ReleaseEnergy:
    state = json.loads(json.dumps(recorder.state()))
    blocks = tuple(state.pop("blocks"))
    return ReleaseEnergy(blocks=blocks, **{name: np.asarray(values) for name, values in state.items()})


def test_sums_are_those_of_the_whole_vectors() -> None:
    recorder = ReleaseRecorder(SIZES)
    steps = releases(3)
    for step in steps:
        recorder.observe(step, 0.3)
    flat = np.array([torch.cat(step).double().numpy() / 0.3 for step in steps])
    energy = energy_of(recorder)
    assert np.allclose(energy.step_squares, (flat**2).sum(axis=1), rtol=1e-6)
    blocks = [(part**2).sum() for part in np.split(flat, [4000, 4600], axis=1)]
    assert np.allclose(energy.block_squares, blocks, rtol=1e-6)
    assert np.allclose(energy.lagged[1:], (flat[1:] * flat[:-1]).sum(axis=1), rtol=1e-5, atol=1e-3)
    assert energy.lagged[0] == 0
    assert np.allclose(energy.within[:, 1], (flat[:, :3000] * flat[:, 3000:]).sum(axis=1), rtol=1e-5, atol=1e-3)
    near = (flat[:, :600] * flat[:, 4000:4600]).sum(axis=1) + (flat[:, 4000:4600] * flat[:, 4600:5200]).sum(axis=1)
    assert np.allclose(energy.within[:, 0], near, rtol=1e-5, atol=1e-3)


def test_correct_noise_passes_and_repeated_noise_does_not() -> None:
    right, wrong = ReleaseRecorder(SIZES), ReleaseRecorder(SIZES)
    steps = releases(6)
    for number, step in enumerate(steps):
        right.observe(step, 0.3)
        wrong.observe(steps[4] if number == 5 else step, 0.3)
    assert energy_test(energy_of(right)).p_value > 0.01
    test = energy_test(energy_of(wrong))
    assert test.p_value < 1e-6 and test.where == "lag"


def test_a_resume_keeps_the_record_and_skips_one_product() -> None:
    whole, first, second = ReleaseRecorder(SIZES), ReleaseRecorder(SIZES), ReleaseRecorder(SIZES)
    for number, step in enumerate(releases(4)):
        whole.observe(step, 0.3)
        if number == 2:
            second.resume(json.loads(json.dumps(first.state())))
        (first if number < 2 else second).observe(step, 0.3)
    assert len(second) == 4
    expected, found = whole.state(), second.state()
    assert found["lagged"][2] == 0 and expected["lagged"][2] != 0
    assert found["step_squares"] == expected["step_squares"]
    assert found["block_squares"] == pytest.approx(expected["block_squares"])


def test_a_small_probe_covers_every_block() -> None:
    recorder = ReleaseRecorder(SIZES, probe=60)
    assert recorder.probe == (40, 6, 14)
    for step in releases(3):
        recorder.observe(step, 0.3)
    assert energy_test(energy_of(recorder)).p_value > 0.01


def test_other_parameters_are_refused() -> None:
    recorder = ReleaseRecorder(SIZES)
    with pytest.raises(InvalidValue, match="recorded sizes"):
        recorder.observe([torch.zeros(3)], 0.3)
    with pytest.raises(InvalidValue, match="deviation"):
        recorder.observe(releases(1)[0], 0.0)
    with pytest.raises(InvalidValue, match="other parameters"):
        recorder.resume(ReleaseRecorder({"a": 1}).state())
