"""Noise depends on the job and on nothing else."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.noise import Noise, pasted, slerp
from engine.philox import Philox
from tests.jobs import make_job

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)
STEP = (2.0, 1.0)


def noise_of(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Noise:
    return Noise.of(make_job(**{"seed": 42, **changes}), shape, CPU)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def test_initial_noise_is_torchs_cpu_generator_seeded_per_image() -> None:
    assert torch.equal(Noise(42, SHAPE, CPU).initial, drawn(42))
    assert torch.equal(noise_of().initial, drawn(42))


def test_step_noise_continues_the_generator() -> None:
    generator = torch.Generator().manual_seed(42)
    torch.randn(SHAPE, generator=generator)
    assert torch.equal(Noise(42, SHAPE, CPU).step(*STEP), torch.randn(SHAPE, generator=generator))


def test_seed_delta_reseeds_the_step_noise_only() -> None:
    noise = Noise(42, SHAPE, CPU, seed_delta=31337)
    assert torch.equal(noise.initial, Noise(42, SHAPE, CPU).initial)
    assert torch.equal(noise.step(*STEP), Noise(42 + 31337, SHAPE, CPU).initial)


def test_brownian_noise_depends_on_the_seed_alone() -> None:
    expected = Noise(42, SHAPE, CPU).brownian(0.1, 10.0)(*STEP)
    other = Noise(42, SHAPE, CPU, seed_delta=31337)
    other.step(*STEP)
    assert torch.equal(other.brownian(0.1, 10.0)(*STEP), expected)
    assert not torch.equal(Noise(43, SHAPE, CPU).brownian(0.1, 10.0)(*STEP), expected)


def test_drawing_does_not_touch_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    noise = Noise(1, SHAPE, CPU)
    noise.step(*STEP)
    noise.brownian(0.1, 10.0)(*STEP)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("source", ["cpu", "nvidia"])
@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 2**70])
def test_negative_and_huge_seeds_are_seeds(source: str, seed: int) -> None:
    noise = Noise(seed, SHAPE, CPU, source=source)
    noise.step(*STEP)
    noise.brownian(0.1, 10.0)(*STEP)


def test_an_nvidia_gpus_noise_is_philox_throughout() -> None:
    noise, stream = noise_of(noise_source="nvidia", subseed=7, subseed_strength=0.0), Philox(42)
    assert torch.equal(noise.initial, stream.randn(SHAPE))
    assert torch.equal(noise.step(*STEP), stream.randn(SHAPE))
    assert not torch.equal(noise.brownian(0.1, 10.0)(*STEP), noise_of().brownian(0.1, 10.0)(*STEP))


def test_a_variation_of_strength_1_is_the_variation_seeds_noise() -> None:
    varied = noise_of(subseed=7, subseed_strength=1.0)
    assert torch.allclose(varied.initial, drawn(7), atol=1e-5)


def test_a_variation_leaves_the_steps_noise_alone() -> None:
    assert torch.equal(noise_of(subseed=7, subseed_strength=0.5).step(*STEP), noise_of().step(*STEP))
    resized = noise_of(seed_resize_from_w=32, seed_resize_from_h=32)
    assert torch.equal(resized.step(*STEP), noise_of().step(*STEP))


def test_slerp_turns_every_column_along_its_arc() -> None:
    a, b = drawn(1), drawn(2)
    mixed = slerp(0.3, a, b)
    for channel in range(4):
        for column in range(8):
            u, v = (t[channel, :, column].double() for t in (a, b))
            omega = math.acos(float(u @ v / u.norm() / v.norm()))
            expected = (math.sin(0.7 * omega) * u + math.sin(0.3 * omega) * v) / math.sin(omega)
            assert torch.allclose(mixed[channel, :, column].double(), expected, atol=1e-5)


def test_slerp_of_a_noise_with_itself_is_that_noise() -> None:
    assert torch.allclose(slerp(0.3, drawn(1), drawn(1)), drawn(1), atol=1e-6)


def test_slerp_of_columns_without_an_arc_is_finite() -> None:
    assert bool(slerp(0.3, drawn(1, 4, 1, 8), drawn(2, 4, 1, 8)).isfinite().all())


def test_slerp_keeps_the_noises_size() -> None:
    mixed = slerp(0.5, drawn(1, 4, 64, 64), drawn(2, 4, 64, 64))
    assert float(mixed.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("size", "part", "place", "of_part"),
    [
        (8, 4, slice(2, 6), slice(0, 4)),
        (8, 5, slice(1, 6), slice(0, 5)),
        (8, 12, slice(0, 8), slice(2, 10)),
        (8, 11, slice(0, 7), slice(2, 9)),
        (8, 8, slice(0, 8), slice(0, 8)),
    ],
)
def test_noise_of_another_size_goes_into_the_middle(
    size: int, part: int, place: slice, of_part: slice
) -> None:
    whole, other = torch.zeros(4, size, 8), torch.ones(4, part, 8).cumsum(1)
    result = pasted(whole, other)
    assert torch.equal(result[:, place], other[:, of_part])
    untouched = torch.ones(size, dtype=torch.bool)
    untouched[place] = False
    assert bool((result[:, untouched] == 0).all())
    assert torch.equal(pasted(whole.mT, other.mT), result.mT)


def test_seed_resize_keeps_the_smaller_pictures_noise_in_the_middle() -> None:
    resized = noise_of((4, 12, 16), seed_resize_from_w=64, seed_resize_from_h=64).initial
    assert torch.equal(resized[:, 2:10, 4:12], drawn(42))
    assert torch.equal(resized[:, :2], drawn(42, 4, 12, 16)[:, :2])


def test_seed_resize_needs_both_sizes() -> None:
    assert torch.equal(noise_of(seed_resize_from_w=32).initial, drawn(42))


def test_a_variation_is_mixed_at_the_size_that_is_resized_from() -> None:
    resized = noise_of(
        (4, 12, 12), seed_resize_from_w=64, seed_resize_from_h=64, subseed=7, subseed_strength=0.4
    ).initial
    assert torch.allclose(resized[:, 2:10, 2:10], slerp(0.4, drawn(42), drawn(7)))
