"""A large picture in overlapping tiles, and their results joined without a seam.

Which tiles depends on the picture's size alone. A tile's border is not what it would be in the whole picture,
as the network sees nothing beyond: there the neighbour counts, and within one tile fades into the other.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""(height, width, 3)."""

TILE = 192
"""The longest side in pixels that is not divided, and that tiles have."""
MARGIN = 12
"""How far a tile reaches beyond its part, into its neighbours'."""
FADE = 8
"""Over how many of the 2 · MARGIN pixels that both have, those in the middle, one gives way to the other."""
ALIGNMENT = 4
"""Tiles begin at multiples, where networks that take several pixels for one begin too."""

Span = tuple[int, int]
"""First pixel, and the one behind the last."""


def spans(side: int) -> list[Span]:
    """What the tiles take of a side of the picture; neighbours share 2 · MARGIN pixels."""
    parts = 1 if side <= TILE else math.ceil(side / (TILE - 2 * MARGIN))
    borders = [0, *(side * part // parts // ALIGNMENT * ALIGNMENT for part in range(1, parts)), side]
    return [(max(0, begin - MARGIN), min(side, end + MARGIN)) for begin, end in pairwise(borders)]


def joined(rows: Sequence[Sequence[Picture]], scale: int) -> Picture:
    """The whole of tiles that were enlarged `scale` times."""
    return _joined([_joined(row, scale, axis=1) for row in rows], scale, axis=0)


def _joined(parts: Sequence[Picture], scale: int, axis: int) -> Picture:
    """One behind another, fading from the former to the latter where their parts meet."""
    dropped, fade = (MARGIN - FADE // 2) * scale, FADE * scale
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    latter = ((np.arange(fade, dtype=np.float32) + 0.5) / fade).reshape(shape)
    pieces = [parts[0]]
    for part in parts[1:]:
        former, ending, _ = np.split(pieces.pop(), [-dropped - fade, -dropped], axis)
        _, beginning, rest = np.split(part, [dropped, dropped + fade], axis)
        seam = ending * (1 - latter) + beginning * latter
        pieces += [former, seam.round().astype(np.uint8), rest]
    return np.concatenate(pieces, axis)
