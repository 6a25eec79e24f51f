"""Runs of the engine's samplers on a denoiser whose answer is known, and their distance from an oracle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.noise import Noise
from engine.samplers import SAMPLERS, Evaluations, Settings
from engine.samplers.combination import computed
from engine.samplers.walk import Walk, walk
from engine.schedules import scaled_linear
from tests.engine.oracles import ORACLES, Denoise, Oracle, Run, mixture, unconditional

LEVELS = scaled_linear()
CPU = torch.device("cpu")
SHAPE = (4, 8, 8)
SEED = 5


def integrate(evaluating: Evaluations, denoise: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, int]:
    """The finished latent of a sampler that is run on tensors, and how often it evaluated."""
    calls = 0
    try:
        x, sigma = next(evaluating)
        while True:
            assert isinstance(x, Tensor)
            calls += 1
            x, sigma = evaluating.send(denoise(x, sigma))
    except StopIteration as finished:
        return finished.value, calls


def walked(walking: Walk, denoise: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, int]:
    """The same of a sampler that is run as the engine runs it."""
    calls = 0
    try:
        x, sigma, meanwhile = next(walking)
        while True:
            calls += 1
            (latent,) = computed([x])
            meanwhile()
            x, sigma, meanwhile = walking.send(denoise(latent, sigma))
    except StopIteration as finished:
        return finished.value, calls


def denoiser_of(name: str) -> Denoise:
    """What the sampler is sent: for some the guided and the unconditional estimate."""
    if SAMPLERS[name].needs_uncond:
        return lambda x, sigma: torch.stack([mixture(x, sigma), unconditional(x, sigma)])
    return mixture


@dataclass(frozen=True)
class Trajectory:
    """A finished run of the engine's sampler and all that it takes to repeat it elsewhere."""

    start: Tensor
    sigmas: Sequence[float]
    drawn: Sequence[Tensor]
    eta: float
    finished: Tensor
    evaluations: int

    def error(self, oracle: Oracle) -> float:
        """The distance from the oracle's result in float64, relative."""
        supply = iter(self.drawn)
        run = Run(self.start.double(), self.sigmas, lambda: next(supply).double(), self.eta)
        theirs = oracle(run)
        assert next(supply, None) is None, "the oracle drew less noise"
        return float((self.finished.double() - theirs).norm() / theirs.norm())


def run(
    name: str,
    sigmas: Sequence[float],
    *,
    eta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    on_tensors: bool = False,
) -> Trajectory:
    """As the engine runs it, or `on_tensors` throughout."""
    sampler, noise = SAMPLERS[name], Noise(SEED, SHAPE, CPU)
    step_noise = sampler.step_noise(noise, sigmas)
    drawn: list[Tensor] = []

    def draw(sigma: float, sigma_next: float) -> Tensor:
        drawn.append(step_noise(sigma, sigma_next))
        return drawn[-1].to(dtype)

    start = (noise.initial * sampler.initial_scale(sigmas[0])).to(dtype)
    if on_tensors:
        evaluating = sampler.run(start, sigmas, draw, Settings(eta=eta))
        finished, evaluations = integrate(evaluating, denoiser_of(name))
    else:
        finished, evaluations = walked(
            walk(sampler, start, sigmas, draw, Settings(eta=eta)), denoiser_of(name)
        )
    return Trajectory(start, sigmas, drawn, eta, finished, evaluations)


def error(name: str, schedule: str, steps: int, eta: float, dtype: torch.dtype = torch.float32) -> float:
    sigmas = SAMPLERS[name].sigmas(schedule, LEVELS, steps)
    return run(name, sigmas, eta=eta, dtype=dtype).error(ORACLES[name])
