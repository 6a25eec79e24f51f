"""Ancestral samplers: each step goes down further than asked, then back up with fresh noise."""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.karras import dpm_2_step
from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight


def split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """A step as one down to σ_down and fresh noise σ_up, with σ_down² + σ_up² = σ_next²."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def euler_ancestral(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        sigma_down, sigma_up = split(sigma, sigma_next, s.eta)
        x = straight(x, denoised, sigma, sigma_down)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s.s_noise * sigma_up)
    return x


def dpm_2_ancestral(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next, s.eta)
        x = yield from dpm_2_step(x, sigma, sigma_down)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s.s_noise * sigma_up)
    return x


def dpmpp_2s_ancestral(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next, s.eta)
        x = yield from _dpmpp_2s_step(x, sigma, sigma_down)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s.s_noise * sigma_up)
    return x


def _dpmpp_2s_step(x: Latent, sigma: float, sigma_next: float) -> Evaluations:
    """Lu et al. 2022 (DPM-Solver++), algorithm 1 with r = 1/2: the midpoint's estimate serves the step."""
    denoised = yield x, sigma
    if sigma_next == 0:
        return denoised
    middle = math.sqrt(sigma * sigma_next)
    denoised = yield straight(x, denoised, sigma, middle), middle
    return straight(x, denoised, sigma, sigma_next)
