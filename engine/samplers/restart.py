"""Restart sampling (Xu et al. 2023): Heun, which goes back up with fresh noise and down again."""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.karras import heun_step
from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise
from engine.schedules import karras_between

Steps = list[tuple[float, float]]

_LOW, _HIGH = 0.1, 2.0
"""The interval of σ that is gone through again."""


def restart(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    last = sigmas[0]
    for sigma, sigma_next in _steps(sigmas):
        if sigma > last:
            x = x + noise(last, sigma) * (s.s_noise * math.sqrt(sigma**2 - last**2))
        x = yield from heun_step(x, sigma, sigma_next)
        last = sigma_next
    return x


def evaluations(sigmas: Sequence[float]) -> int:
    return sum(1 if sigma_next == 0 else 2 for _, sigma_next in _steps(sigmas))


def _steps(sigmas: Sequence[float]) -> Steps:
    """From 20 steps on, some of them go once or twice through the interval again, the others down Karras'."""
    steps = len(sigmas) - 1
    again, times = _restarts(steps)
    if not times:
        return list(pairwise(sigmas))
    lowest = min(sigma for sigma in sigmas if sigma > 0)
    levels = karras_between(sigmas[0], lowest, steps - again * times)
    walk = list(pairwise([*levels, 0.0]))
    low, high = _nearest(levels, _LOW), _nearest(levels, _HIGH)
    if high < low:
        walk[low:low] = list(pairwise(karras_between(levels[high], levels[low], again + 1))) * times
    return walk


def _restarts(steps: int) -> tuple[int, int]:
    """Steps of each restart, and how many restarts."""
    if steps < 20:
        return 0, 0
    return (9, 1) if steps < 36 else (steps // 4, 2)


def _nearest(levels: Sequence[float], sigma: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))
