"""Upscaler files -> networks that enlarge pictures. Local safetensors only, checked before they are read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.header import Header, read_header
from engine.protocol import CheckpointError, NotFinite, UpscalerError
from engine.upscalers.layouts import Layout, Shape, told
from engine.upscalers.networks import build

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


def read_layout(path: Path) -> tuple[Header, Layout]:
    """Of a file's header alone. Raises UpscalerError for one that cannot be used, and OSError."""
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise UpscalerError(f"upscaler {path.stem!r}: {error.message}") from None
    return header, told(header.shapes, path.stem)


def load(path: Path, *, device: torch.device, dtype: torch.dtype, max_bytes: int) -> Upscaler:
    """The weights in memory of their own, not mapped.

    Raises UpscalerError for a file that cannot be used or needs more than `max_bytes`, and OSError.
    """
    name = path.stem
    header, layout = read_layout(path)
    with torch.device("meta"):
        network = build(layout.network)
    _check(network, header, layout, name)
    needed = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize
    if needed > max_bytes:
        raise UpscalerError(
            f"upscaler {name!r} needs {needed / 2**20:.0f} MiB of the {max_bytes / 2**20:.0f} MiB that "
            "upscalers may take"
        )
    weights = _weights(path, layout, device, dtype)
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
    return Upscaler(name, layout.network.scale, needed, network, device, dtype)


def _check(network: nn.Module, header: Header, layout: Layout, name: str) -> None:
    """The file has every parameter in its shape, and nothing else."""
    parameters = {parameter: tuple(value.shape) for parameter, value in network.state_dict().items()}
    for parameter, shape in parameters.items():
        key = layout.keys.get(parameter)
        if key is None:
            raise UpscalerError(f"upscaler {name!r} has no {parameter}")
        if header.shapes[key] != shape:
            raise UpscalerError(
                f"upscaler {name!r} is malformed: {key} is {_shown(header.shapes[key])}, not {_shown(shape)}"
            )
    if unknown := [key for parameter, key in layout.keys.items() if parameter not in parameters]:
        shown = ", ".join(unknown[:SHOWN])
        raise UpscalerError(f"upscaler {name!r} has {len(unknown)} keys of no layer: {shown}")


def _weights(path: Path, layout: Layout, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """By parameter, where and how they shall run."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UpscalerError(f"upscaler {path.stem!r} is no valid safetensors file: {error}") from None
    weights = {}
    for parameter, key in layout.keys.items():
        if not tensors[key].is_floating_point():
            raise UpscalerError(f"upscaler {path.stem!r} is stored as {tensors[key].dtype}, not as numbers")
        weights[parameter] = tensors[key].to(device, dtype, copy=True)
        if not torch.isfinite(weights[parameter]).all():
            raise UpscalerError(f"upscaler {path.stem!r} has values in {key} that are not finite in {dtype}")
    return weights


def _shown(shape: Shape) -> str:
    return "×".join(map(str, shape))
