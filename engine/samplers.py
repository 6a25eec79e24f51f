"""Samplers as generators, by canonical name.

A sampler is given the latent x at σ_0, the levels σ_0 … σ_n, a source of step noise and its settings. It
yields (x, σ) wherever it needs the denoiser, is sent `denoised`, the estimate of the clean latent, and
returns the finished latent. Formulas: Karras et al. 2022 (Euler, Heun); Lu et al. 2022, DPM-Solver++ (2M,
2M SDE); Song et al. 2021 (DDIM). In σ-space, dx/dσ = (x − denoised) / σ.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

Evaluations = Generator[tuple[Tensor, float], Tensor, Tensor]
StepNoise = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`eta` scales the noise of stochastic samplers; the s_… are Karras et al. 2022, algorithm 2."""

    eta: float
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


def euler(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma_hat = _churn(x, sigma, len(sigmas) - 1, noise, s)
        denoised = yield x, sigma_hat
        x = x + (x - denoised) / sigma_hat * (sigma_next - sigma_hat)
    return x


def euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        sigma_down, sigma_up = _ancestral(sigma, sigma_next, s.eta)
        x = x + (x - denoised) / sigma * (sigma_down - sigma)
        if sigma_up > 0:
            x = x + noise() * (s.s_noise * sigma_up)
    return x


def heun(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma_hat = _churn(x, sigma, len(sigmas) - 1, noise, s)
        denoised = yield x, sigma_hat
        d = (x - denoised) / sigma_hat
        dt = sigma_next - sigma_hat
        if sigma_next > 0:
            x_next = x + d * dt
            denoised = yield x_next, sigma_next
            d = (d + (x_next - denoised) / sigma_next) / 2
        x = x + d * dt
    return x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    previous: Tensor | None = None
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
        x = (sigma_next / sigma) * x - math.expm1(-h) * d
        previous, h_last = denoised, h
    return x


def dpmpp_2m_sde(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    previous: Tensor | None = None
    h_last = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        eta_h = s.eta * h
        gain = -math.expm1(-h - eta_h)
        x = (sigma_next / sigma * math.exp(-eta_h)) * x + gain * denoised
        if previous is not None:
            r = h_last / h
            x = x + (0.5 * gain / r) * (denoised - previous)
        if s.eta > 0:
            x = x + noise() * (sigma_next * math.sqrt(-math.expm1(-2 * eta_h)) * s.s_noise)
        previous, h_last = denoised, h
    return x


def ddim(x: Tensor, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    """Song et al. 2021, equation 12, in σ-space; returns x / √(1 + σ²), their scaling, at the last σ.

    Like every sampler it is given noise · σ_0; theirs starts from the noise in their own scaling.
    """
    x = x * (math.hypot(1, sigmas[0]) / sigmas[0])
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        alpha, alpha_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        # Their σ_τ(η)², carried into σ-space by dividing by ᾱ_next.
        variance = s.eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next) / alpha_next
        direction = math.sqrt(max(sigma_next**2 - variance, 0.0))
        x = denoised + (x - denoised) / sigma * direction
        if variance > 0:
            x = x + noise() * (math.sqrt(variance) * s.s_noise)
    return x / math.hypot(1, sigmas[-1])


def _churn(x: Tensor, sigma: float, steps: int, noise: StepNoise, s: Settings) -> tuple[Tensor, float]:
    """Raise the noise level from σ to σ̂ (Karras et al. 2022, algorithm 2, lines 4 to 6)."""
    if s.s_churn <= 0 or not s.s_tmin <= sigma <= s.s_tmax:
        return x, sigma
    sigma_hat = sigma * (1 + min(s.s_churn / steps, math.sqrt(2) - 1))
    return x + noise() * (s.s_noise * math.sqrt(sigma_hat**2 - sigma**2)), sigma_hat


def _ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Split a step into one down to σ_down and fresh noise σ_up, with σ_down² + σ_up² = σ_next²."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """`evaluations_per_step` counts the last step as one. `walks_timesteps`: has its own levels."""

    run: Callable[[Tensor, Sequence[float], StepNoise, Settings], Evaluations]
    evaluations_per_step: int = 1
    walks_timesteps: bool = False

    def evaluations(self, sigmas: Sequence[float]) -> int:
        """How often a run over these levels yields: known exactly, beforehand."""
        steps = len(sigmas) - 1
        return steps * self.evaluations_per_step - (self.evaluations_per_step - 1)


SAMPLERS: Mapping[str, Sampler] = {
    "Euler": Sampler(run=euler),
    "Euler a": Sampler(run=euler_ancestral),
    "Heun": Sampler(run=heun, evaluations_per_step=2),
    "DPM++ 2M": Sampler(run=dpmpp_2m),
    "DPM++ 2M SDE": Sampler(run=dpmpp_2m_sde),
    "DDIM": Sampler(run=ddim, walks_timesteps=True),
}
