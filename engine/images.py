"""Given pictures to what a program starts from, and its result back into them. Pillow and numpy, no torch.

AUTOMATIC1111's img2img: four ways to fit a picture to a size, masks that are blurred, filled and pasted back,
and "only masked", which draws a part of a picture at full resolution. Runs off the engine's thread.
"""

import io
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from engine.protocol import PICTURE_FORMATS, InitImage, InvalidJob, Job, Mask

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, the last two exclusive."""
Size = tuple[int, int]
"""Width, height."""

FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""How far the surroundings are smeared into a mask, from far to near, and how often each is laid over."""

LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True, slots=True)
class Overlay:
    """Where a result belongs: the untouched picture, how much of it gives way (0 … 255), and the box."""

    original: Image.Image
    mask: Image.Image
    box: Box

    def paste(self, result: Image.Image) -> Image.Image:
        """The original with `result` fitted into the box; where the mask is 0, exactly the original."""
        left, top, right, bottom = self.box
        whole = self.original.copy()
        whole.paste(fitted(result, (right - left, bottom - top), "crop"), (left, top))
        return Image.composite(whole, self.original, self.mask)


@dataclass(frozen=True, slots=True)
class Canvas:
    """What an img2img job starts from.

    `pixels` is the picture to encode. `repaint` (h, w) float32, of the latent's size, is 1 where the picture
    is to be made anew and 0 where it is to stay; None without a mask. `mask` is of the picture's size, True
    where it is to be made anew.
    """

    pixels: Picture
    repaint: npt.NDArray[np.float32] | None
    overlay: Overlay | None
    mask: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """None for a job without a picture. Raises InvalidJob for one that cannot be read."""
        if job.init is None:
            return None
        picture = read_picture(job.init.image, "init_images")
        if job.init.mask is None:
            return cls(np.asarray(_start(picture, job)), None, None)
        mask = _blurred(_mask(job.init.mask), job.init.mask)
        if not job.init.mask.only_masked:
            return cls._whole(picture, mask, job)
        if box := crop_box(_same_size(mask, picture), job.init.mask.padding, (job.width, job.height)):
            return cls._part(picture, mask, box, job)
        return cls(np.asarray(_start(picture, job)), None, None)

    @classmethod
    def _whole(cls, picture: Image.Image, mask: Image.Image, job: Job) -> Self:
        assert job.init is not None
        size = latent_pixels(job.width, job.height)
        mode = "stretch" if job.init.resize_mode == "latent" else job.init.resize_mode
        original, mask = fitted(picture, size, mode), fitted(mask, size, mode)
        doubled = mask.point(lambda value: min(255, 2 * value))
        return cls._masked(original, mask, Overlay(original, doubled, (0, 0, *size)), job.init)

    @classmethod
    def _part(cls, picture: Image.Image, mask: Image.Image, box: Box, job: Job) -> Self:
        assert job.init is not None
        size = latent_pixels(job.width, job.height)
        mask = _same_size(mask, picture)
        start, part = (fitted(each.crop(box), size, "fill") for each in (picture, mask))
        return cls._masked(start, part, Overlay(picture, mask, box), job.init)

    @classmethod
    def _masked(cls, start: Image.Image, mask: Image.Image, overlay: Overlay, init: InitImage) -> Self:
        assert init.mask is not None
        if init.mask.content != "original":
            start = filled(start, mask)
        repaint = latent_mask(mask, soft=init.mask.soft)
        return cls(np.asarray(start), repaint, overlay, np.asarray(mask) >= 128)

    def finish(self, result: Picture) -> Picture:
        """The picture to answer with: the result, within the original where there was a mask."""
        if self.overlay is None:
            return result
        return np.asarray(self.overlay.paste(Image.fromarray(result)))


def latent_pixels(width: int, height: int) -> Size:
    """The size in pixels of the latent that a picture of this size gets."""
    return width // 8 * 8, height // 8 * 8


def _start(picture: Image.Image, job: Job) -> Image.Image:
    assert job.init is not None
    if job.init.resize_mode == "latent":  # the latent is resized, not the picture
        size = latent_pixels(*picture.size)
        return picture.crop((0, 0, *size)) if min(size) else picture.resize((8, 8), LANCZOS)
    return fitted(picture, latent_pixels(job.width, job.height), job.init.resize_mode)


