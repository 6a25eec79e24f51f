"""Noise levels: the published formulas and constants, falling from σ_max to where they end."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from engine.schedules import (
    ALIGN_YOUR_STEPS_SD1,
    ALIGN_YOUR_STEPS_SDXL,
    SCHEDULES,
    NoiseLevels,
    align_your_steps,
    beta,
    ddim_walk,
    ends,
    exponential,
    inverse_beta,
    karras,
    kl_optimal,
    lcm_walk,
    polyexponential,
    scaled_linear,
    sgm_uniform,
    simple,
    uniform,
    unipc_walk,
)

LEVELS = scaled_linear()
LOW, HIGH = 0.029167, 14.614641

TO_ZERO = sorted(set(SCHEDULES) - {"kl_optimal"})
FROM_SIGMA_MAX = sorted(set(SCHEDULES) - {"ddim"})
TO_SIGMA_MIN = sorted(set(SCHEDULES) - {"sgm_uniform", "simple", "ddim", "kl_optimal"})


def sigma(timestep: float) -> float:
    return float(LEVELS.sigma(np.array([timestep]))[0])


def test_noise_levels_are_stable_diffusions() -> None:
    assert pytest.approx(LOW, abs=1e-6) == LEVELS.sigma_min
    assert pytest.approx(HIGH, abs=1e-5) == LEVELS.sigma_max


def test_timestep_and_sigma_are_inverse() -> None:
    timesteps = np.linspace(0, 999, 77)
    assert np.allclose(LEVELS.timestep(LEVELS.sigma(timesteps)), timesteps, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11, 20, 30, 150])
def test_levels_fall(name: str, steps: int) -> None:
    sigmas = SCHEDULES[name](LEVELS, steps)
    assert all(a > b for a, b in pairwise(sigmas))
    assert len(sigmas) == steps + 1 or name == "ddim"


@pytest.mark.parametrize("name", FROM_SIGMA_MAX)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_levels_start_at_sigma_max(name: str, steps: int) -> None:
    assert SCHEDULES[name](LEVELS, steps)[0] == pytest.approx(LEVELS.sigma_max, rel=3e-5)


@pytest.mark.parametrize("name", TO_ZERO)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_levels_end_at_zero(name: str, steps: int) -> None:
    assert SCHEDULES[name](LEVELS, steps)[-1] == 0


@pytest.mark.parametrize("name", TO_SIGMA_MIN)
@pytest.mark.parametrize("steps", [2, 20, 150])
def test_the_last_level_before_zero_is_sigma_min(name: str, steps: int) -> None:
    assert SCHEDULES[name](LEVELS, steps)[-2] == pytest.approx(LEVELS.sigma_min, rel=1e-2)


def test_uniform_and_normal_are_equal_steps_in_time() -> None:
    assert uniform(LEVELS, 4) == pytest.approx([sigma(999), sigma(666), sigma(333), sigma(0), 0])
    assert SCHEDULES["normal"](LEVELS, 20) == uniform(LEVELS, 20)


def test_karras_is_its_equation() -> None:
    low, high = LOW ** (1 / 7), HIGH ** (1 / 7)
    expected = [(high + i / 9 * (low - high)) ** 7 for i in range(10)]
    assert karras(LEVELS, 10) == pytest.approx([*expected, 0], rel=1e-4)


def test_exponential_falls_by_the_same_factor() -> None:
    sigmas = exponential(LEVELS, 10)[:-1]
    assert [b / a for a, b in pairwise(sigmas)] == pytest.approx([(LOW / HIGH) ** (1 / 9)] * 9, rel=1e-4)


def test_polyexponential_is_a_power_in_log_sigma() -> None:
    assert polyexponential(LEVELS, 10) == exponential(LEVELS, 10)
    middle = math.log(LEVELS.sigma_min) + 0.25 * math.log(LEVELS.sigma_max / LEVELS.sigma_min)
    assert polyexponential(LEVELS, 3, rho=2.0)[1] == pytest.approx(math.exp(middle))


def test_sgm_uniform_would_reach_the_first_timestep_one_step_later() -> None:
    assert sgm_uniform(LEVELS, 3) == pytest.approx([sigma(999), sigma(666), sigma(333), 0])


def test_kl_optimal_is_equal_steps_in_the_arc_tangent_and_has_no_zero() -> None:
    sigmas = kl_optimal(LEVELS, 10)
    assert sigmas[-1] == pytest.approx(LEVELS.sigma_min)
    steps = [math.atan(b) - math.atan(a) for a, b in pairwise(sigmas)]
    assert steps == pytest.approx([steps[0]] * 10)


@pytest.mark.parametrize("published", [ALIGN_YOUR_STEPS_SD1, ALIGN_YOUR_STEPS_SDXL])
def test_align_your_steps_are_the_familys_published_levels(published: tuple[float, ...]) -> None:
    family = NoiseLevels(1 / (1 + LEVELS.sigmas**2), published)
    assert align_your_steps(family, 11) == pytest.approx([*published, 0])
    between = [math.sqrt(a * b) for a, b in pairwise(published)]
    assert align_your_steps(family, 21)[1::2] == pytest.approx([*between, 0])


def test_simple_takes_every_so_many_training_levels() -> None:
    expected = [float(LEVELS.sigmas[999 - int(i * 1000 / 7)]) for i in range(7)]
    assert simple(LEVELS, 7) == pytest.approx([*expected, 0])


@pytest.mark.parametrize(
    ("steps", "first", "count"), [(20, 951, 20), (30, 991, 31), (3, 667, 3), (1000, 999, 999)]
)
def test_ddim_counts_up_from_the_second_timestep(steps: int, first: int, count: int) -> None:
    sigmas = SCHEDULES["ddim"](LEVELS, steps)
    assert sigmas[0] == pytest.approx(sigma(first))
    assert sigmas[-2] == pytest.approx(sigma(1))
    assert len(sigmas) == count + 1


def test_beta_is_the_quantile_function() -> None:
    places = stats.beta.ppf(1 - np.arange(12) / 11, 0.6, 0.6)
    expected = LEVELS.sigma_min + places * (LEVELS.sigma_max - LEVELS.sigma_min)
    assert beta(LEVELS, 12) == pytest.approx([*expected, 0], rel=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (1.0, 1.0), (0.6, 1.3), (2.0, 5.0)])
def test_inverse_beta_is_scipys(a: float, b: float) -> None:
    p = np.linspace(0, 1, 1001)
    assert np.allclose(inverse_beta(p, a, b), stats.beta.ppf(p, a, b), atol=1e-12)


@pytest.mark.parametrize(("steps", "levels"), [(20, 20), (30, 31), (1, 2), (150, 167)])
def test_ddim_and_plms_walk_their_own_timesteps(steps: int, levels: int) -> None:
    sigmas = ddim_walk(LEVELS, steps)
    assert len(sigmas) == levels
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[-1] == pytest.approx(float(LEVELS.sigmas[1]))


def test_unipc_walks_all_timesteps_in_equal_steps() -> None:
    assert unipc_walk(LEVELS, 3) == pytest.approx([sigma(999), sigma(666), sigma(333), sigma(0)])


def test_lcm_walks_those_it_is_distilled_for() -> None:
    assert lcm_walk(LEVELS, 4) == pytest.approx([sigma(999), sigma(759), sigma(499), sigma(259), 0])
    assert lcm_walk(LEVELS, 50)[-2] == pytest.approx(sigma(19))


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_ends_go_from_sigma_max_to_sigma_min_in_as_many_steps(steps: int) -> None:
    sigmas = ends(LEVELS, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(LEVELS.sigma_max)
    assert min(s for s in sigmas if s > 0) == pytest.approx(LEVELS.sigma_min)
