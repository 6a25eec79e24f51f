"""Euler, Heun and DPM2 with churn: Karras et al. 2022, algorithm 2; the midpoint after Lu et al. 2022.

The second slope of a step is taken at the end of a straight line, where it differs from the first by
(denoised − denoised there) / σ there: what a step adds to the straight line is written with that.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight


def euler(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma_hat = _churn(x, sigma, len(sigmas) - 1, noise, s)
        denoised = yield x, sigma_hat
        x = straight(x, denoised, sigma_hat, sigma_next)
    return x


def heun(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma_hat = _churn(x, sigma, len(sigmas) - 1, noise, s)
        x = yield from heun_step(x, sigma_hat, sigma_next)
    return x


def heun_step(x: Latent, sigma: float, sigma_next: float) -> Evaluations:
    """The mean of the slopes at both ends. A step to 0 has but one: Euler."""
    denoised = yield x, sigma
    x = straight(x, denoised, sigma, sigma_next)
    if sigma_next == 0:
        return x
    at_end = yield x, sigma_next
    return x + (denoised - at_end) * ((sigma_next - sigma) / (2 * sigma_next))


def dpm_2(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma_hat = _churn(x, sigma, len(sigmas) - 1, noise, s)
        x = yield from dpm_2_step(x, sigma_hat, sigma_next)
    return x


def dpm_2_step(x: Latent, sigma: float, sigma_next: float) -> Evaluations:
    """The slope at the midpoint in log σ. A step to 0 has none: Euler."""
    denoised = yield x, sigma
    if sigma_next == 0:
        return denoised
    middle = math.sqrt(sigma * sigma_next)
    at_middle = yield straight(x, denoised, sigma, middle), middle
    x = straight(x, denoised, sigma, sigma_next)
    return x + (denoised - at_middle) * ((sigma_next - sigma) / middle)


def _churn(x: Latent, sigma: float, steps: int, noise: StepNoise, s: Settings) -> tuple[Latent, float]:
    """Raise the noise level from σ to σ̂ (lines 4 to 6).

    Noise is drawn at every step, also where s_tmin and s_tmax let none in: they do not shift the others'.
    """
    if s.s_churn <= 0:
        return x, sigma
    drawn = noise(sigma, sigma)
    if not s.s_tmin <= sigma <= s.s_tmax:
        return x, sigma
    sigma_hat = sigma * (1 + min(s.s_churn / steps, math.sqrt(2) - 1))
    return x + drawn * (s.s_noise * math.sqrt(sigma_hat**2 - sigma**2)), sigma_hat
