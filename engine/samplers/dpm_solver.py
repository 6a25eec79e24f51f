"""DPM-Solver (Lu et al. 2022) with singlestep orders 1 to 3, in t = −log σ: fast and adaptive.

Both span the levels they are given in steps of their own. Only the ends of the levels count, and for DPM
fast their number. They end at the last level above 0.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from engine.protocol import JobFailed
from engine.samplers.ancestral import split
from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight

ADAPTIVE_GUESS = 60
"""Evaluations that a run of DPM adaptive is taken to need, for scheduling."""
ADAPTIVE_LIMIT = 1000
"""Evaluations after which a run of DPM adaptive is given up."""

_SHORTEST = 1e-5
"""What remains of t that needs no step."""
_ABSOLUTE, _RELATIVE = 0.0078, 0.05
_FIRST_STEP = 0.05
_ACCEPTED = 0.81

Pair = Generator[tuple[Latent, float], Latent, tuple[Latent, Latent]]
"""Evaluations that end in the step of order 3 and the one of order 2 inside it."""


def dpm_fast(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Equal steps of order 3, the last ones of lower order: one evaluation for each step asked for."""
    start, end = _ends(sigmas)
    if start == end:
        return (yield x, sigmas[0])
    orders = _orders(len(sigmas) - 1)
    places = np.linspace(start, end, len(orders) + 1).tolist()
    for (t, t_next), order in zip(pairwise(places), orders, strict=True):
        t_down, up = _down(t, t_next, end, s.eta)
        denoised = yield x, math.exp(-t)
        x = yield from _step(x, denoised, t, t_down - t, order)
        if up > 0:
            x = x + noise(math.exp(-t), math.exp(-t_next)) * (s.s_noise * up)
    return x


def adaptive_evaluations(sigmas: Sequence[float]) -> int:
    return 1 if _ends(sigmas)[0] == _ends(sigmas)[1] else ADAPTIVE_GUESS


def _orders(evaluations: int) -> list[int]:
    threes, rest = divmod(evaluations, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def dpm_adaptive(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Order 3, with the order 2 inside it as the measure of error; a step that errs too much is repeated.

    Each step waits for its error to come from the device. Raises JobFailed at ADAPTIVE_LIMIT evaluations.
    """
    t, end = _ends(sigmas)
    if t == end:
        return (yield x, sigmas[0])
    control = _StepSize(_FIRST_STEP, order=1.5 if s.eta else 3.0)
    previous = x
    evaluations = 0
    while t < end - _SHORTEST:
        denoised = yield x, math.exp(-t)
        evaluations += 1
        accepted = False
        while not accepted:
            t_next = min(end, t + control.size)
            t_down, up = _down(t, t_next, end, s.eta)
            high, low = yield from _third_order(x, denoised, t, t_down - t)
            evaluations += 2
            if evaluations > ADAPTIVE_LIMIT:
                raise JobFailed(f"DPM adaptive was not done after {evaluations} evaluations")
            accepted = control.accepts(_error(high, low, previous))
        previous, x = low, high
        if up > 0:
            x = x + noise(math.exp(-t), math.exp(-t_next)) * (s.s_noise * up)
        t = t_next
    return x


def _error(high: Latent, low: Latent, previous: Latent) -> float:
    """Root mean square of the steps' difference, in units of what is tolerated."""
    assert isinstance(high, Tensor)
    assert isinstance(low, Tensor)
    assert isinstance(previous, Tensor)
    tolerated = (torch.maximum(low.abs(), previous.abs()) * _RELATIVE).clamp(min=_ABSOLUTE)
    return float(((low - high) / tolerated).square().mean().sqrt())


@dataclass(slots=True)
class _StepSize:
    """An integral controller of the step size in t."""

    size: float
    order: float

    def accepts(self, error: float) -> bool:
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.size *= factor
        return factor >= _ACCEPTED


def _ends(sigmas: Sequence[float]) -> tuple[float, float]:
    """Where t = −log σ starts and ends."""
    return -math.log(sigmas[0]), -math.log(min(sigma for sigma in sigmas if sigma > 0))


def _down(t: float, t_next: float, end: float, eta: float) -> tuple[float, float]:
    """Where an ancestral step goes, never beyond the end, and the noise that brings x back up from there."""
    if eta == 0:
        return t_next, 0.0
    sigma_next = math.exp(-t_next)
    sigma_down, _ = split(math.exp(-t), sigma_next, eta)
    t_down = min(end, -math.log(sigma_down)) if sigma_down > 0 else end
    return t_down, math.sqrt(max(sigma_next**2 - math.exp(-t_down) ** 2, 0.0))


def _step(x: Latent, denoised: Latent, t: float, h: float, order: int) -> Evaluations:
    if order == 1:
        return _straight(x, denoised, t, h)
    if order == 2:
        change = yield from _change(x, denoised, t, h / 2)
        return _second_order(x, denoised, change, (t, h, 1 / 2))
    high, _ = yield from _third_order(x, denoised, t, h)
    return high


def _third_order(x: Latent, denoised: Latent, t: float, h: float) -> Pair:
    """Lu et al. 2022, algorithm 2 with r_1 = 1/3 and r_2 = 2/3."""
    change = yield from _change(x, denoised, t, h / 3)
    r = 2 * h / 3
    bent = change * (2 * _phi_2(r))
    at_r = yield _straight(x, denoised, t, r) - bent * math.exp(-t - r), math.exp(-t - r)
    change_r = (denoised - at_r) * math.exp(t + r) - bent
    high = _straight(x, denoised, t, h) - change_r * (1.5 * math.exp(-t - h) * _phi_2(h))
    return high, _second_order(x, denoised, change, (t, h, 1 / 3))


def _second_order(x: Latent, denoised: Latent, change: Latent, step: tuple[float, float, float]) -> Latent:
    t, h, r = step
    return _straight(x, denoised, t, h) - change * (math.exp(-t - h) * math.expm1(h) / (2 * r))


def _change(x: Latent, denoised: Latent, t: float, h: float) -> Evaluations:
    """How much ε = (x − denoised) / σ changes on the straight way to t + h."""
    there = yield _straight(x, denoised, t, h), math.exp(-t - h)
    return (denoised - there) * math.exp(t + h)


def _straight(x: Latent, denoised: Latent, t: float, h: float) -> Latent:
    """Order 1."""
    return straight(x, denoised, math.exp(-t), math.exp(-t - h))


def _phi_2(h: float) -> float:
    return math.expm1(h) / h - 1
