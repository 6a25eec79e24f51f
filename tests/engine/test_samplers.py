"""Each sampler against an independent implementation, on a denoiser whose answer is known.

The oracles are the published formulas in float64 (`oracles.py`) and diffusers' schedulers of the same
algorithm.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor

from engine.noise import Noise
from engine.protocol import SAMPLERS as CANONICAL
from engine.protocol import SCHEDULES as CANONICAL_SCHEDULES
from engine.protocol import InvalidJob, JobFailed
from engine.samplers import SAMPLERS, Settings
from engine.samplers.dpm_solver import ADAPTIVE_LIMIT
from engine.schedules import SCHEDULES, ddim_walk
from ingress.schemas.samplers import list_samplers
from tests.engine import trajectories
from tests.engine.oracles import MEAN, ORACLES, VARIANCE, mixture
from tests.engine.trajectories import CPU, LEVELS, denoiser_of, error, integrate

ADAPTIVE = "DPM adaptive"
"""Rounding moves its step sizes, and they its result: in float32 it is held to less."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of data N(μ, s²)."""
    return (VARIANCE * x + sigma**2 * MEAN) / (VARIANCE + sigma**2)


def stacked(x: Tensor, sigma: float) -> Tensor:
    return torch.stack([gaussian(x, sigma)] * 2)


def recorded_noise(seed: int) -> tuple[Callable[[float, float], Tensor], list[Tensor]]:
    drawn: list[Tensor] = []
    noise = Noise(seed, (4, 8, 8), CPU)

    def draw(sigma: float, sigma_next: float) -> Tensor:
        drawn.append(noise.step(sigma, sigma_next))
        return drawn[-1]

    return draw, drawn


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def start(sigmas: Sequence[float]) -> Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)) * sigmas[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def schedules_of(name: str) -> Sequence[str]:
    """One is enough for samplers that ignore it."""
    return ["uniform"] if SAMPLERS[name].schedule else list(SCHEDULES)


def test_registries_agree_with_the_protocol() -> None:
    assert tuple(SAMPLERS) == CANONICAL
    assert tuple(SCHEDULES) == CANONICAL_SCHEDULES
    assert set(ORACLES) == set(SAMPLERS)


def test_samplers_do_what_the_wire_says_of_them() -> None:
    for row in list_samplers("v1.10.1"):
        sampler, options = SAMPLERS[row["name"]], row["options"]
        assert sampler.brownian == ("brownian_noise" in options), sampler.name
        assert sampler.second_order == ("second_order" in options), sampler.name
        assert sampler.discards_next_to_last == ("discard_next_to_last_sigma" in options), sampler.name


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_trajectory_is_that_of_the_published_formula(name: str) -> None:
    bound = 1e-3 if name == ADAPTIVE else 1e-5
    for schedule in schedules_of(name):
        for steps, eta in ((1, 1.0), (2, 0.6), (5, 1.0), (20, 0.0), (20, 0.6), (36, 1.0)):
            assert error(name, schedule, steps, eta) < bound, (schedule, steps, eta)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_float64_trajectories_are_the_formulas_to_the_last_digits(name: str) -> None:
    """LCM's oracle has the boundary scaling that the sampler leaves out."""
    bound = 2e-6 if name == "LCM" else 1e-10
    for steps in (3, 25):
        for eta in (0.0, 1.0):
            assert error(name, "karras", steps, eta, torch.float64) < bound, (steps, eta)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_start_at_any_level(name: str) -> None:
    """As img2img does: the last levels of a schedule, however few."""
    sigmas = SAMPLERS[name].sigmas("uniform", LEVELS, 20)
    for kept in (3, 4, 8, 15):
        trajectory = trajectories.run(name, sigmas[-kept:])
        assert trajectory.error(ORACLES[name]) < (1e-3 if name == ADAPTIVE else 1e-5), kept


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 36])
def test_number_of_evaluations_is_known_beforehand(name: str, steps: int) -> None:
    sampler, noise = SAMPLERS[name], Noise(1, (4, 8, 8), CPU)
    for schedule in schedules_of(name):
        sigmas = sampler.sigmas(schedule, LEVELS, steps)
        for kept in {len(sigmas), 2}:
            part = sigmas[-kept:]
            settings = Settings(eta=1.0, s_churn=1.0)
            evaluating = sampler.run(start(part), part, sampler.step_noise(noise, sigmas), settings)
            _, calls = integrate(evaluating, denoiser_of(name))
            if not sampler.adaptive:
                assert calls == sampler.evaluations(part), (schedule, kept)
            assert 1 <= calls <= ADAPTIVE_LIMIT


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("Euler", 20), ("Heun", 39), ("DPM2", 39), ("DDIM", 19), ("PLMS", 20), ("UniPC", 20), ("Restart", 39)],
)
def test_what_twenty_steps_cost(name: str, evaluations: int) -> None:
    sampler = SAMPLERS[name]
    assert sampler.evaluations(sampler.sigmas("karras", LEVELS, 20)) == evaluations


