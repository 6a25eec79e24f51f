"""What a row may ask for: operations, what they must agree on to share a call, and that call.

Rows yield instances; the engine batches instances of equal `key` and hands them to `run`, which answers
one result each, in order.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.checkpoint import LoadedCheckpoint
from engine.prompts import Prompt

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""


class Operation(Protocol):
    name: ClassVar[str]
    max_rows: ClassVar[int | None]

    @property
    def key(self) -> Hashable: ...
    @property
    def width(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @classmethod
    def run(cls, checkpoint: LoadedCheckpoint, batch: Sequence[Self]) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encode:
    """Prompts to conditionings (77 · chunks, channels), one each."""

    name: ClassVar[str] = "encode"
    max_rows: ClassVar[int | None] = 64

    prompts: Sequence[Prompt]
    clip_skip: int
    remaining: int

    @property
    def key(self) -> Hashable:
        return self.name, self.clip_skip

    @property
    def width(self) -> int:
        return len(self.prompts)

    @classmethod
    def run(cls, checkpoint: LoadedCheckpoint, batch: Sequence[Self]) -> Sequence[list[Tensor]]:
        prompts = [prompt for op in batch for prompt in op.prompts]
        encoded = iter(checkpoint.conditioner(prompts, batch[0].clip_skip))
        return [[next(encoded) for _ in op.prompts] for op in batch]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncodeImage:
    """A picture (8h, 8w, 3) to its latent (4, h, w)."""

    name: ClassVar[str] = "encode_image"
    max_rows: ClassVar[int | None] = 4
    width: ClassVar[int] = 1

    pixels: Picture
    remaining: int

    @property
    def key(self) -> Hashable:
        return self.name, self.pixels.shape

    @classmethod
    def run(cls, checkpoint: LoadedCheckpoint, batch: Sequence[Self]) -> Sequence[Tensor]:
        return checkpoint.encoder([op.pixels for op in batch])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluate:
    """x (4, h, w) at σ to `denoised`, guided by cond away from uncond; uncond None is guidance 1."""

    name: ClassVar[str] = "evaluate"
    max_rows: ClassVar[int | None] = None

    x: Tensor
    sigma: float
    cond: Tensor
    uncond: Tensor | None
    guidance_scale: float
    remaining: int

    @property
    def key(self) -> Hashable:
        """The latent's shape; settings and prompts, whatever their length, never belong to it."""
        return self.name, tuple(self.x.shape)

    @property
    def width(self) -> int:
        return 1 if self.uncond is None else 2

    @classmethod
    def run(cls, checkpoint: LoadedCheckpoint, batch: Sequence[Self]) -> Sequence[Tensor]:
        return checkpoint.denoiser(
            x=[op.x for op in batch],
            sigma=[op.sigma for op in batch],
            cond=[op.cond for op in batch],
            uncond=[op.uncond for op in batch],
            guidance_scale=[op.guidance_scale for op in batch],
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Decode:
    """A finished latent (4, h, w) to a picture (8h, 8w, 3). Answers NotFinite for a latent that is not."""

    name: ClassVar[str] = "decode"
    max_rows: ClassVar[int | None] = 4
    remaining: ClassVar[int] = 0
    width: ClassVar[int] = 1

    x: Tensor

    @property
    def key(self) -> Hashable:
        return self.name, tuple(self.x.shape)

    @classmethod
    def run(cls, checkpoint: LoadedCheckpoint, batch: Sequence[Self]) -> Sequence[object]:
        return checkpoint.decoder([op.x for op in batch])
