"""Deterministic samplers that remember the steps before."""

import math
from collections.abc import Sequence
from itertools import pairwise

from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise, straight

_LMS_ORDER = 4


def lms(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Linear multistep of order 4: the slope is the polynomial in σ through the last four.

    Its weights add up to the step, so the older slopes are added to Euler's step as differences.
    """
    slopes: list[Latent] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        slopes = [(x - denoised) / sigma, *slopes[: _LMS_ORDER - 1]]
        known = [sigmas[i - j] for j in range(len(slopes))]
        x = straight(x, denoised, sigma, sigma_next)
        for j, slope in enumerate(slopes[1:], start=1):
            x = x + (slope - slopes[0]) * _lagrange_integral(known, j, sigma, sigma_next)
    return x


def _lagrange_integral(nodes: Sequence[float], j: int, a: float, b: float) -> float:
    """∫ from a to b of the basis polynomial that is 1 at node j and 0 at the others.

    Gauss–Legendre with two points, exact up to the third degree that four nodes have.
    """

    def basis(t: float) -> float:
        return math.prod((t - n) / (nodes[j] - n) for k, n in enumerate(nodes) if k != j)

    middle, half = (a + b) / 2, (b - a) / 2
    offset = half / math.sqrt(3)
    return half * (basis(middle - offset) + basis(middle + offset))


def dpmpp_2m(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2."""
    previous: Latent | None = None
    h_last = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        d = denoised
        if previous is not None:
            r = h_last / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        x = straight(x, d, sigma, sigma_next)
        previous, h_last = denoised, h
    return x