@pytest.mark.parametrize("name", ["DPM2", "DPM2 a", "DPM++ 3M SDE"])
def test_some_samplers_leave_out_the_last_level_but_one(name: str) -> None:
    longer = SCHEDULES["karras"](LEVELS, 21)
    assert SAMPLERS[name].sigmas("karras", LEVELS, 20) == [*longer[:-2], 0.0]
    assert SAMPLERS["Euler"].sigmas("karras", LEVELS, 20, discard=True) == [*longer[:-2], 0.0]
    assert SAMPLERS["Euler"].sigmas("karras", LEVELS, 20) == SCHEDULES["karras"](LEVELS, 20)


@pytest.mark.parametrize(
    ("name", "schedule", "steps", "message"),
    [
        ("LCM", "uniform", 51, "LCM takes 1 to 50"),
        ("DDIM", "uniform", 1001, "DDIM takes 1 to 1000"),
        ("DPM2", "simple", 1000, "DPM2 takes 1 to 999"),
        ("Euler", "uniform", 0, "Euler takes 1 to 1000"),
        ("Euler", "linear", 20, "schedule 'linear' is not one of uniform, karras"),
    ],
)
def test_what_a_sampler_cannot_do_it_refuses_by_name(
    name: str, schedule: str, steps: int, message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        SAMPLERS[name].sigmas(schedule, LEVELS, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_most_steps_that_there_are_can_be_walked(name: str) -> None:
    sampler, noise = SAMPLERS[name], Noise(1, (4, 2, 2), CPU)
    most = min(sampler.max_steps, 1000 - sampler.discards_next_to_last)
    for schedule in ["simple"] if sampler.brownian or sampler.schedule else ["simple", "ddim", "beta"]:
        sigmas = sampler.sigmas(schedule, LEVELS, most)
        step_noise = sampler.step_noise(noise, sigmas)
        x = noise.initial * sampler.initial_scale(sigmas[0])
        x, _ = integrate(sampler.run(x, sigmas, step_noise, Settings(eta=1.0)), denoiser_of(name))
        assert x.isfinite().all(), schedule


def test_adaptive_gives_up_on_what_it_cannot_follow() -> None:
    sampler = SAMPLERS[ADAPTIVE]
    sigmas = sampler.sigmas("uniform", LEVELS, 20)
    generator = torch.Generator().manual_seed(0)
    evaluating = sampler.run(start(sigmas), sigmas, no_noise, Settings(eta=0.0))
    with pytest.raises(JobFailed, match="DPM adaptive was not done after 1001 evaluations"):
        integrate(evaluating, lambda x, sigma: torch.randn(x.shape, generator=generator) * 100)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"LCM", "Restart"}))
def test_without_eta_and_churn_there_is_no_noise(name: str) -> None:
    sigmas = SAMPLERS[name].sigmas("karras", LEVELS, 20)
    evaluating = SAMPLERS[name].run(start(sigmas), sigmas, no_noise, Settings(eta=0.0))
    integrate(evaluating, denoiser_of(name))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"LCM"}))
def test_many_steps_converge_to_the_data_distribution(name: str) -> None:
    """From N(0, σ_max²) the exact flow ends in N(μ, s²). LCM is for models that make that one step."""
    sampler = SAMPLERS[name]
    sigmas = sampler.sigmas("karras", LEVELS, 200)
    noise = Noise(1, (4, 64, 64), CPU)
    x = noise.initial * sampler.initial_scale(sigmas[0])
    settings = Settings(eta=0.0 if sampler.unit_variance else 1.0)
    evaluating = sampler.run(x, sigmas, sampler.step_noise(noise, sigmas), settings)
    x, _ = integrate(evaluating, stacked if sampler.needs_uncond else gaussian)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(math.sqrt(VARIANCE), rel=0.05)


