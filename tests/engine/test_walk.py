"""Samplers as the engine runs them: as on tensors, but rows together, and their noise in good time."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.noise import Noise
from engine.samplers import SAMPLERS, Evaluations, Sampler, Settings
from engine.samplers.combination import Combination, computed
from engine.samplers.sampler import Latent, StepNoise
from engine.samplers.walk import walk
from tests.engine.trajectories import CPU, LEVELS, SHAPE, denoiser_of, integrate, walked

LINEAR = [name for name, sampler in SAMPLERS.items() if not sampler.adaptive]
SETTINGS = Settings(eta=1.0, s_churn=2.0)
MOST_TERMS = 8


@dataclass
class Run:
    """What a run begins with; `asked` is what its noise was asked for so far."""

    name: str
    dtype: torch.dtype = torch.float32
    steps: int = 40
    asked: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = SAMPLERS[self.name]
        self.sigmas = self.sampler.sigmas("karras", LEVELS, self.steps)
        noise = Noise(7, SHAPE, CPU)
        self._step_noise = self.sampler.step_noise(noise, self.sigmas)
        self.x = (noise.initial * self.sampler.initial_scale(self.sigmas[0])).to(self.dtype)

    def noise(self, sigma: float, sigma_next: float) -> Tensor:
        self.asked.append((sigma, sigma_next))
        return self._step_noise(sigma, sigma_next).to(self.dtype)

    def on_tensors(self) -> Tensor:
        evaluating = self.sampler.run(self.x, self.sigmas, self.noise, SETTINGS)
        return integrate(evaluating, denoiser_of(self.name))[0]

    def walked(self) -> Tensor:
        walking = walk(self.sampler, self.x, self.sigmas, self.noise, SETTINGS)
        return walked(walking, denoiser_of(self.name))[0]

    def steps_of_a_walk(self) -> Generator[tuple[Combination, Callable[[], None]], None, None]:
        """What it asks for: x, before that is computed, and what it would do meanwhile."""
        walking = walk(self.sampler, self.x, self.sigmas, self.noise, SETTINGS)
        denoise = denoiser_of(self.name)
        try:
            x, sigma, meanwhile = next(walking)
            while True:
                yield x, meanwhile
                x, sigma, meanwhile = walking.send(denoise(computed([x])[0], sigma))
        except StopIteration:
            return


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_a_walk_ends_where_the_sampler_ends_on_tensors(name: str, dtype: torch.dtype, bound: float) -> None:
    expected, ours = Run(name, dtype).on_tensors(), Run(name, dtype).walked()
    assert ours.dtype == dtype
    assert float((ours - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("name", SAMPLERS)
def test_sums_stay_short_however_many_steps_there_are(name: str) -> None:
    lengths = [len(x.terms) for x, _ in Run(name).steps_of_a_walk()]
    assert len(lengths) >= 39
    assert max(lengths) <= MOST_TERMS


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_noise_is_drawn_in_the_same_order(name: str) -> None:
    plain, ahead = Run(name), Run(name)
    plain.on_tensors()
    ahead.walked()
    assert ahead.asked == plain.asked


@pytest.mark.parametrize("name", LINEAR)
def test_noise_is_drawn_meanwhile_and_one_tensor_ahead(name: str) -> None:
    run = Run(name)
    before = None
    for _, meanwhile in run.steps_of_a_walk():
        assert before in (None, len(run.asked)), "drawn between two evaluations"
        drawn = len(run.asked)
        meanwhile()
        meanwhile()  # as where a call is repeated
        before = len(run.asked)
        assert before - drawn <= 1


def clamping(x: Latent, sigmas: Sequence[float], noise: StepNoise, s: Settings) -> Evaluations:
    denoised: Any = yield x, sigmas[0]
    return x * float(denoised > x)


def test_a_sampler_that_decides_by_latents_must_say_so() -> None:
    walking = walk(
        Sampler(name="clamping", run=clamping), torch.ones(SHAPE), [1.0], Noise(1, SHAPE, CPU).step, SETTINGS
    )
    next(walking)
    with pytest.raises(TypeError):
        walking.send(torch.ones(SHAPE))
