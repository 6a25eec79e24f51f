"""Seeds to noise. Drawn per image on the CPU in float32, so that it depends on nothing but the job."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from engine.brownian import BrownianPath
from engine.philox import Philox
from engine.protocol import Job

Shape = tuple[int, int, int]
"""Of a latent: (channels, height, width)."""

_SEED_RANGE = 1 << 64
_PARALLEL = 0.9995
"""Noises whose mean cosine is above this have no arc between them."""


class Generator:
    """The stream of normal tensors of one seed. `source` is one of `engine.protocol.NOISE_SOURCES`."""

    def __init__(self, source: str, seed: int) -> None:
        seed %= _SEED_RANGE
        self._philox = Philox(seed) if source == "nvidia" else None
        self._torch = torch.Generator("cpu").manual_seed(seed)

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        if self._philox:
            return self._philox.randn(shape)
        return torch.randn(shape, generator=self._torch, dtype=torch.float32)


class Noise:
    """All the noise of one image: first the initial latent's, then each step's, from one generator.

    With `seed_delta` other than 0 (the wire's `eta_noise_seed_delta`) the step noise comes from a new
    generator seeded with seed + seed_delta. `change` makes the initial noise from the seed's own, which is
    drawn in any case: it does not move the steps' noise.
    """

    def __init__(
        self,
        seed: int,
        shape: Shape,
        device: torch.device,
        *,
        seed_delta: int = 0,
        source: str = "cpu",
        change: Callable[[Tensor], Tensor] = lambda initial: initial,
    ) -> None:
        self._seed, self._shape, self._source = seed, shape, source
        generator = Generator(source, seed)
        self._initial = change(generator.randn(shape)).to(device)
        self._steps = Generator(source, seed + seed_delta) if seed_delta else generator

    @classmethod
    def of(cls, job: Job, shape: Shape, device: torch.device) -> Self:
        """A job's noise for a latent of this shape."""
        return cls(
            job.seed,
            shape,
            device,
            seed_delta=job.eta_noise_seed_delta,
            source=job.noise_source,
            change=lambda initial: _varied(job, initial),
        )

    @property
    def initial(self) -> Tensor:
        """Standard normal noise of the latent's shape (4, h, w)."""
        return self._initial

    def step(self, sigma: float, sigma_next: float) -> Tensor:
        """The next step's standard normal noise, on the CPU, whatever its levels."""
        return self._steps.randn(self._shape)

    def brownian(self, sigma_min: float, sigma_max: float) -> Callable[[float, float], Tensor]:
        """Noise, on the CPU, for steps between any two levels of this range: steps that overlap share theirs.

        It depends on the seed alone, not on `seed_delta`.
        """
        return BrownianPath(
            sigma_min,
            sigma_max,
            self._seed % _SEED_RANGE,
            lambda seed: Generator(self._source, seed).randn(self._shape),
        ).noise


def _varied(job: Job, initial: Tensor) -> Tensor:
    """The seed's noise with the variation seed's mixed in, made at the size that it is resized from."""
    shape = initial.shape
    if job.seed_resize_from_w > 0 and job.seed_resize_from_h > 0:
        shape = torch.Size((shape[0], job.seed_resize_from_h // 8, job.seed_resize_from_w // 8))
    noise = initial
    if shape != initial.shape:
        noise = Generator(job.noise_source, job.seed).randn(shape)
    if job.subseed_strength:
        noise = slerp(job.subseed_strength, noise, Generator(job.noise_source, job.subseed).randn(shape))
    return noise if shape == initial.shape else pasted(initial, noise)


def slerp(strength: float, noise: Tensor, other: Tensor) -> Tensor:
    """From `noise` at 0 along the arc to `other` at 1, for each column of (c, h, w) by itself.

    Where the two are as good as parallel it mixes them linearly with exchanged ends, as the original does. A
    single column without an arc, as all columns of height 1, is mixed linearly.
    """
    cosine = (noise / noise.norm(dim=1, keepdim=True) * other / other.norm(dim=1, keepdim=True)).sum(1)
    if cosine.mean() > _PARALLEL:
        return noise * strength + other * (1 - strength)
    angle = cosine.clamp(-1, 1).acos()[:, None]
    along = (((1 - strength) * angle).sin() * noise + (strength * angle).sin() * other) / angle.sin()
    return torch.where(cosine[:, None].abs() < 1 - 1e-6, along, (1 - strength) * noise + strength * other)


def pasted(noise: Tensor, part: Tensor) -> Tensor:
    """`noise` with `part` in its middle; what of `part` does not fit is cut off at its borders."""
    rows, from_rows = _centred(noise.shape[1], part.shape[1])
    columns, from_columns = _centred(noise.shape[2], part.shape[2])
    result = noise.clone()
    result[:, rows, columns] = part[:, from_rows, from_columns]
    return result


def _centred(size: int, part: int) -> tuple[slice, slice]:
    """Where the part goes, and which of it. An odd excess leaves the last place to what was there."""
    shift = (size - part) // 2
    if shift >= 0:
        return slice(shift, shift + part), slice(0, part)
    return slice(0, part + 2 * shift), slice(-shift, part + shift)
