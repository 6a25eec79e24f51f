"""What a sampler is.

A sampler is given the latent x at σ_0, the levels σ_0 … σ_n, a source of step noise and its settings. It
yields (x, σ) wherever it needs the denoiser, is sent `denoised`, the estimate of the clean latent, and
returns the finished latent. In σ-space, dx/dσ = (x − denoised) / σ.

The levels fall. They may start anywhere, σ_0 of a picture's own noise included, and need not end in 0.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

from torch import Tensor

from engine.noise import Noise
from engine.protocol import InvalidJob
from engine.schedules import SCHEDULES, TRAIN_STEPS, NoiseLevels


class Latent(Protocol):
    """What a linear sampler may do with latents: tensors, or what stands for them. One is never a number."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __neg__(self) -> Self: ...
    def __mul__(self, number: float, /) -> Self: ...
    def __rmul__(self, number: float, /) -> Self: ...
    def __truediv__(self, number: float, /) -> Self: ...
    def __iter__(self) -> Iterator[Self]: ...


Evaluations = Generator[tuple[Latent, float], Latent, Latent]
StepNoise = Callable[[float, float], Latent]
"""(σ, σ′) to standard normal noise for the step between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`eta` scales the noise of stochastic samplers; the s_… are Karras et al. 2022, algorithm 2."""

    eta: float
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


def straight(x: Latent, denoised: Latent, sigma: float, sigma_next: float) -> Latent:
    """Euler's step: x + (σ′ − σ) dx/dσ, in the form in which nothing cancels."""
    return denoised + (x - denoised) * (sigma_next / sigma)


def once_a_step(sigmas: Sequence[float]) -> int:
    return len(sigmas) - 1


def twice_a_step(sigmas: Sequence[float]) -> int:
    """A step to 0 needs no second evaluation."""
    return sum(1 if sigma_next == 0 else 2 for _, sigma_next in pairwise(sigmas))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A sampler and what whoever runs it must know.

    `evaluations`: how often a run over these levels yields, known exactly beforehand unless `adaptive`,
    where it is a guess. A sampler that is `adaptive` decides by the values of latents, which must be tensors;
    the others are linear, and decide by levels and settings alone. `schedule`: its own levels, instead of the
    job's. `brownian`: its noise comes from a Brownian path over the whole schedule. `unit_variance`: begins
    with noise · √(1 + σ_0²) where others begin with noise · σ_0. `needs_uncond`: is sent denoised and the
    unconditional estimate, stacked. `guidance_factor` is applied to the guidance scale.
    `discards_next_to_last`: walks the levels of one more step without the last but one. `second_order`:
    prompts count its evaluations, not its steps.
    """

    name: str
    run: Callable[[Latent, Sequence[float], StepNoise, Settings], Evaluations]
    evaluations: Callable[[Sequence[float]], int] = once_a_step
    schedule: Callable[[NoiseLevels, int], list[float]] | None = None
    adaptive: bool = False
    brownian: bool = False
    unit_variance: bool = False
    needs_uncond: bool = False
    guidance_factor: float = 1.0
    discards_next_to_last: bool = False
    second_order: bool = False
    max_steps: int = TRAIN_STEPS

    def sigmas(self, schedule: str, levels: NoiseLevels, steps: int, *, discard: bool = False) -> list[float]:
        """The levels to walk. `discard` leaves out the last but one where the sampler itself would not.

        Raises InvalidJob for an unknown schedule and for steps that there are no levels for.
        """
        if schedule not in SCHEDULES:
            raise InvalidJob(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
        discard = discard or self.discards_next_to_last
        most = min(self.max_steps, TRAIN_STEPS - discard)
        if not 1 <= steps <= most:
            raise InvalidJob(f"steps is {steps}; {self.name} takes 1 to {most}")
        if self.schedule:
            return self.schedule(levels, steps)
        sigmas = SCHEDULES[schedule](levels, steps + discard)
        return [*sigmas[:-2], sigmas[-1]] if discard else sigmas

    def initial_scale(self, sigma: float) -> float:
        """What the initial noise is multiplied with to be pure noise at σ."""
        return math.hypot(1, sigma) if self.unit_variance else sigma

    def step_noise(self, noise: Noise, sigmas: Sequence[float]) -> Callable[[float, float], Tensor]:
        """The noise of the steps. `sigmas` are the whole schedule's, also where only its end is walked."""
        if self.brownian:
            return noise.brownian(min(sigma for sigma in sigmas if sigma > 0), max(sigmas))
        return noise.step
