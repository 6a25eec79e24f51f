"""Noise schedules: how many steps -> the sequence of σ, by canonical name.

σ(t) = √((1 − ᾱ_t) / ᾱ_t) of the discrete training schedule, interpolated in log σ between timesteps
(Karras et al. 2022, "Elucidating the design space of diffusion-based generative models").
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TRAIN_STEPS = 1000

ALIGN_YOUR_STEPS_SD1 = 14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029
ALIGN_YOUR_STEPS_SDXL = 14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029
"""Sabour et al. 2024: the levels of ten steps, found for each family of checkpoints."""


class NoiseLevels:
    """The training noise levels of a checkpoint: timestep t in [0, 999] ⇄ σ.

    `align_your_steps`: its family's, for the schedule of that name.
    """

    def __init__(
        self, alphas_cumprod: Array, align_your_steps: Sequence[float] = ALIGN_YOUR_STEPS_SD1
    ) -> None:
        self.align_your_steps = align_your_steps
        self.sigmas: Array = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        self._log_sigmas: Array = np.log(self.sigmas)
        self._timesteps: Array = np.arange(len(self.sigmas), dtype=np.float64)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, timestep: npt.ArrayLike) -> Array:
        sigmas: Array = np.exp(np.interp(np.asarray(timestep, np.float64), self._timesteps, self._log_sigmas))
        return sigmas

    def timestep(self, sigma: Array) -> Array:
        return np.interp(np.log(sigma), self._log_sigmas, self._timesteps)


def scaled_linear(
    align_your_steps: Sequence[float] = ALIGN_YOUR_STEPS_SD1, *, zero_terminal_snr: bool = False
) -> NoiseLevels:
    """Stable Diffusion's training schedule: β linear in its square root (Rombach et al. 2022)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    if zero_terminal_snr:
        alphas_cumprod = rescaled(alphas_cumprod)
    return NoiseLevels(alphas_cumprod, align_your_steps)


TERMINAL_ALPHA = 2.0**-24
"""ᾱ at the last timestep of zero terminal SNR, in place of 0: σ_max is 4096, not infinite.

It is float16's smallest number, and what diffusers takes. σ_max has to be finite to be stepped from, and
float32 rounds x there by no more than about 1e-3.
"""


def rescaled(alphas_cumprod: Array) -> Array:
    """Lin et al. 2023, algorithm 1: √ᾱ shifted and scaled to end at 0, its first value as it was."""
    roots = np.sqrt(alphas_cumprod)
    first, last = roots[0], roots[-1]
    result: Array = ((roots - last) * first / (first - last)) ** 2
    result[-1] = TERMINAL_ALPHA
    return result


def uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Equal spacing in timesteps, from the last to the first."""
    return [*_at(levels, np.linspace(TRAIN_STEPS - 1, 0, steps)), 0.0]


def karras(levels: NoiseLevels, steps: int) -> list[float]:
    return [*karras_between(levels.sigma_max, levels.sigma_min, steps), 0.0]


def karras_between(high: float, low: float, count: int, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, equation 5. The ends are exactly those given; one level alone is the high one."""
    roots = np.linspace(high ** (1 / rho), low ** (1 / rho), count)
    return [high, *map(float, roots[1:-1] ** rho), low][:count]


def exponential(levels: NoiseLevels, steps: int) -> list[float]:
    """Equal spacing in log σ."""
    return polyexponential(levels, steps)


def polyexponential(levels: NoiseLevels, steps: int, rho: float = 1.0) -> list[float]:
    """log σ a polynomial of degree ρ; with 1, the original's, the same as exponential."""
    low, high = math.log(levels.sigma_min), math.log(levels.sigma_max)
    return [*map(float, np.exp(np.linspace(1, 0, steps) ** rho * (high - low) + low)), 0.0]


def sgm_uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Equal spacing in timesteps, from the last, where the step after the last would be the first."""
    return [*_at(levels, np.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1]), 0.0]


def kl_optimal(levels: NoiseLevels, steps: int) -> list[float]:
    """Sabour et al. 2024, equation 7: equal spacing in atan σ. Ends at σ_min, not at 0."""
    ramp = np.linspace(0, 1, steps + 1)
    low, high = math.atan(levels.sigma_min), math.atan(levels.sigma_max)
    return list(map(float, np.tan(ramp * low + (1 - ramp) * high)))


def align_your_steps(levels: NoiseLevels, steps: int) -> list[float]:
    """Sabour et al. 2024: the family's levels, interpolated in log σ."""
    logs = np.log(levels.align_your_steps)
    places = np.linspace(0, len(logs) - 1, steps)
    return [*map(float, np.exp(np.interp(places, np.arange(len(logs)), logs))), 0.0]


