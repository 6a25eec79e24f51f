"""Noise levels of Stable Diffusion 1.5 and a small sampler, in units of sigma (x = x0 + σ·n)."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch

STEPS = 1000

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""(x, σ) -> the estimate of x0, of x's shape."""


@lru_cache(1)
def training_sigmas() -> torch.Tensor:
    """(1000,) float32: σ of each timestep, β scaled-linear from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    return ((1 - kept) / kept).sqrt().float()


def timestep_of(sigma: torch.Tensor) -> torch.Tensor:
    """The timestep, a real number, of each σ: a straight line in log σ between neighbours."""
    logs = training_sigmas().log()
    log = sigma.float().log().clamp(logs[0], logs[-1])
    low = torch.searchsorted(logs, log, right=True).clamp(1, STEPS - 1) - 1
    return low + (log - logs[low]) / (logs[low + 1] - logs[low])


def karras_sigmas(steps: int) -> list[float]:
    """`steps` falling values of σ with ρ = 7, then 0."""
    ends = training_sigmas()
    low, high = ends[0].item() ** (1 / 7), ends[-1].item() ** (1 / 7)
    ramp = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)]
    return [*ramp, 0.0]


def sample_dpmpp_2m(denoise: Denoise, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """DPM-Solver++(2M) on Karras' sigmas, from unit noise to x0."""
    sigmas = karras_sigmas(steps)
    x, before = noise * sigmas[0], torch.zeros(())
    for i in range(steps):
        now = denoise(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return now
        step = math.log(sigmas[i] / sigmas[i + 1])
        guess = now
        if i:
            ratio = math.log(sigmas[i - 1] / sigmas[i]) / step
            guess = now + (now - before) / (2 * ratio)
        x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-step) * guess
        before = now
    return x
