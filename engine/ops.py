"""What a row may ask for: operations, what they must agree on to share a call, and that call.

Rows yield instances, each with the part of a checkpoint that it runs on; the engine batches instances of
equal `key` and hands them to `run`, which answers one result each, in order.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.codec import Decoder, Encoder
from engine.conditioning import Cond, Conditioner
from engine.deepcache import Turn
from engine.denoiser import Denoiser
from engine.lora.layers import Weighted
from engine.precision import in_float32
from engine.prepared import Model
from engine.prompts import Prompt
from engine.protocol import AtelierError, NotFinite, OutOfMemory
from engine.samplers.combination import Combination, computed
from engine.tiling import circular
from engine.upscalers.resize import resize
from engine.upscalers.upscaler import Upscaler

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

TILED_ABOVE = 1536 * 1536
"""Larger pictures, in pixels, are encoded and decoded in overlapping tiles, unless they are `tiling`."""


class Operation(Protocol):
    name: ClassVar[str]

    @property
    def max_rows(self) -> int | None: ...
    @property
    def key(self) -> Hashable: ...
    @property
    def width(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encode:
    """Prompts to conditionings, one each, all with the row's `loras`.

    `keep_mean`: emphasis leaves the mean of a chunk as it was.
    """

    name: ClassVar[str] = "encode"
    max_rows: ClassVar[int | None] = 64

    conditioner: Conditioner
    prompts: Sequence[Prompt]
    clip_skip: int
    keep_mean: bool
    remaining: int
    loras: Sequence[Weighted] = ()

    @property
    def key(self) -> Hashable:
        return self.name, id(self.conditioner), self.clip_skip, self.keep_mean

    @property
    def width(self) -> int:
        return len(self.prompts)

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[list[Cond]]:
        prompts = [prompt for op in batch for prompt in op.prompts]
        loras = [op.loras for op in batch for _ in op.prompts]
        first = batch[0]
        encoded = iter(first.conditioner(prompts, first.clip_skip, loras, keep_mean=first.keep_mean))
        return [[next(encoded) for _ in op.prompts] for op in batch]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncodeImage:
    """A picture (8h, 8w, 3) to its latent (4, h, w). Its values may lie between those of whole pixels.

    Answers NotFinite for a latent that is not.
    """

    name: ClassVar[str] = "encode_image"
    width: ClassVar[int] = 1

    encoder: Encoder
    pixels: Picture | npt.NDArray[np.float32]
    remaining: int
    tiling: bool = False
    precise: bool = False
    tiled: bool = False

    @property
    def in_tiles(self) -> bool:
        height, width, _ = self.pixels.shape
        return self.tiled or (height * width > TILED_ABOVE and not self.tiling)

    @property
    def max_rows(self) -> int:
        return self.encoder.most

    @property
    def key(self) -> Hashable:
        return self.name, id(self.encoder), self.pixels.shape, self.tiling, self.precise, self.tiled

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[object]:
        first = batch[0]
        vae = first.encoder.vae
        with in_float32(vae, first.precise), circular(vae, first.tiling):
            return _finite(first.encoder([op.pixels for op in batch], tiled=first.in_tiles))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Resize:
    """A picture (h, w, 3) to one of `size`, (width, height) in pixels, without a network.

    One a call: it takes little time, and a network's picture may take much memory.
    """

    name: ClassVar[str] = "resize"
    max_rows: ClassVar[int | None] = 1
    width: ClassVar[int] = 1

    pixels: Picture
    size: tuple[int, int]
    method: str
    device: torch.device
    remaining: int

    @property
    def key(self) -> Hashable:
        return self.name, self.pixels.shape, self.size, self.method

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[Picture]:
        first = batch[0]
        return resize([op.pixels for op in batch], first.size, first.method, first.device)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Upscale:
    """A picture (h, w, 3), or a tile of one, through a network. Answers NotFinite for a result that is not.

    One a call: so a row's result depends on itself alone, bit for bit.
    """

    name: ClassVar[str] = "upscale"
    max_rows: ClassVar[int | None] = 1
    width: ClassVar[int] = 1

    upscaler: Upscaler
    pixels: Picture
    remaining: int

    @property
    def key(self) -> Hashable:
        return self.name, id(self.upscaler), self.pixels.shape

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[object]:
        return [op.upscaler(op.pixels) for op in batch]


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a row is finished with if it is interrupted: a latent (4, h, w), and whose VAE it is for.

    Nobody writes to it, so any thread may read it.
    """

    latent: Tensor
    model: Model


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluate:
    """x (4, h, w) at σ to `denoised`, guided by conds, each with its weight, away from uncond.

    x is computed with its neighbours'. `meanwhile` is called once the device has all its work, and again if
    the call is repeated: for what the row will need whatever the answer is.
    uncond None is for a guidance where it cancels out: guidance_scale times the weights' sum is 1.
    The answer to `both` is denoised and the estimate of uncond alone, stacked; it needs an uncond.
    `loras` are the row's own, and no part of the key. A row that reuses features says whose `turn` it is.
    `estimate` is made of the answer before this one, if there is one in this pass.
    Answers NotFinite for a row that is not.
    """

    name: ClassVar[str] = "evaluate"

    denoiser: Denoiser
    x: Combination
    sigma: float
    conds: Sequence[tuple[Cond, float]]
    uncond: Cond | None
    guidance_scale: float
    remaining: int
    loras: Sequence[Weighted] = ()
    both: bool = False
    tiling: bool = False
    precise: bool = False
    turn: Turn | None = None
    estimate: Estimate | None = None
    meanwhile: Callable[[], None] = lambda: None

    @property
    def max_rows(self) -> int | None:
        _, height, width = self.x.shape
        return 1 if self.denoiser.singly else self.denoiser.most(height * width)

    @property
    def key(self) -> Hashable:
        """Model, shape, padding, how much of the UNet runs; settings and prompts never belong to it."""
        full = self.turn is None or self.turn.full
        return self.name, id(self.denoiser), tuple(self.x.shape), self.tiling, self.precise, full

    @property
    def width(self) -> int:
        return len(self.conds) + (self.uncond is not None)

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[object]:
        first = batch[0]
        denoiser = first.denoiser.plain() if first.precise or first.tiling else first.denoiser
        if first.turn is not None:
            denoiser = denoiser.reusing([op.turn for op in batch if op.turn is not None])
        with in_float32(denoiser.unet, first.precise), circular(denoiser.unet, first.tiling):
            denoised = denoiser(
                x=computed([op.x for op in batch]),
                sigma=[op.sigma for op in batch],
                conds=[op.conds for op in batch],
                uncond=[op.uncond for op in batch],
                guidance_scale=[op.guidance_scale for op in batch],
                loras=[op.loras for op in batch],
                both=[op.both for op in batch],
            )
        for op in batch:
            op.meanwhile()
        return _finite(denoised)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Decode:
    """A finished latent (4, h, w) to a picture (8h, 8w, 3). Answers NotFinite for a latent that is not."""

    name: ClassVar[str] = "decode"
    width: ClassVar[int] = 1

    decoder: Decoder
    x: Tensor
    remaining: int = 0
    tiling: bool = False
    precise: bool = False
    tiled: bool = False

    @property
    def in_tiles(self) -> bool:
        _, height, width = self.x.shape
        return self.tiled or (64 * height * width > TILED_ABOVE and not self.tiling)

    @property
    def max_rows(self) -> int:
        return self.decoder.most

    @property
    def key(self) -> Hashable:
        return self.name, id(self.decoder), tuple(self.x.shape), self.tiling, self.precise, self.tiled

    @classmethod
    def run(cls, batch: Sequence[Self]) -> Sequence[object]:
        first = batch[0]
        vae = first.decoder.vae
        with in_float32(vae, first.precise), circular(vae, first.tiling):
            return first.decoder([op.x for op in batch], tiled=first.in_tiles)


def _finite(rows: Sequence[Tensor]) -> list[Tensor | NotFinite]:
    """The rows, with NotFinite in the place of one that is not; of two latents in one the first counts."""
    counting = torch.stack([row[0] if row.ndim == 4 else row for row in rows])
    finite = torch.isfinite(counting).flatten(1).all(dim=1).tolist()
    return [
        row if ok else NotFinite("the latent is not finite: the model diverged on this job")
        for row, ok in zip(rows, finite, strict=True)
    ]


def second_try(operation: Operation, failure: AtelierError) -> Operation | None:
    """What may succeed where an operation failed alone, if anything: in float32, or with less memory."""
    match operation, failure:
        case Evaluate() | EncodeImage() | Decode(), NotFinite():
            return None if operation.precise else replace(operation, precise=True)
        case EncodeImage() | Decode(), OutOfMemory():
            return None if operation.in_tiles or operation.tiling else replace(operation, tiled=True)
    return None
