"""Samplers of the discrete diffusion process: they walk timesteps of their own, in σ-space like the others.

Those that end at t = 1 rather than 0 return x / √(1 + σ²), the process' own scaling, as the finished latent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight


def ddim(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Song et al. 2021, equation 12."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        x = _ddim_step(denoised, (x - denoised) / sigma, (sigma, sigma_next), noise, s)
    return x / math.hypot(1, sigmas[-1])


def ddim_cfgpp(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """CFG++ (Chung et al. 2024), algorithm 2: guided estimate, but the unconditional direction."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised, unconditional = yield x, sigma
        x = _ddim_step(denoised, (x - unconditional) / sigma, (sigma, sigma_next), noise, s)
    return x / math.hypot(1, sigmas[-1])


def _ddim_step(
    denoised: Latent, epsilon: Latent, step: tuple[float, float], noise: StepNoise, s: Settings
) -> Latent:
    sigma, sigma_next = step
    alpha, alpha_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    # Their σ_τ(η)², carried into σ-space by dividing by ᾱ_next.
    variance = s.eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next) / alpha_next
    x = denoised + epsilon * math.sqrt(max(sigma_next**2 - variance, 0.0))
    return x + noise(sigma, sigma_next) * (math.sqrt(variance) * s.s_noise) if variance > 0 else x


_ADAMS_BASHFORTH = (), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24)
"""Of the older ε; the newest has what is missing to 1."""


def plms(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Liu et al. 2022 (PNDM), pseudo linear multistep; the first step is their improved Euler."""
    epsilons: list[Latent] = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        newest = (x - denoised) / sigma
        x = straight(x, denoised, sigma, sigma_next)
        if not epsilons:
            at_end = yield x, sigma_next
            x = x + (denoised - at_end) * ((sigma_next - sigma) / (2 * sigma_next))
        for epsilon, weight in zip(epsilons, _ADAMS_BASHFORTH[len(epsilons)], strict=True):
            x = x + (epsilon - newest) * (weight * (sigma_next - sigma))
        epsilons = [newest, *epsilons[:2]]
    return x / math.hypot(1, sigmas[-1])


def plms_evaluations(sigmas: Sequence[float]) -> int:
    return len(sigmas)


def lcm(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Luo et al. 2023 (latent consistency), algorithm 3: the estimate, noised again to the next level.

    Their boundary scaling differs from 1 by less than 7e-6 at t ≥ 19, where the walk ends, and is left out.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = yield x, sigma
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * (s.s_noise * sigma_next)
    return x
