"""Upscaler files -> networks that enlarge pictures. Local safetensors only, checked before they are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.header import FLOATS, Header, InvalidFile
from engine.protocol import NotFinite, UpscalerError
from engine.upscalers.layouts import Layout, Shape, told
from engine.upscalers.networks import build
from engine.weights import TensorFile

SHOWN = 3
"""How many of a file's keys an error names."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Upscaler:
    """A loaded network, which makes a picture's sides `scale` times as long."""

    name: str
    scale: int
    bytes: int
    network: nn.Module
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | NotFinite:
        """RGB (h, w, 3) to (scale·h, scale·w, 3), or NotFinite in its place."""
        pixels = torch.tensor(picture, device=self.device).permute(2, 0, 1)[None].float() / 255
        large: Tensor = self.network(pixels.to(self.dtype))[0].float()
        if not torch.isfinite(large).all():
            return NotFinite(f"the picture is not finite: upscaler {self.name!r} diverged on it")
        enlarged = (large.clamp(0, 1) * 255).round().to(torch.uint8)
        return enlarged.permute(1, 2, 0).cpu().numpy()


def read_layout(path: Path) -> Layout:
    """Of a file's header alone. Raises UpscalerError for one that cannot be used, and OSError."""
    with _opened(path) as file:
        file.outlines()
        return told(file.header.shapes, path.stem)


def load(path: Path, *, device: torch.device, dtype: torch.dtype, max_bytes: int) -> Upscaler:
    """Raises UpscalerError for a file that cannot be used or needs more than `max_bytes`, and OSError."""
    name = path.stem
    with _opened(path) as file:
        outlines = file.outlines()
        layout = told(file.header.shapes, name)
        with torch.device("meta"):
            network = build(layout.network).eval().requires_grad_(False).to(dtype)
        _check(network, file.header, layout, name)
        needed = sum(parameter.nbytes for parameter in network.parameters())
        if needed > max_bytes:
            raise UpscalerError(
                f"upscaler {name!r} needs {needed / 2**20:.0f} MiB of the {max_bytes / 2**20:.0f} MiB that "
                "upscalers may take"
            )
        weights = network.to_empty(device=device).state_dict()
        file.read_into((outlines[layout.keys[parameter]], weight) for parameter, weight in weights.items())
    for parameter, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UpscalerError(
                f"upscaler {name!r} is not finite at {layout.keys[parameter]} in {str(dtype)[6:]}"
            )
    return Upscaler(name, layout.network.scale, needed, network, device, dtype)


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    """What the file turns out to be, inside too, is an UpscalerError."""
    try:
        with path.open("rb") as file:
            yield TensorFile(file)
    except InvalidFile as error:
        raise UpscalerError(f"upscaler {path.stem!r} is no valid safetensors file: {error}") from None


def _check(network: nn.Module, header: Header, layout: Layout, name: str) -> None:
    """The file has every parameter in its shape, as numbers that it can be, and nothing else."""
    parameters = {parameter: tuple(value.shape) for parameter, value in network.state_dict().items()}
    for parameter, shape in parameters.items():
        key = layout.keys.get(parameter)
        if key is None:
            raise UpscalerError(f"upscaler {name!r} has no {parameter}")
        stored = header.tensors[key]
        if stored.shape != shape:
            raise UpscalerError(
                f"upscaler {name!r} is malformed: {key} is {_shown(stored.shape)}, not {_shown(shape)}"
            )
        if stored.dtype not in FLOATS:
            raise UpscalerError(f"upscaler {name!r} is stored as {stored.dtype}, not as one of {FLOATS}")
    if unknown := [key for parameter, key in layout.keys.items() if parameter not in parameters]:
        shown = ", ".join(unknown[:SHOWN])
        raise UpscalerError(f"upscaler {name!r} has {len(unknown)} keys of no layer: {shown}")


def _shown(shape: Shape) -> str:
    return "×".join(map(str, shape))
