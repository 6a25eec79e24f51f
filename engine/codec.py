"""Pictures <-> latents, and pictures to PNG with metadata."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from engine.protocol import NotFinite

PNG_COMPRESSION = 4
"""zlib level: sooner done than at the usual 6, for more bytes."""


class Encoder:
    """Encodes pictures of one size with an AutoencoderKL."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        parameter = next(vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def __call__(self, pictures: Sequence[npt.NDArray[np.uint8] | npt.NDArray[np.float32]]) -> list[Tensor]:
        """RGB pictures (8h, 8w, 3), 0 to 255, to latents (4, h, w), float32: the posterior's mean."""
        pixels = torch.from_numpy(np.stack(list(pictures))).to(self._device).permute(0, 3, 1, 2)
        mean = self._vae.encode((pixels.float() / 127.5 - 1).to(self._dtype)).latent_dist.mean
        return list((mean.float() * self._vae.config.scaling_factor).unbind())


class Decoder:
    """Decodes latents of one shape with an AutoencoderKL."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._dtype = next(vae.parameters()).dtype

    def __call__(self, latents: Sequence[Tensor]) -> list[npt.NDArray[np.uint8] | NotFinite]:
        """Latents (4, h, w) to RGB pictures (8h, 8w, 3), or NotFinite in the place of one that is not."""
        z = torch.stack(list(latents)) / self._vae.config.scaling_factor
        images = self._vae.decode(z.to(self._dtype), return_dict=False)[0].float()
        finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().nan_to_num().to(torch.uint8)
        pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return [
            picture if ok else NotFinite("the picture is not finite: the model diverged on this job")
            for picture, ok in zip(pictures, finite, strict=True)
        ]


def png(picture: npt.NDArray[np.uint8], infotext: str) -> bytes:
    """PNG with `infotext` in a text chunk named `parameters` (iTXt where it is not Latin-1)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", infotext)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info, compress_level=PNG_COMPRESSION)
    return buffer.getvalue()
