"""Noise levels: the published constants, monotone, from σ_max to 0."""

from itertools import pairwise

import numpy as np
import pytest

from engine.schedules import SCHEDULES, ddim, karras, scaled_linear, uniform

LEVELS = scaled_linear()


def test_noise_levels_are_stable_diffusions() -> None:
    assert pytest.approx(0.029167, abs=1e-6) == LEVELS.sigma_min
    assert pytest.approx(14.614641, abs=1e-5) == LEVELS.sigma_max


def test_timestep_and_sigma_are_inverse() -> None:
    timesteps = np.linspace(0, 999, 77)
    assert np.allclose(LEVELS.timestep(LEVELS.sigma(timesteps)), timesteps, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_levels_fall_from_sigma_max_to_zero(name: str, steps: int) -> None:
    sigmas = SCHEDULES[name](LEVELS, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(LEVELS.sigma_max)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))
    if steps > 1:
        assert sigmas[-2] == pytest.approx(LEVELS.sigma_min)


def test_known_values() -> None:
    assert karras(LEVELS, 10)[5] == pytest.approx(
        ((14.614641 ** (1 / 7)) + 5 / 9 * (0.029167 ** (1 / 7) - 14.614641 ** (1 / 7))) ** 7, rel=1e-5
    )
    assert uniform(LEVELS, 3)[1] == pytest.approx(float(LEVELS.sigma(np.array([499.5]))[0]))


@pytest.mark.parametrize(("steps", "levels"), [(20, 20), (30, 31), (1, 2), (150, 167)])
def test_ddim_walks_its_own_timesteps(steps: int, levels: int) -> None:
    sigmas = ddim(LEVELS, steps)
    assert len(sigmas) == levels
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[-1] == pytest.approx(float(LEVELS.sigmas[1]))
