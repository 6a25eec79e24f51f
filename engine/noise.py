"""Seeds to noise. Drawn per image on the CPU in float32, so that it depends on nothing but the seed."""

import torch
from torch import Tensor

_SEED_RANGE = 1 << 64


class Noise:
    """All the noise of one image: first the initial latent's, then each step's, from one generator.

    With `seed_delta` other than 0 (the wire's `eta_noise_seed_delta`) the step noise comes from a new
    generator seeded with seed + seed_delta.
    """

    def __init__(
        self, seed: int, shape: tuple[int, ...], device: torch.device, *, seed_delta: int = 0
    ) -> None:
        self._shape = shape
        self._device = device
        generator = _generator(seed)
        self._initial = self._draw(generator)
        self._steps = _generator(seed + seed_delta) if seed_delta else generator

    @property
    def initial(self) -> Tensor:
        """Standard normal noise of the latent's shape (4, h, w)."""
        return self._initial

    def step(self) -> Tensor:
        """The next step's standard normal noise."""
        return self._draw(self._steps)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self._shape, generator=generator, dtype=torch.float32).to(self._device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed % _SEED_RANGE)
