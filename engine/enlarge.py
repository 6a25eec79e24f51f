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
        picture = yield from grown(picture, size, by, remaining=remaining)
    if picture.shape[1::-1] != size:
        picture = yield Resize(pixels=picture, size=size, method=method, device=device, remaining=remaining)
    return picture


def grown(picture: Picture, size: Size, by: Upscaler, *, remaining: int) -> Enlarging:
    """A picture as large as a network makes it, to reach `size`. `remaining`: evaluations that follow."""
    height, width = picture.shape[:2]
    for _ in range(runs((width, height), size, by.scale)):
        picture = yield from _run(picture, by, remaining)
    return picture


def runs(own: Size, size: Size, scale: int) -> int:
    """How often a network of this scale runs, until a picture of `own` size is at least of `size`."""
    most = 1 if scale == 1 else MAX_RUNS
    for count in range(1, most):
        if all(side * scale**count >= wanted for side, wanted in zip(own, size, strict=True)):
            return count
    return most


def _run(picture: Picture, upscaler: Upscaler, remaining: int) -> Enlarging:
    """Tile by tile, so that no step is long and others' rows have their turn in between."""
    across, down = spans(picture.shape[1]), spans(picture.shape[0])
    tiles = [picture[top:bottom, left:right] for top, bottom in down for left, right in across]
    large: list[Picture] = []
    for done, tile in enumerate(tiles, start=1):
        left = len(tiles) - done + remaining
        large.append((yield Upscale(upscaler=upscaler, pixels=tile, remaining=left)))
    rows = [large[first : first + len(across)] for first in range(0, len(large), len(across))]
    return joined(rows, upscaler.scale)
