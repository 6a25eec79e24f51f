"""Noise depends on the seed and on nothing else."""

import torch

from engine.noise import Noise

CPU = torch.device("cpu")


def test_initial_noise_is_torchs_cpu_generator_seeded_per_image() -> None:
    expected = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(42))
    assert torch.equal(Noise(42, (4, 8, 8), CPU).initial, expected)


def test_step_noise_continues_the_generator() -> None:
    generator = torch.Generator().manual_seed(42)
    torch.randn(4, 8, 8, generator=generator)
    assert torch.equal(Noise(42, (4, 8, 8), CPU).step(), torch.randn(4, 8, 8, generator=generator))


def test_seed_delta_reseeds_the_step_noise_only() -> None:
    noise = Noise(42, (4, 8, 8), CPU, seed_delta=31337)
    assert torch.equal(noise.initial, Noise(42, (4, 8, 8), CPU).initial)
    assert torch.equal(noise.step(), Noise(42 + 31337, (4, 8, 8), CPU).initial)


def test_drawing_does_not_touch_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    Noise(1, (4, 8, 8), CPU).step()
    assert torch.equal(before, torch.random.get_rng_state())


def test_negative_and_huge_seeds_are_seeds() -> None:
    for seed in (-1, -(2**63), 2**64 - 1, 2**70):
        Noise(seed, (4, 8, 8), CPU).step()
