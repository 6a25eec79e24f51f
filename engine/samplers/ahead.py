"""Step noise, drawn before its sampler asks for it: that takes long, and need not wait for latents."""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

from torch import Tensor

from engine.samplers.sampler import Sampler, Settings


class Ahead:
    """The noise of one run of a sampler: the same that `noise` gives for the same calls, in their order.

    At most one tensor is drawn that was not asked for. Where the calls are not known none is.
    """

    def __init__(self, noise: Callable[[float, float], Tensor], calls: Iterator[tuple[float, float]]) -> None:
        self._noise, self._calls = noise, calls
        self._drawn: Tensor | None = None

    def draw(self) -> None:
        """Draw what is asked for next, unless it is drawn."""
        if self._drawn is None and (call := next(self._calls, None)):
            self._drawn = self._noise(*call)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        self.draw()
        drawn, self._drawn = self._drawn, None
        return self._noise(sigma, sigma_next) if drawn is None else drawn


def noise_calls(sampler: Sampler, sigmas: Sequence[float], s: Settings) -> Iterator[tuple[float, float]]:
    """What a linear sampler will ask its noise for: found out by running it on no latents."""
    if sampler.adaptive:
        return
    asked: list[tuple[float, float]] = []
    nothing = _NoLatent()

    def noise(sigma: float, sigma_next: float) -> _NoLatent:
        asked.append((sigma, sigma_next))
        return nothing

    evaluating = sampler.run(nothing, sigmas, noise, s)
    try:
        next(evaluating)
        while True:
            yield from asked
            asked.clear()
            evaluating.send(nothing)
    except StopIteration:
        yield from asked


class _NoLatent:
    """Takes the place of every latent, and is all that comes of them."""

    def __add__(self, other: Self | float) -> Self:
        return self

    __sub__ = __mul__ = __rmul__ = __truediv__ = __add__

    def __neg__(self) -> Self:
        return self

    def __iter__(self) -> Iterator[Self]:
        """Of two that are stacked."""
        return iter((self, self))
