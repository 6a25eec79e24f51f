"""Pictures and latents at another size without a network, by canonical name.

Lanczos after Pillow's resampling: a window of three lobes around each pixel's place in the source, widened
where the picture shrinks. As two matrix products it runs where the model runs, for a whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

LOBES = 3

Size = tuple[int, int]
"""Width, height."""


def lanczos_weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """(target, source): how much each of `source` pixels counts for each of `target`; rows add up to 1."""
    scale = source / target
    stretch = max(scale, 1.0)
    center = (np.arange(target)[:, None] + 0.5) * scale
    distance = (np.arange(source)[None] + 0.5 - center) / stretch
    weights = np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0)
    normalised: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def lanczos(pictures: Tensor, size: Size) -> Tensor:
    """(n, c, h, w) float32 of 0 … 255 -> (n, c, height, width). 8 bits in between, as Pillow has."""
    height, width = pictures.shape[2:]
    across = torch.from_numpy(lanczos_weights(width, size[0])).to(pictures.device)
    down = torch.from_numpy(lanczos_weights(height, size[1])).to(pictures.device)
    return down @ (pictures @ across.T).clamp(0, 255).round()


def nearest(pictures: Tensor, size: Size) -> Tensor:
    """(n, c, h, w) -> (n, c, height, width)."""
    return interpolate(pictures, (size[1], size[0]), mode="nearest-exact")


IMAGE: Mapping[str, Callable[[Tensor, Size], Tensor]] = {
    "None": lanczos,
    "Lanczos": lanczos,
    "Nearest": nearest,
}


def resize(
    pictures: Sequence[npt.NDArray[np.uint8]], size: Size, method: str, device: torch.device
) -> list[npt.NDArray[np.uint8]]:
    """RGB pictures (h, w, 3) of one size to (height, width, 3)."""
    pixels = torch.from_numpy(np.stack(list(pictures))).to(device).permute(0, 3, 1, 2).float()
    large = IMAGE[method](pixels, size).clamp(0, 255).round().to(torch.uint8)
    return list(large.permute(0, 2, 3, 1).cpu().numpy())


@dataclass(frozen=True, slots=True)
class LatentMode:
    """Arguments of `torch.nn.functional.interpolate`."""

    mode: str
    antialias: bool = False


LATENT: Mapping[str, LatentMode] = {
    "Latent": LatentMode("bilinear"),
    "Latent (antialiased)": LatentMode("bilinear", antialias=True),
    "Latent (bicubic)": LatentMode("bicubic"),
    "Latent (bicubic antialiased)": LatentMode("bicubic", antialias=True),
    "Latent (nearest)": LatentMode("nearest"),
    "Latent (nearest-exact)": LatentMode("nearest-exact"),
}


def upscale_latent(latent: Tensor, size: Size, upscaler: str) -> Tensor:
    """(4, h, w) -> (4, height, width); `size` in latent pixels."""
    mode = LATENT[upscaler]
    return interpolate(latent[None], (size[1], size[0]), mode=mode.mode, antialias=mode.antialias)[0]
