"""Noise schedules: how many steps -> the sequence of σ, by canonical name.

σ(t) = √((1 − ᾱ_t) / ᾱ_t) of the discrete training schedule, interpolated in log σ between timesteps
(Karras et al. 2022, "Elucidating the design space of diffusion-based generative models").
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TRAIN_STEPS = 1000


class NoiseLevels:
    """The training noise levels of a checkpoint: timestep t in [0, 999] ⇄ σ."""

    def __init__(self, alphas_cumprod: Array) -> None:
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


def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseLevels:
    """Stable Diffusion's training schedule: β linear in its square root (Rombach et al. 2022)."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, TRAIN_STEPS) ** 2
    return NoiseLevels(np.cumprod(1 - betas))


def uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Equal spacing in timesteps, from the last to the first."""
    timesteps = np.linspace(len(levels.sigmas) - 1, 0, steps)
    return [*map(float, levels.sigma(timesteps)), 0.0]


def karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, steps)
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    return [*map(float, (high + ramp * (low - high)) ** rho), 0.0]


def exponential(levels: NoiseLevels, steps: int) -> list[float]:
    """Equal spacing in log σ."""
    logs = np.linspace(np.log(levels.sigma_max), np.log(levels.sigma_min), steps)
    return [*map(float, np.exp(logs)), 0.0]


def ddim(levels: NoiseLevels, steps: int) -> list[float]:
    """σ at t = 1, 1 + s, 1 + 2s, … < 1000 with s = 1000 // steps, noisiest first, without a zero.

    A sampler makes one evaluation fewer than there are levels: 19 for 20 steps, as the original does.
    One step alone would evaluate nothing; it goes from the noisiest level to t = 1.
    """
    timesteps = np.arange(0, TRAIN_STEPS, TRAIN_STEPS // steps)[::-1] + 1.0
    timesteps = np.minimum(timesteps, TRAIN_STEPS - 1)
    if len(timesteps) == 1:
        timesteps = np.array([TRAIN_STEPS - 1.0, 1.0])
    return list(map(float, levels.sigma(timesteps)))


SCHEDULES: Mapping[str, Callable[[NoiseLevels, int], list[float]]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
}
