"""How the engine runs a sampler: on Combinations where it is linear, and with its noise drawn ahead."""

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from engine.samplers.ahead import Ahead, noise_calls
from engine.samplers.combination import Combination, computed
from engine.samplers.sampler import Latent, Sampler, Settings

Walk = Generator[tuple[Combination, float, Callable[[], None]], Tensor, Tensor]
"""Yields x, σ and `meanwhile` where it needs the denoiser; is sent `denoised`; returns the finished latent.

`meanwhile` may be called in between, as often as one likes: it draws noise that else is drawn afterwards.
"""


def walk(
    sampler: Sampler,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Callable[[float, float], Tensor],
    s: Settings,
) -> Walk:
    """From x at σ_0. What `noise` draws, on the CPU, goes to where x is."""
    ahead = Ahead(noise, noise_calls(sampler, sigmas, s))

    def given(latent: Tensor) -> Latent:
        return latent if sampler.adaptive else Combination.of(latent)

    def step_noise(sigma: float, sigma_next: float) -> Latent:
        return given(ahead(sigma, sigma_next).to(x.device, non_blocking=True))

    evaluating = sampler.run(given(x), sigmas, step_noise, s)
    try:
        latent, sigma = next(evaluating)
        while True:
            denoised = yield _combination(latent), sigma, ahead.draw
            latent, sigma = evaluating.send(given(denoised))
    except StopIteration as finished:
        return computed([_combination(finished.value)])[0]


def _combination(latent: Latent) -> Combination:
    return latent if isinstance(latent, Combination) else Combination.of(latent)
