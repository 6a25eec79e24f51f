"""SDE-DPM-Solver++ (Lu et al. 2022): the reverse SDE solved exactly in its linear part, Brownian noise."""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.ancestral import split
from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight


def dpmpp_sde(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Two ancestral stages with r = 1/2: the whole step is taken by the estimate at its midpoint."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:
            return denoised
        middle = math.sqrt(sigma * sigma_next)
        x_middle = _stage(x, denoised, (sigma, middle), noise, s)
        denoised = yield x_middle, middle
        x = _stage(x, denoised, (sigma, sigma_next), noise, s)
    return x


def _stage(x: Latent, denoised: Latent, step: tuple[float, float], noise: StepNoise, s: Settings) -> Latent:
    sigma, sigma_next = step
    down, up = split(sigma, sigma_next, s.eta)
    x = straight(x, denoised, sigma, down)
    return x + noise(sigma, sigma_next) * (s.s_noise * up) if up > 0 else x


def dpmpp_2m_sde(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    return (yield from _second_order(x, sigmas, noise, s, heun=False))


def dpmpp_2m_sde_heun(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    return (yield from _second_order(x, sigmas, noise, s, heun=True))


def _second_order(
    x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings, *, heun: bool
) -> Evaluations:
    previous: Latent | None = None
    h_last = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        decay = (1 + s.eta) * h
        x = math.exp(-decay) * x - math.expm1(-decay) * denoised
        if previous is not None:
            weight = _phi_2(decay) if heun else -math.expm1(-decay) / 2
            x = x + (weight * h / h_last) * (denoised - previous)
        x = _noised(x, (sigma, sigma_next), noise, s)
        previous, h_last = denoised, h
    return x


def dpmpp_3m_sde(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """The estimate as a parabola in log σ through the last three: its differences, newest first."""
    estimates: list[Latent] = []
    lengths: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        decay = (1 + s.eta) * h
        x = math.exp(-decay) * x - math.expm1(-decay) * denoised
        estimates = [denoised, *estimates[:2]]
        if len(estimates) > 1:
            x = x + _higher_orders(estimates, lengths, h, decay)
        x = _noised(x, (sigma, sigma_next), noise, s)
        lengths = [h, *lengths[:1]]
    return x


def _higher_orders(estimates: list[Latent], lengths: list[float], h: float, decay: float) -> Latent:
    r = lengths[0] / h
    slope = (estimates[0] - estimates[1]) / r
    phi_2 = _phi_2(decay)
    if len(estimates) == 2:
        return phi_2 * slope
    r_before = lengths[1] / h
    bend = (slope - (estimates[1] - estimates[2]) / r_before) / (r + r_before)
    phi_3 = phi_2 / decay - 0.5
    return phi_2 * (slope + r * bend) - phi_3 * bend


def _phi_2(decay: float) -> float:
    return math.expm1(-decay) / decay + 1


def _noised(x: Latent, step: tuple[float, float], noise: StepNoise, s: Settings) -> Latent:
    if s.eta == 0:
        return x
    sigma, sigma_next = step
    lost = -math.expm1(2 * s.eta * math.log(sigma_next / sigma))
    return x + noise(sigma, sigma_next) * (sigma_next * math.sqrt(lost) * s.s_noise)
