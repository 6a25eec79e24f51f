"""A picture enlarged, as operations."""

from collections.abc import Generator
from typing import Any

import torch

from engine.ops import Operation, Picture, Resize, Upscale
from engine.upscalers.resize import Size
from engine.upscalers.tiles import joined, spans
from engine.upscalers.upscaler import Upscaler

MAX_RUNS = 3
"""How often a network may run over its own result."""

Enlarging = Generator[Operation, Any, Picture]


def enlarged(
    picture: Picture, size: Size, by: Upscaler | str, *, device: torch.device, remaining: int
) -> Enlarging:
    """A picture (h, w, 3) at `size`: by a network, or by a canonical name of what does without one.

    The network runs once, and again, three times at most, until the picture is at least of that size; what is
    then too much or too little is left to Lanczos.
    """
    method = "Lanczos" if isinstance(by, Upscaler) else by
    if isinstance(by, Upscaler):
        for _ in range(MAX_RUNS):
            picture = yield from _run(picture, by, remaining)
            if by.scale == 1 or (picture.shape[1] >= size[0] and picture.shape[0] >= size[1]):
                break
    if picture.shape[1::-1] != size:
        picture = yield Resize(pixels=picture, size=size, method=method, device=device, remaining=remaining)
    return picture


def _run(picture: Picture, upscaler: Upscaler, remaining: int) -> Enlarging:
    """Tile by tile, so that no step is long and others' rows have their turn in between."""
    height, width = picture.shape[:2]
    rows: list[list[Picture]] = []
    for top, bottom in spans(height):
        rows.append([])
        for left, right in spans(width):
            tile = picture[top:bottom, left:right]
            rows[-1].append((yield Upscale(upscaler=upscaler, pixels=tile, remaining=remaining)))
    return joined(rows, upscaler.scale)
