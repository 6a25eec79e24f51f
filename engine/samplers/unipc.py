"""UniPC (Zhao et al. 2023) of order 3 with B(h) = h ("bh1"), predicting the clean latent.

Each evaluation serves twice: it corrects the step that led to it and predicts the next one.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from engine.samplers.sampler import Evaluations, Latent, Settings, StepNoise

_ORDER = 3


def unipc(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """The first and the last steps are of lower order. Returns x / √(1 + σ²) at the last σ."""
    estimates = [(yield x, sigmas[0])]
    steps = len(sigmas) - 1
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        order = min(_ORDER, i + 1, steps - i)
        h = math.log(sigma / sigma_next)
        ratios = [math.log(sigma / sigmas[i - k]) / h for k in range(1, order)]
        slopes = [(estimates[k + 1] - estimates[0]) / r for k, r in enumerate(ratios)]
        predictor = _predictor(ratios, h)
        x = _sum(math.exp(-h) * x - math.expm1(-h) * estimates[0], slopes, predictor, h)
        if i + 1 < steps:
            estimate = yield x, sigma_next
            slopes.append(estimate - estimates[0])
            pairs = zip(_corrector(ratios, h), [*predictor, 0.0], strict=True)
            x = _sum(x, slopes, [corrected - predicted for corrected, predicted in pairs], h)
            estimates = [estimate, *estimates[: _ORDER - 1]]
    return x / math.hypot(1, sigmas[-1])


def _sum(linear: Latent, slopes: Sequence[Latent], weights: Sequence[float], h: float) -> Latent:
    for slope, weight in zip(slopes, weights, strict=True):
        linear = linear + slope * (h * weight)
    return linear


def _predictor(ratios: Sequence[float], h: float) -> Sequence[float]:
    return [0.5] if len(ratios) == 1 else _weights(ratios, h)


def _corrector(ratios: Sequence[float], h: float) -> Sequence[float]:
    return _weights([*ratios, 1.0], h) if ratios else [0.5]


def _weights(ratios: Sequence[float], h: float) -> Sequence[float]:
    """Equation 5: weights under which the slopes at these ratios of the step match its moments."""
    powers = np.vander(ratios, increasing=True).T
    moments = []
    phi = math.expm1(-h) / -h - 1
    for k in range(1, len(ratios) + 1):
        moments.append(phi * math.factorial(k) / -h)
        phi = phi / -h - 1 / math.factorial(k + 1)
    return list(map(float, np.linalg.solve(powers, moments))) if moments else []
