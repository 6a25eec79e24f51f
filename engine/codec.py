"""Pictures <-> latents, and pictures to PNG with metadata."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from engine.protocol import NotFinite

PNG_COMPRESSION = 4
"""zlib level: sooner done than at the usual 6, for more bytes."""
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


def png(picture: npt.NDArray[np.uint8], infotext: str) -> bytes:
    """PNG with `infotext` in a text chunk named `parameters` (iTXt where it is not Latin-1)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", infotext)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info, compress_level=PNG_COMPRESSION)
    return buffer.getvalue()
