"""Each sampler against an independent implementation, on a denoiser whose answer is known.

The denoiser is that of data N(μ, s²): denoised = (s² x + σ² μ) / (s² + σ²), nowhere trivial and smooth.
The oracles are diffusers' schedulers of the same algorithm, or the published formula, in float64.
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
from engine.samplers import SAMPLERS, Evaluations, Settings
from engine.schedules import SCHEDULES, ddim, scaled_linear

LEVELS = scaled_linear()
MU, S2 = 0.7, 0.25
Denoise = Callable[[Tensor, float], Tensor]


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return (S2 * x + sigma**2 * MU) / (S2 + sigma**2)


def integrate(evaluating: Evaluations, denoise: Denoise = gaussian) -> tuple[Tensor, int]:
    calls = 0
    try:
        x, sigma = next(evaluating)
        while True:
            calls += 1
            x, sigma = evaluating.send(denoise(x, sigma))
    except StopIteration as finished:
        return finished.value, calls


def recorded_noise(seed: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    drawn: list[Tensor] = []
    noise = Noise(seed, (4, 8, 8), torch.device("cpu"))

    def draw() -> Tensor:
        drawn.append(noise.step())
        return drawn[-1]

    return draw, drawn


def start(sigmas: Sequence[float]) -> Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)) * sigmas[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_registries_agree_with_the_protocol() -> None:
    assert tuple(SAMPLERS) == CANONICAL
    assert tuple(SCHEDULES) == CANONICAL_SCHEDULES


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_number_of_evaluations_is_known_beforehand(name: str, steps: int) -> None:
    sampler = SAMPLERS[name]
    sigmas = ddim(LEVELS, steps) if sampler.walks_timesteps else SCHEDULES["karras"](LEVELS, steps)
    noise = Noise(1, (4, 8, 8), torch.device("cpu"))
    settings = Settings(eta=1.0, s_churn=1.0)
    _, calls = integrate(sampler.run(start(sigmas), sigmas, noise.step, settings))
    assert calls == sampler.evaluations(sigmas)


diffusers_schedulers = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@diffusers_schedulers
@pytest.mark.parametrize("steps", [5, 20])
def test_euler_is_diffusers_euler(steps: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    sigmas = SCHEDULES["karras"](LEVELS, steps)
    ours, _ = integrate(SAMPLERS["Euler"].run(start(sigmas), sigmas, recorded_noise(1)[0], Settings(eta=1)))
    x = start(sigmas)
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        scheduler.scale_model_input(x, t)
        epsilon = (x - gaussian(x, sigma)) / sigma
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 2e-5  # its σ are float32


def published_heun(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Karras et al. 2022, algorithm 1."""
    for i, t in enumerate(sigmas[:-1]):
        t_next = sigmas[i + 1]
        d = (x - gaussian(x, t)) / t
        x_next = x + (t_next - t) * d
        if t_next != 0:
            d_prime = (x_next - gaussian(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (0.5 * d + 0.5 * d_prime)
        x = x_next
    return x


def published_euler_ancestral(x: Tensor, sigmas: Sequence[float], eta: float, noise: list[Tensor]) -> Tensor:
    """A deterministic step to σ_down, then noise up to σ_next."""
    supply = iter(noise)
    for a, b in pairwise(sigmas):
        up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
        down = (b**2 - up**2) ** 0.5
        x0 = gaussian(x, a)
        x = x0 + (x - x0) * down / a
        if up > 0:
            x = x + next(supply).double() * up
    return x


def published_dpmpp_2m(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, with α = 1 and λ = −log σ."""
    x0: list[Tensor] = []
    for i, sigma in enumerate(sigmas[:-1]):
        x0.append(gaussian(x, sigma))
        if sigmas[i + 1] == 0:
            return x0[-1]
        h = -math.log(sigmas[i + 1]) + math.log(sigma)
        d = x0[-1]
        if i > 0:
            r = (-math.log(sigma) + math.log(sigmas[i - 1])) / h
            d = (1 + 1 / (2 * r)) * x0[-1] - 1 / (2 * r) * x0[-2]
        x = sigmas[i + 1] / sigma * x - (math.exp(-h) - 1) * d
    return x


def published_sde_dpmpp_2m(x: Tensor, sigmas: Sequence[float], eta: float, noise: list[Tensor]) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M), with η-scaled noise as in k-diffusion's form."""
    supply = iter(noise)
    x0: list[Tensor] = []
    for i, sigma in enumerate(sigmas[:-1]):
        x0.append(gaussian(x, sigma))
        nxt = sigmas[i + 1]
        if nxt == 0:
            return x0[-1]
        h = math.log(sigma / nxt)
        g = 1 - math.exp(-(1 + eta) * h)
        x = nxt / sigma * math.exp(-eta * h) * x + g * x0[-1]
        if i > 0:
            r = math.log(sigmas[i - 1] / sigma) / h
            x = x + g / (2 * r) * (x0[-1] - x0[-2])
        if eta > 0:
            x = x + nxt * math.sqrt(1 - math.exp(-2 * eta * h)) * next(supply).double()
    return x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_k_samplers_are_the_published_formulas(schedule: str, steps: int, eta: float) -> None:
    sigmas = SCHEDULES[schedule](LEVELS, steps)
    for name, oracle in (
        ("Heun", lambda x, noise: published_heun(x, sigmas)),
        ("Euler a", lambda x, noise: published_euler_ancestral(x, sigmas, eta, noise)),
        ("DPM++ 2M", lambda x, noise: published_dpmpp_2m(x, sigmas)),
        ("DPM++ 2M SDE", lambda x, noise: published_sde_dpmpp_2m(x, sigmas, eta, noise)),
    ):
        draw, drawn = recorded_noise(5)
        ours, _ = integrate(SAMPLERS[name].run(start(sigmas), sigmas, draw, Settings(eta=eta)))
        theirs: Tensor = oracle(start(sigmas).double(), drawn)  # type: ignore[no-untyped-call]
        assert relative(ours, theirs) < 1e-5, name


@diffusers_schedulers
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
    ours, _ = integrate(
        SAMPLERS["DPM++ 2M"].run(start(sigmas), sigmas, recorded_noise(1)[0], Settings(eta=1.0))
    )
    x = start(sigmas).double() / math.hypot(1, sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        ve = x * math.hypot(1, sigma)
        epsilon = (ve - gaussian(ve, sigma)) / sigma
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 5e-3


@pytest.mark.parametrize("steps", [4, 20, 30])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_published_formula(steps: int, eta: float) -> None:
    """Song et al. 2021, equations 12 and 16, in their own scaling x = √ᾱ x_0 + √(1 − ᾱ) ε."""
    sigmas = ddim(LEVELS, steps)
    draw, drawn = recorded_noise(9)
    ours, calls = integrate(SAMPLERS["DDIM"].run(start(sigmas), sigmas, draw, Settings(eta=eta)))
    assert calls == len(sigmas) - 1
    alphas = [1 / (1 + s * s) for s in sigmas]
    x = start(sigmas).double() / sigmas[0]
    supply = iter(drawn)
    for a, b, sigma in zip(alphas[:-1], alphas[1:], sigmas[:-1], strict=True):
        x0 = gaussian(x / math.sqrt(a), sigma)
        epsilon = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        tau = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - tau**2) * epsilon
        if eta > 0:
            x = x + tau * next(supply).double()
    assert relative(ours, x) < 1e-5


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
    sigmas = ddim(LEVELS, 20)
    ours, _ = integrate(SAMPLERS["DDIM"].run(start(sigmas), sigmas, recorded_noise(1)[0], Settings(eta=0)))
    x = start(sigmas).double() / sigmas[0]
    for t, sigma in zip(scheduler.timesteps[:-1], sigmas, strict=False):
        x0 = gaussian(x * math.hypot(1, sigma), sigma)
        alpha = 1 / (1 + sigma**2)
        epsilon = (x - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    assert relative(ours, x) < 1e-5


def test_churn_raises_the_noise_level_as_algorithm_2_says() -> None:
    sigmas = SCHEDULES["karras"](LEVELS, 10)
    draw, drawn = recorded_noise(5)
    settings = Settings(eta=1.0, s_churn=2.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.003)
    ours, _ = integrate(SAMPLERS["Euler"].run(start(sigmas), sigmas, draw, settings))
    x, supply = start(sigmas).double(), iter(drawn)
    for t, t_next in pairwise(sigmas):
        gamma = min(2.0 / 10, math.sqrt(2) - 1) if 0.1 <= t <= 10.0 else 0.0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * 1.003 * next(supply).double()
        x = x + (t_next - t_hat) * (x - gaussian(x, t_hat)) / t_hat
    assert relative(ours, x) < 1e-5
    assert len(drawn) == sum(0.1 <= s <= 10.0 for s in sigmas[:-1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_converge_to_the_data_distribution(name: str) -> None:
    """From N(0, σ_max²) the exact flow ends in N(μ, s²)."""
    sampler = SAMPLERS[name]
    sigmas = ddim(LEVELS, 200) if sampler.walks_timesteps else SCHEDULES["karras"](LEVELS, 200)
    noise = Noise(1, (4, 64, 64), torch.device("cpu"))
    settings = Settings(eta=0.0 if name == "DDIM" else 1.0)
    x, _ = integrate(sampler.run(noise.initial * sigmas[0], sigmas, noise.step, settings))
    assert float(x.mean()) == pytest.approx(MU, abs=0.03)
    assert float(x.std()) == pytest.approx(math.sqrt(S2), rel=0.05)