@pytest.mark.parametrize(("name", "second"), [("Euler", None), ("Heun", 1.0), ("DPM2", 0.5)])
def test_churn_raises_the_noise_level_as_algorithm_2_says(name: str, second: float | None) -> None:
    """`second`: where in log σ the second slope is taken; its weight is 1/2 at the end, 1 at the middle."""
    sigmas = SCHEDULES["karras"](LEVELS, 10)
    draw, drawn = recorded_noise(5)
    settings = Settings(eta=1.0, s_churn=2.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.003)
    ours, _ = integrate(SAMPLERS[name].run(start(sigmas), sigmas, draw, settings), mixture)
    x, supply = start(sigmas).double(), iter(drawn)
    for t, t_next in pairwise(sigmas):
        gamma = min(2.0 / 10, math.sqrt(2) - 1) if 0.1 <= t <= 10.0 else 0.0
        t_hat = t + gamma * t
        x = x + math.sqrt(t_hat**2 - t**2) * 1.003 * next(supply).double()
        d = (x - mixture(x, t_hat)) / t_hat
        if second and t_next:
            t_second = t_hat ** (1 - second) * t_next**second
            x_second = x + (t_second - t_hat) * d
            d_second = (x_second - mixture(x_second, t_second)) / t_second
            d = d_second if second < 1 else (d + d_second) / 2
        x = x + (t_next - t_hat) * d
    assert relative(ours, x) < 1e-5
    assert len(drawn) == 10  # at every step, so that the bounds do not shift later steps' noise


@pytest.mark.parametrize("steps", [5, 20])
def test_euler_is_diffusers_euler(steps: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    sigmas = SCHEDULES["karras"](LEVELS, steps)
    evaluating = SAMPLERS["Euler"].run(start(sigmas), sigmas, no_noise, Settings(eta=1))
    ours, _ = integrate(evaluating, gaussian)
    x = start(sigmas)
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        scheduler.scale_model_input(x, t)
        epsilon = (x - gaussian(x, sigma)) / sigma
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 2e-5  # its σ are float32


@pytest.mark.parametrize("steps", [5, 20])
def test_dpmpp_2m_is_diffusers_multistep(steps: int) -> None:
    """On the same Karras levels; diffusers rounds to training timesteps, hence the looser bound."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        use_karras_sigmas=True,
        final_sigmas_type="zero",
        lower_order_final=False,
        euler_at_final=False,
    )
    scheduler.set_timesteps(steps)
    sigmas = SCHEDULES["karras"](LEVELS, steps)
    evaluating = SAMPLERS["DPM++ 2M"].run(start(sigmas), sigmas, no_noise, Settings(eta=1.0))
    ours, _ = integrate(evaluating, gaussian)
    x = start(sigmas).double() / math.hypot(1, sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        ve = x * math.hypot(1, sigma)
        epsilon = (ve - gaussian(ve, sigma)) / sigma
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 5e-3


def test_ddim_agrees_with_diffusers_between_the_same_timesteps() -> None:
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(20)
    sigmas = ddim_walk(LEVELS, 20)
    sampler = SAMPLERS["DDIM"]
    noise = start(sigmas) / sigmas[0]
    evaluating = sampler.run(noise * sampler.initial_scale(sigmas[0]), sigmas, no_noise, Settings(eta=0))
    ours, _ = integrate(evaluating, gaussian)
    x = noise.double()
    for t, sigma in zip(scheduler.timesteps[:-1], sigmas, strict=False):
        x0 = gaussian(x * math.hypot(1, sigma), sigma)
        alpha = 1 / (1 + sigma**2)
        epsilon = (x - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 1e-5


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_lcm_walks_diffusers_timesteps(steps: int) -> None:
    scheduler = diffusers.LCMScheduler(original_inference_steps=50)
    scheduler.set_timesteps(steps)
    expected = [float(LEVELS.sigmas[t]) for t in scheduler.timesteps.tolist()]
    assert SAMPLERS["LCM"].sigmas("uniform", LEVELS, steps) == pytest.approx([*expected, 0.0])
