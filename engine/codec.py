"""Pictures <-> latents, and pictures to files with their texts."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from engine.protocol import EXIF_DIRECTORY, USER_COMMENT, FileFormat, InvalidJob, NotFinite, user_comment

PNG_COMPRESSION = 4
"""zlib level: sooner done than at the usual 6, for more bytes."""
MOST_PIXELS = MappingProxyType({"JPEG": 65535, "WEBP": 16383})
"""Of a side."""
MOST_EXIF = 65533
"""Bytes in a JPEG file."""
MOST = 4
TILE = 128
"""A tile's side in latent positions. Neighbours share a quarter of it, in which they are blended."""


class Encoder:
    """Encodes pictures of one size with an AutoencoderKL, up to `most` in one call."""

    def __init__(self, vae: Any, *, most: int = MOST) -> None:
        self.vae = vae
        self.most = most

    def __call__(
        self,
        pictures: Sequence[npt.NDArray[np.uint8] | npt.NDArray[np.float32]],
        *,
        tiled: bool = False,
    ) -> list[Tensor]:
        """RGB pictures (8h, 8w, 3), 0 to 255, to latents (4, h, w), float32: the posterior's mean.

        `tiled` takes less memory, for a latent that differs slightly where it is larger than a tile.
        """
        weight = next(self.vae.parameters())
        pixels = torch.from_numpy(np.stack(list(pictures))).to(weight.device).permute(0, 3, 1, 2)
        with _tiles(self.vae, tiled):
            mean = self.vae.encode((pixels.float() / 127.5 - 1).to(weight.dtype)).latent_dist.mean
        return list((mean.float() * self.vae.config.scaling_factor).unbind())


class Decoder:
    """Decodes latents of one shape with an AutoencoderKL, up to `most` in one call."""

    def __init__(self, vae: Any, *, most: int = MOST) -> None:
        self.vae = vae
        self.most = most

    def __call__(
        self, latents: Sequence[Tensor], *, tiled: bool = False
    ) -> list[npt.NDArray[np.uint8] | NotFinite]:
        """Latents (4, h, w) to RGB pictures (8h, 8w, 3), or NotFinite in the place of one that is not.

        `tiled` takes less memory, for a picture that differs slightly where it is larger than a tile.
        """
        z = torch.stack(list(latents)) / self.vae.config.scaling_factor
        with _tiles(self.vae, tiled):
            images = self.vae.decode(z.to(next(self.vae.parameters()).dtype), return_dict=False)[0].float()
        finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().nan_to_num().to(torch.uint8)
        pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return [
            picture if ok else NotFinite("the picture is not finite: the model diverged on this job")
            for picture, ok in zip(pictures, finite, strict=True)
        ]


@contextmanager
def _tiles(vae: Any, wanted: bool) -> Iterator[None]:
    """The VAE's own tiling (diffusers), with larger tiles than it has by default: fewer seams."""
    vae.use_tiling = wanted
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, 8 * TILE
    try:
        yield
    finally:
        vae.use_tiling = False


def written(picture: npt.NDArray[np.uint8], file_format: FileFormat, texts: Mapping[str, str]) -> bytes:
    """The file of an RGB picture (h, w, 3).

    A PNG has all `texts` as chunks of their names (iTXt where they are not Latin-1), JPEG and WEBP have
    `parameters` alone, in EXIF's UserComment, unless it is larger than EXIF may be.
    Raises InvalidJob for a picture that is too large for the format.
    """
    longest, most = max(picture.shape[:2]), MOST_PIXELS.get(file_format.kind)
    if most is not None and longest > most:
        raise InvalidJob(
            f"samples_format: {file_format.kind} has at most {most} pixels a side, and the picture {longest}"
        )
    told = texts if file_format.with_text else {}
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format.kind, **_options(file_format, told))
    return buffer.getvalue()


def _options(file_format: FileFormat, texts: Mapping[str, str]) -> dict[str, Any]:
    """Of Pillow's `save`."""
    if file_format.kind == "PNG":
        return {"pnginfo": _chunks(texts), "compress_level": PNG_COMPRESSION}
    exif = _exif(texts.get("parameters", ""))
    common = {"quality": file_format.quality, **({"exif": exif} if exif else {})}
    return common | ({"lossless": True} if file_format.kind == "WEBP" and file_format.lossless else {})


def _chunks(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


def _exif(text: str) -> bytes:
    """Empty for no text, and for one that is too large."""
    if not text:
        return b""
    exif = Image.Exif()
    exif.get_ifd(EXIF_DIRECTORY)[USER_COMMENT] = user_comment(text)
    data = exif.tobytes()
    return data if len(data) <= MOST_EXIF else b""