def simple(levels: NoiseLevels, steps: int) -> list[float]:
    """Every (1000 / steps)-th training level, from the last."""
    return [*(float(levels.sigmas[-1 - i * TRAIN_STEPS // steps]) for i in range(steps)), 0.0]


def ddim(levels: NoiseLevels, steps: int) -> list[float]:
    """σ at t = 1, 1 + s, 1 + 2s, … < 1000 with s = 1000 // steps: sometimes a step more than asked for."""
    return [*_at(levels, np.arange(1.0, TRAIN_STEPS, TRAIN_STEPS // steps)[::-1]), 0.0]


def beta(levels: NoiseLevels, steps: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Lee et al. 2024: σ spread like a Beta distribution, dense at both ends."""
    places = inverse_beta(np.linspace(1, 0, steps), a, b)
    return [*map(float, levels.sigma_min + places * (levels.sigma_max - levels.sigma_min)), 0.0]


def inverse_beta(p: Array, a: float, b: float) -> Array:
    """Where the Beta(a, b) distribution function is p, by bisection."""
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(60):
        middle = (low + high) / 2
        below = _beta_distribution(middle, a, b) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(p <= 0, 0.0, np.where(p >= 1, 1.0, (low + high) / 2))


def _beta_distribution(x: Array, a: float, b: float) -> Array:
    """I_x(a, b) by its power series about the nearer end, which there gains a bit with every term."""
    near = x <= 0.5
    first, second = np.where(near, a, b), np.where(near, b, a)
    y = np.where(near, x, 1 - x)
    term, total = np.ones_like(x), 1 / first
    for k in range(1, 60):
        term = term * (k - second) / k * y
        total = total + term / (first + k)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    part = y**first * total * math.exp(-log_beta)
    return np.where(near, part, 1 - part)


def _at(levels: NoiseLevels, timesteps: npt.NDArray[np.floating[Any]]) -> list[float]:
    return list(map(float, levels.sigma(timesteps)))


SCHEDULES: Mapping[str, Callable[[NoiseLevels, int], list[float]]] = MappingProxyType(
    {
        "uniform": uniform,
        "karras": karras,
        "exponential": exponential,
        "polyexponential": polyexponential,
        "sgm_uniform": sgm_uniform,
        "kl_optimal": kl_optimal,
        "align_your_steps": align_your_steps,
        "simple": simple,
        "normal": uniform,
        "ddim": ddim,
        "beta": beta,
    }
)


def ddim_walk(levels: NoiseLevels, steps: int) -> list[float]:
    """DDIM's and PLMS' own levels: σ at t = 1, 1 + s, 1 + 2s, … with s = 1000 // steps, without a zero.

    DDIM makes one evaluation fewer than there are levels: 19 for 20 steps, as the original does. One step
    alone would evaluate nothing; it goes from the noisiest level to t = 1.
    """
    timesteps = np.arange(0, TRAIN_STEPS, TRAIN_STEPS // steps)[::-1] + 1.0
    timesteps = np.minimum(timesteps, TRAIN_STEPS - 1)
    if len(timesteps) == 1:
        timesteps = np.array([TRAIN_STEPS - 1.0, 1.0])
    return _at(levels, timesteps)


def unipc_walk(levels: NoiseLevels, steps: int) -> list[float]:
    """UniPC's own levels: equal spacing in timesteps over all of them, without a zero."""
    return _at(levels, np.linspace(TRAIN_STEPS - 1, 0, steps + 1))


LCM_STEPS = 50


def lcm_walk(levels: NoiseLevels, steps: int) -> list[float]:
    """LCM's own levels: of the fifty that it is distilled for, equally spaced, from the last."""
    distilled = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS // LCM_STEPS) - 1.0
    chosen = distilled[np.linspace(0, LCM_STEPS, steps, endpoint=False).astype(int)]
    return [*_at(levels, chosen), 0.0]


def ends(levels: NoiseLevels, steps: int) -> list[float]:
    """For samplers that only ask where the levels start, where they end and how many there are."""
    return uniform(levels, steps) if steps > 1 else [levels.sigma_max, levels.sigma_min]
