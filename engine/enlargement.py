"""Given pictures enlarged: what an `Enlargement` needs, the rows that it takes, and its file.

Only the networks run in the engine; the rest is Pillow's, off the engine's thread.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Self

import numpy as np
from PIL import Image

from engine import codec
from engine.enlarge import Enlarging, grown, runs
from engine.images import Picture, Size, read_picture
from engine.protocol import Enlargement, InvalidJob
from engine.upscalers.job import find_upscaler
from engine.upscalers.store import UpscalerStore
from engine.upscalers.upscaler import Upscaler

MULTIPLE = 8
"""Sides are of so many pixels, unless a picture is cut."""

ON_THE_WAY = 16
"""How many times as many pixels as its result may have a picture may have that a network makes."""

METHODS: Mapping[str, Image.Resampling] = MappingProxyType(
    {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A picture, and by what it is made larger: one or two, or nothing.

    `upscaled` is its size then, `kept` what of the middle is the result.
    """

    job: Enlargement
    picture: Image.Image
    upscaled: Size
    kept: Size
    by: Sequence[Upscaler | str]

    @classmethod
    def of(cls, job: Enlargement, store: UpscalerStore) -> Self:
        """Slow: reads the picture, and loads networks.

        Raises InvalidJob for a picture that cannot be read or would become too large, UpscalerError for an
        upscaler that is not there or cannot be used.
        """
        names = {"upscaler_1": job.upscaler, "upscaler_2": job.second}
        wanted = {} if job.upscaler == "None" else names
        by = [find_upscaler(name, store, field) for field, name in wanted.items() if name != "None"]
        picture = read_picture(job.image, "image")
        upscaled, kept = sizes(picture.size, job) if by else (picture.size, picture.size)
        _check(picture.size, upscaled, by, job)
        return cls(job=job, picture=picture, upscaled=upscaled, kept=kept, by=by)

    def programs(self) -> list[Enlarging]:
        """One for each network."""
        pixels = np.asarray(self.picture)
        return [grown(pixels, self.upscaled, by, remaining=0) for by in self.by if isinstance(by, Upscaler)]

    def finished(self, pictures: Sequence[Picture]) -> bytes:
        """The file, of what the programs have made, in their order. May take seconds."""
        made = iter(pictures)
        large = [
            self._resized(Image.fromarray(next(made)), "Lanczos")
            if isinstance(by, Upscaler)
            else self._resized(self.picture, by)
            for by in self.by
        ]
        whole = large[0] if large else self.picture
        for other in large[1:]:
            whole = Image.blend(whole, other, self.job.second_visibility)
        left, top = ((side - kept) // 2 for side, kept in zip(whole.size, self.kept, strict=True))
        cut = whole.crop((left, top, left + self.kept[0], top + self.kept[1]))
        return codec.written(np.asarray(cut), self.job.file_format, self.job.texts)

    def _resized(self, picture: Image.Image, method: str) -> Image.Image:
        return picture if picture.size == self.upscaled else picture.resize(self.upscaled, METHODS[method])


def _check(own: Size, upscaled: Size, by: Sequence[Upscaler | str], job: Enlargement) -> None:
    """Raises InvalidJob for more pixels than there may be, in the end or on the way to there."""
    field = "upscaling_resize" if job.box is None else "upscaling_resize_w × upscaling_resize_h"
    if by:
        _check_pixels(field, upscaled, job.max_pixels)
    for network in by:
        if isinstance(network, Upscaler):
            times = network.scale ** runs(own, upscaled, network.scale)
            larger, how = (own[0] * times, own[1] * times), f" by {network.name!r} on the way"
            _check_pixels(field, larger, ON_THE_WAY * job.max_pixels, how)


def _check_pixels(field: str, size: Size, most: int, how: str = "") -> None:
    if math.prod(size) > most:
        raise InvalidJob(
            f"{field}: a picture of {size[0]} × {size[1]}{how} is not allowed. Allowed: up to {most} pixels."
        )


def sizes(own: Size, job: Enlargement) -> tuple[Size, Size]:
    """What a picture is enlarged to, and what is kept of that."""
    if job.box is None:
        size = _scaled(own, job.scale)
        return size, size
    ratios = [Fraction(wanted, side) for wanted, side in zip(job.box, own, strict=True)]
    if not job.crop:
        size = _scaled(own, min(ratios))
        return size, size
    width, height = _scaled(own, max(ratios))
    return (max(width, job.box[0]), max(height, job.box[1])), job.box


def _scaled(size: Size, scale: float | Fraction) -> Size:
    width, height = (max(1, int(side * scale) // MULTIPLE) * MULTIPLE for side in size)
    return width, height
