"""Reads a picture back: background colour, shape colours, shapes. No learned part in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.train_demo.pictures import COLOURS, SHAPES, Placed, Scene, shape_mask

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

GRID = 48
"""Masks are compared at this many pixels a side, cut to their bounding boxes."""

LARGEST = 256
"""Larger pictures are averaged down to this many pixels before they are read."""

NAMES = tuple(COLOURS)
PALETTE: Pixels = np.array([COLOURS[name] for name in NAMES], dtype=np.float32)


@dataclass(frozen=True)
class Seen:
    """What a picture shows as far as it can be read; one colour, shape and area a thing."""

    background: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    areas: tuple[float, ...]


def look(picture: Image.Image, things: int, style: str = "filled") -> Seen:
    """Reads a picture of one thing, or of two, which are looked for in its halves."""
    shrink = max(1, min(picture.size) // LARGEST)
    pixels = np.asarray(picture.convert("RGB").reduce(shrink), dtype=np.float32)
    background = background_of(pixels)
    halves = [pixels] if things == 1 else np.array_split(pixels, 2, axis=1)
    colours, shapes, areas = [], [], []
    for half in halves:
        colour, mask = shape_of(half, background)
        colours.append(colour)
        shapes.append(best_shape(mask, style))
        areas.append(float(mask.mean()) / len(halves))
    return Seen(background, tuple(colours), tuple(shapes), tuple(areas))


def nearest(pixels: Pixels) -> NDArray[np.intp]:
    """(..., 3) -> the index of the nearest palette colour."""
    distances = np.square(pixels[..., None, :] - PALETTE).sum(-1)
    return np.asarray(distances.argmin(-1))


def background_of(pixels: Pixels) -> str:
    """The palette colour nearest to the median of the outermost pixels."""
    edge = max(1, min(pixels.shape[:2]) // 50)
    frame = np.ones(pixels.shape[:2], dtype=bool)
    frame[edge:-edge, edge:-edge] = False
    return NAMES[int(nearest(np.median(pixels[frame], axis=0)))]


def shape_of(pixels: Pixels, background: str) -> tuple[str, Mask]:
    """The commonest palette colour beside the background's, and where it is nearer than that."""
    counts = np.bincount(nearest(pixels).ravel(), minlength=len(NAMES))
    counts[NAMES.index(background)] = 0
    colour = int(counts.argmax())
    around = pixels[nearest(pixels) == NAMES.index(background)]
    ground = np.median(around, axis=0) if len(around) else PALETTE[NAMES.index(background)]
    to_shape = np.square(pixels - PALETTE[colour]).sum(-1)
    return NAMES[colour], to_shape < np.square(pixels - ground).sum(-1)


def best_shape(mask: Mask, style: str) -> str:
    """The shape whose template overlaps a mask best (intersection over union)."""
    found = framed(mask)
    if found is None:
        return "none"
    scores = {
        shape: (found & template).sum() / (found | template).sum()
        for shape, template in templates(style).items()
    }
    return max(scores, key=lambda shape: float(scores[shape]))


def framed(mask: Mask) -> Mask | None:
    """A mask cut to its bounding box and brought to `GRID`²; None where it is (nearly) empty.

    Rows and columns with next to nothing in them do not count, so that specks do no harm.
    """
    speck = 0.06 * np.sqrt(mask.sum())
    rows, columns = (np.flatnonzero(mask.sum(axis) > speck) for axis in (1, 0))
    if len(rows) < 4 or len(columns) < 4:
        return None
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    grey = Image.fromarray(cut.astype(np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(np.asarray(grey) > 127)


@lru_cache(4)
def templates(style: str) -> dict[str, Mask]:
    """The mask of every shape, cut to its bounding box."""
    at = Placed(200.0, 200.0, 180.0)
    drawn = {shape: shape_mask(shape, style, (400, 400), at) for shape in SHAPES}
    framed_masks = {shape: framed(np.asarray(mask) > 127) for shape, mask in drawn.items()}
    return {shape: mask for shape, mask in framed_masks.items() if mask is not None}


def shares_right(seen: Sequence[Seen], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of pictures in which everything of a kind is right."""
    pairs = list(zip(seen, scenes, strict=True))
    colours = [s.colours == tuple(t.colour for t in scene.things) for s, scene in pairs]
    shapes = [s.shapes == tuple(t.shape for t in scene.things) for s, scene in pairs]
    backgrounds = [s.background == scene.background for s, scene in pairs]
    everything = [all(row) for row in zip(colours, shapes, backgrounds, strict=True)]
    columns = {
        "background_colour": backgrounds,
        "shape_colour": colours,
        "shape": shapes,
        "all": everything,
    }
    return {name: round(sum(rows) / len(rows), 4) for name, rows in columns.items()}
