"""Large pictures in tiles."""

from itertools import pairwise

import numpy as np
import pytest

from engine.images import Picture
from engine.upscalers.tiles import ALIGNMENT, FADE, MARGIN, TILE, joined, spans


@pytest.mark.parametrize("sides", [range(1, TILE + 1), range(TILE + 1, 2100), [4096, 16383]])
def test_tiles_cover_a_side_and_share_the_same_with_every_neighbour(sides: range | list[int]) -> None:
    for side in sides:
        tiles = spans(side)
        assert (tiles[0][0], tiles[-1][1]) == (0, side)
        assert all(0 < end - begin <= TILE for begin, end in tiles)
        assert all(end - begin == 2 * MARGIN for (_, end), (begin, _) in pairwise(tiles))
        assert all(begin % ALIGNMENT == 0 for begin, _ in tiles)
        # No third tile where two overlap: joining fades between two.
        assert all(after[0] > before[1] for before, after in zip(tiles, tiles[2:], strict=False))


def test_small_pictures_are_one_tile() -> None:
    assert spans(TILE) == [(0, TILE)]
    assert len(spans(TILE + 1)) == 2


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(192, 192), (193, 30), (30, 401), (400, 611)])
def test_what_tiles_agree_on_is_joined_exactly(width: int, height: int, scale: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)

    def enlarged(part: Picture) -> Picture:
        return part.repeat(scale, axis=0).repeat(scale, axis=1)

    tiles = [[enlarged(picture[t:b, le:r]) for le, r in spans(width)] for t, b in spans(height)]
    assert np.array_equal(joined(tiles, scale), enlarged(picture))


def test_what_they_disagree_on_fades_from_one_to_the_other() -> None:
    """Smoothly, in the middle of what they share."""
    (_, left), (right, _) = spans(200)
    dark, bright = np.zeros((50, 2 * left, 3), np.uint8), np.full((50, 2 * (200 - right), 3), 255, np.uint8)
    row = joined([[dark, bright]], 2)[0, :, 0].astype(int)
    assert len(row) == 400
    assert 0 <= np.diff(row).min() <= np.diff(row).max() <= 255 / (2 * FADE) + 1
    fading = np.flatnonzero((row > 0) & (row < 255))
    assert len(fading) == 2 * FADE
    assert fading.mean() == left + right - 0.5