def read_picture(data: bytes, field: str) -> Image.Image:
    """RGB, upright, transparency on white."""
    picture = ImageOps.exif_transpose(_opened(data, field))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _opened(data: bytes, field: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InvalidJob(f"{field}: not a picture that can be read, or one that is cut short") from None
    return picture


def _mask(mask: Mask) -> Image.Image:
    """Grey, white where to repaint: the alpha of a picture that has a varied one, else its brightness."""
    picture = ImageOps.exif_transpose(_opened(mask.image, "mask"))
    grey = picture.convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            grey = alpha if mask.soft else alpha.point(lambda value: 255 * (value > 128))
    return ImageChops.invert(grey) if mask.invert else grey


def _blurred(grey: Image.Image, mask: Mask) -> Image.Image:
    values = np.asarray(grey, np.float32)
    for axis, sigma in ((1, mask.blur_x), (0, mask.blur_y)):
        if sigma > 0:
            values = gaussian(values, sigma, axis)
    return Image.fromarray(values.round().astype(np.uint8))


def gaussian(values: npt.NDArray[np.float32], sigma: float, axis: int) -> npt.NDArray[np.float32]:
    """A Gaussian of standard deviation `sigma` pixels along one axis, cut off at int(2.5·σ + ½) pixels."""
    reach = int(2.5 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    around = [(reach, reach) if each == axis else (0, 0) for each in range(2)]
    padded = np.pad(values, around, mode="edge")
    result = np.zeros_like(values)
    for shift, weight in enumerate(weights):
        part = slice(shift, shift + values.shape[axis])
        result += weight * (padded[part] if axis == 0 else padded[:, part])
    return result


def _same_size(mask: Image.Image, picture: Image.Image) -> Image.Image:
    return mask if mask.size == picture.size else mask.resize(picture.size, LANCZOS)


def fitted(picture: Image.Image, size: Size, mode: str) -> Image.Image:
    """A picture of `size`.

    `stretch` changes the aspect; `crop` covers the size and cuts off what is over, centred; `fill` lies
    within it, and the rows or columns at its edge are stretched over the borders.
    """
    if picture.size == size:
        return picture
    if mode == "stretch":
        return picture.resize(size, LANCZOS)
    ratios = [target / own for target, own in zip(size, picture.size, strict=True)]
    ratio = max(ratios) if mode == "crop" else min(ratios)
    width, height = (max(1, round(own * ratio)) for own in picture.size)
    scaled = picture.resize((width, height), LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if mode == "crop":
        return scaled.crop((-left, -top, size[0] - left, size[1] - top))
    return _with_borders(scaled, size, left, top)


def _with_borders(picture: Image.Image, size: Size, left: int, top: int) -> Image.Image:
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    rest = ((top, size[1] - height - top), (left, size[0] - width - left))
    return Image.fromarray(np.pad(pixels, (*rest, (0, 0))[: pixels.ndim], mode="edge"))


def crop_box(mask: Image.Image, padding: int, target: Size) -> Box | None:
    """Where a mask is not 0, with `padding` around, widened to the aspect of `target` where there is room.

    None for a mask that is 0 everywhere.
    """
    bounds = mask.getbbox()
    if bounds is None:
        return None
    low = [max(0, edge - padding) for edge in bounds[:2]]
    high = [min(side, edge + padding) for side, edge in zip(mask.size, bounds[2:], strict=True)]
    spans = [end - begin for begin, end in zip(low, high, strict=True)]
    scale = max(span / side for span, side in zip(spans, target, strict=True))
    for axis in range(2):
        wanted = min(mask.size[axis], max(spans[axis], round(target[axis] * scale)))
        start = low[axis] - (wanted - spans[axis]) // 2
        low[axis] = min(max(0, start), mask.size[axis] - wanted)
        high[axis] = low[axis] + wanted
    return low[0], low[1], high[0], high[1]


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture whose masked part is replaced by its surroundings, blurred more the further away."""
    kept = picture.convert("RGBA")
    kept.putalpha(ImageChops.invert(mask))
    premultiplied = kept.convert("RGBa")  # so that what is cut out does not bleed
    result = Image.new("RGBA", picture.size)
    for radius, times in FILL_RADII:
        smeared = premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result = Image.alpha_composite(result, smeared)
    return result.convert("RGB")


def latent_mask(mask: Image.Image, *, soft: bool) -> npt.NDArray[np.float32]:
    """A mask at an eighth of its size, 0 to 1; rounded to 0 or 1 unless `soft`."""
    small = mask.resize((mask.width // 8, mask.height // 8), Image.Resampling.BOX)
    values: npt.NDArray[np.float32] = np.asarray(small, np.float32) / np.float32(255)
    return values if soft else values.round()
